"""Chat with a model about one image or video, in the terminal; an empty line or the end of input leaves."""

from __future__ import annotations

import argparse
import os

from transformers import TextStreamer

from dyvte.cli import run
from dyvte.engine.answer import show_exit
from dyvte.engine.images import load_image
from dyvte.engine.options import TEMPERATURE, add_loading_arguments, add_method_arguments, open_answerer
from dyvte.engine.questions import Question
from dyvte.engine.video import add_video_arguments, load_video, sampling_of
from llava.chat_model import infer_conv_mode
from llava.mm_utils import get_model_name_from_path


def main(args) -> None:
    """Load the model and the image once, then answer turn after turn."""
    image = load_video(args.video, sampling_of(args)) if args.video else load_image(args.image_file)
    inferred = infer_conv_mode(get_model_name_from_path(args.model_path), args.model_path)
    if args.conv_mode and args.conv_mode != inferred:
        print(f"[conversation mode {args.conv_mode}; the model suggests {inferred}]")
    answerer = open_answerer(args, args.conv_mode or inferred)
    chat = answerer.chat
    human, model = chat.roles
    history: list[tuple[Question, str]] = []
    streamer = TextStreamer(chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
    while text := _read(f"{human}: "):
        question = Question(text, [] if history else [image])
        try:
            prompt = chat.prompt(question, history)
            print(f"{model}: ", end="", flush=True)
            (answer,) = answerer.complete(chat.batch([prompt], [image]), streamer)
        except ValueError as error:
            # of this turn alone: <image> typed once more, or the chat has become too long
            print(f"[not asked: {error}]")
            continue
        history.append((question, answer.text))
        if answerer.exits and answer.report is not None:
            show_exit(answer.report)
        if args.debug:
            measured = answer.report.as_dict() if answer.report else {}
            print({"prompt": prompt, "outputs": answer.text, **measured})
    print("bye")


def _read(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return ""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Chat with a model about an image or a video.")
    parser.add_argument(
        "--model-path",
        type=os.path.expanduser,
        default="facebook/opt-350m",
        help="folder or Hub id (LLaVA's default: %(default)s)",
    )
    about = parser.add_mutually_exclusive_group(required=True)
    about.add_argument("--image-file", type=str, help="file or http(s) address")
    about.add_argument("--video", metavar="FILE", help="instead of an image")
    add_video_arguments(parser)
    parser.add_argument(
        "--conv-mode", type=str, default=None, help="prompt template (the one that the checkpoint asks for)"
    )
    parser.add_argument("--temperature", type=float, default=0.2, help=TEMPERATURE)
    parser.add_argument(
        "--max-new-tokens", type=int, default=512, help="most tokens of an answer (%(default)s)"
    )
    add_loading_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="print each prompt and what was measured")
    add_method_arguments(parser)
    return parser


if __name__ == "__main__":
    run(build_parser(), main)
