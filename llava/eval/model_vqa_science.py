"""Answer ScienceQA's questions: a JSON list of conversations in, ``answers.jsonl`` out, in the same order.

A question without an image is asked without one. The prompt of each answer is kept whole, with ``<image>`` where
there is an image: the scorer tells by it which questions have one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dyvte.engine.questions import Item
from dyvte.engine.run import add_arguments, answer_items, get_chunk, run, split_list
from llava.constants import DEFAULT_IMAGE_TOKEN

MAX_NEW_TOKENS = 1024
LETTER_PROMPT = "Answer with the option's letter from the given choices directly."

__all__ = ["build_parser", "eval_model", "get_chunk", "read_items", "split_list"]


def read_items(args: argparse.Namespace) -> list[Item]:
    """The questions of ``args.question_file``; with ``args.single_pred_prompt`` they ask for the letter alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a list of conversations; the message names the entry.
    """
    path = Path(args.question_file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"question file not found: {path}")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list of questions")
    suffix = f"\n{LETTER_PROMPT}" if args.single_pred_prompt else ""
    return [item_of(row, f"{path}, entry {number}", suffix) for number, row in enumerate(rows)]


def item_of(row: dict[str, Any], place: str, suffix: str = "") -> Item:
    """A row of LLaVA's ScienceQA files: ``id``, ``conversations`` (the first turn is asked), and ``image`` or none.

    Raises:
        ValueError: it is no such row.
    """
    try:
        name, text = row["id"], row["conversations"][0]["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: not a question with id and conversations ({error!r})") from error
    image = row.get("image")
    if image:
        text = f"{DEFAULT_IMAGE_TOKEN}\n{text}"
    prompt = text + suffix
    return Item({"question_id": name, "prompt": prompt}, prompt, (image,) if image else (), place)


def eval_model(args: argparse.Namespace) -> None:
    """Answer the questions of this chunk that the answers file does not hold yet."""
    answer_items(args, read_items(args))


def build_parser() -> argparse.ArgumentParser:
    """LLaVA's flags, and those of the exit method."""
    parser = argparse.ArgumentParser(description="Answer ScienceQA's questions.")
    add_arguments(parser, "tables/question.json", "llava_v0", MAX_NEW_TOKENS)
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    parser.add_argument("--answer-prompter", action="store_true", help="has no effect, as in LLaVA")
    return parser


if __name__ == "__main__":
    run(build_parser(), eval_model)
