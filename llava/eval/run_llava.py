"""Ask one question about one or several images."""

from __future__ import annotations

import argparse

from dyvte.cli import run
from dyvte.engine.answer import Answer, describe_exit
from dyvte.engine.images import load_image
from dyvte.engine.options import add_model_arguments, open_answerer
from dyvte.engine.questions import Question
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
    images = load_images(image_parser(args))
    model_name = getattr(args, "model_name", None) or get_model_name_from_path(args.model_path)
    answerer = open_answerer(args, args.conv_mode or infer_conv_mode(model_name, args.model_path))
    (answer,) = answerer.ask([Question(args.query, images)])
    print(answer.text)
    if answerer.exits:
        print(describe_exit(answer.report))
    return answer


def build_parser() -> argparse.ArgumentParser:
    """LLaVA's flags, and those of the exit method."""
    parser = argparse.ArgumentParser(description="Ask a model one question about images.")
    parser.add_argument("--image-file", required=True)
    parser.add_argument("--query", required=True)
    parser.add_argument("--sep", default=",")
    add_model_arguments(parser, conv_mode=None, max_new_tokens=512)
    parser.set_defaults(evaluator="run_llava")  # InternVL does not pad images here
    return parser


if __name__ == "__main__":
    run(build_parser(), eval_model)
