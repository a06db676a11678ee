"""Answer a file of questions: ``questions.jsonl`` in, ``answers.jsonl`` out, in the order of the questions."""

from __future__ import annotations

import argparse

from dyvte.engine.questions import Item, item_of, read_lines
from dyvte.engine.run import add_arguments, answer_items, get_chunk, run, split_list

__all__ = ["build_parser", "eval_model", "get_chunk", "read_items", "split_list"]


def read_items(args: argparse.Namespace) -> list[Item]:
    """The questions of ``args.question_file``."""
    return [item_of(row, place) for place, row in read_lines(args.question_file)]


def eval_model(args: argparse.Namespace) -> None:
    """Answer the questions of this chunk that the answers file does not hold yet."""
    answer_items(args, read_items(args))


def build_parser(max_new_tokens: int = 128) -> argparse.ArgumentParser:
    """LLaVA's flags, and those of the exit method."""
    parser = argparse.ArgumentParser(description="Answer a JSON-lines file of questions about images.")
    add_arguments(parser, "tables/question.jsonl", "llava_v1", max_new_tokens)
    return parser


if __name__ == "__main__":
    run(build_parser(), eval_model)
