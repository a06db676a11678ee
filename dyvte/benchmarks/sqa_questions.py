"""ScienceQA's questions: a JSON list of conversations, of which the first turn is asked.

:mod:`dyvte.benchmarks.sqa` and ``llava.eval.model_vqa_science`` read questions in this format. Answers must keep
their whole prompt, with ``<image>`` where there is an image: the scorer tells by it which questions have one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dyvte.engine.questions import IMAGE_TOKEN, Item, QuestionFormat, Troubles, image_names, naming
from dyvte.io import read_json

LETTER_PROMPT = "Answer with the option's letter from the given choices directly."


def read_items(args: argparse.Namespace) -> list[Item]:
    """The questions of the file; with ``single_pred_prompt`` they ask for the letter alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a list of conversations; the message names the entries.
    """
    path = Path(args.question_file).expanduser()
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list of questions")
    suffix = f"\n{LETTER_PROMPT}" if getattr(args, "single_pred_prompt", False) else ""
    items, troubles = [], Troubles()
    for number, row in enumerate(rows):
        with troubles.noted():
            items.append(item_of(row, f"{path}, entry {number}", suffix))
    troubles.tell()
    return items


def item_of(row: dict[str, Any], place: str, suffix: str = "") -> Item:
    """A row of LLaVA's ScienceQA files: ``id``, ``conversations`` (the first turn is asked), and ``image`` or none.

    Raises:
        ValueError: it is no such row.
    """
    try:
        name, text = row["id"], row["conversations"][0]["value"].replace(IMAGE_TOKEN, "").strip()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: not a question with id and conversations ({error!r})") from error
    item = Item({"question_id": name}, text, (), place)
    with naming(item):
        images = image_names(row.get("image"))
    prompt = (f"{IMAGE_TOKEN}\n{text}" if images else text) + suffix
    return Item({"question_id": name, "prompt": prompt}, prompt, images, place)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """LLaVA's flags for ScienceQA."""
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    parser.add_argument("--answer-prompter", action="store_true", help="has no effect, as in LLaVA")


CONVERSATIONS = QuestionFormat(
    read_items,
    "Answer ScienceQA's questions.",
    add_flags,
    question_file="tables/question.json",
    conv_mode="llava_v0",
    max_new_tokens=1024,
)
