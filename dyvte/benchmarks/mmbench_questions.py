"""MMBench's questions as LLaVA asks them: hint, question, options, and with a flag a request for the letter alone.

:mod:`dyvte.benchmarks.mmbench` and ``llava.eval.model_vqa_mmbench`` read the table in this format. Prompts must stay
LLaVA's. One difference: images become RGB before padding, which changes only images that are not RGB.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

from dyvte.benchmarks.mmbench_table import LETTERS, Row, read_questions
from dyvte.engine.questions import Item, QuestionFormat

logger = logging.getLogger(__name__)

LETTER_PROMPTS = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接回答选项字母。",
}
"""What ``--single-pred-prompt`` adds to a question, by ``--lang``; an answer's ``prompt`` is without it."""


def read_items(args: argparse.Namespace) -> list[Item]:
    """The questions of the table, with ``all_rounds`` once for each rotation of the options.

    ``args`` of command lines without :func:`add_flags`, such as the studies', lack its flags: hence ``getattr``.

    Raises:
        FileNotFoundError, ValueError: the table is missing or broken; the message names the row.
    """
    suffix = ""
    if getattr(args, "single_pred_prompt", False):
        suffix = "\n" + LETTER_PROMPTS[getattr(args, "lang", "en")]
    all_rounds = getattr(args, "all_rounds", False)
    rows = read_questions(Path(args.question_file).expanduser())
    cut = [row.index for row in rows if row.lost_options]
    if cut:
        logger.warning(
            '%d questions lose options, as in LLaVA, because one reads as an empty cell ("None", "N/A"); '
            "the first is question %s",
            len(cut),
            cut[0],
        )
    return [item for row in rows for item in _rounds(row, suffix, all_rounds)]


def _rounds(row: Row, suffix: str, all_rounds: bool) -> Iterator[Item]:
    """The question with its options as they are; with ``all_rounds`` also with each rotation to the left."""
    letters, count = list(LETTERS[: len(row.options)]), len(row.options)
    for shift in range(count if all_rounds else 1):
        options = row.options[shift:] + row.options[:shift]
        listed = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
        prompt = "\n".join([row.question, *listed])
        head = {
            "question_id": row.index,
            "round_id": shift,
            "prompt": prompt,
            "options": options,
            "option_char": letters[shift:] + letters[:shift],
        }
        yield Item(head, prompt + suffix, (row.image,), row.place)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """LLaVA's flags for MMBench."""
    parser.add_argument("--all-rounds", action="store_true", help="ask with every rotation of the options")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the letter alone")
    parser.add_argument("--lang", choices=list(LETTER_PROMPTS), default="en", help="of that request")


MMBENCH_FORMAT = QuestionFormat(read_items, "Answer an MMBench table.", add_flags, max_new_tokens=1024)
