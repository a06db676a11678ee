"""Ask one question about one or several images, or about a video."""

from __future__ import annotations

import argparse

from dyvte.cli import run
from dyvte.engine.answer import Answer, describe_exit
from dyvte.engine.images import load_image
from dyvte.engine.options import add_model_arguments, open_answerer
from dyvte.engine.questions import Question
from dyvte.engine.video import add_video_arguments, load_video, sampling_of
from llava.chat_model import infer_conv_mode
from llava.mm_utils import get_model_name_from_path


def image_parser(args) -> list[str]:
    """The image files or addresses, as ``--sep`` divides them."""
    return args.image_file.split(args.sep)


def load_images(image_files: list[str]) -> list:
    """Read each as RGB."""
    return [load_image(file) for file in image_files]


def eval_model(args) -> Answer:
    """Print the answer to ``args.query``, and what the exit did when one is on."""
    images = load_images(image_parser(args)) if args.image_file else []
    videos = [load_video(args.video, sampling_of(args))] if getattr(args, "video", None) else []
    model_name = getattr(args, "model_name", None) or get_model_name_from_path(args.model_path)
    answerer = open_answerer(args, args.conv_mode or infer_conv_mode(model_name, args.model_path))
    (answer,) = answerer.ask([Question(args.query, [*images, *videos])])
    print(answer.text)
    if answerer.exits:
        print(describe_exit(answer.report))
    return answer


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Ask a model one question about images or a video.")
    about = parser.add_mutually_exclusive_group(required=True)
    about.add_argument("--image-file", help="file or http(s) address; several are separated by --sep")
    about.add_argument("--video", metavar="FILE", help="instead of images")
    add_video_arguments(parser)
    parser.add_argument("--query", required=True, help="the question")
    parser.add_argument("--sep", default=",", help="between the names of several images (%(default)s)")
    add_model_arguments(parser, conv_mode=None, max_new_tokens=512)
    parser.set_defaults(evaluator="run_llava")  # InternVL does not pad images here
    return parser


if __name__ == "__main__":
    run(build_parser(), eval_model)
