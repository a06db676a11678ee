"""MMBench's table (questions, options and images in one TSV), and its questions as LLaVA asks them: hint, question,
options, and with a flag a request for the letter alone.

Called by :mod:`dyvte.benchmarks.mmbench`, which also scores by the table, and ``llava.eval.model_vqa_mmbench``.
Prompts must stay LLaVA's, and so must empty cells (those of pandas with its defaults): they decide which options are
asked. One difference: images become RGB before padding, which changes only images that are not RGB.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import logging
import math
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyvte.cli import needs
from dyvte.engine.questions import Item, QuestionFormat

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

QUESTIONS = "mmbench_dev_20230712.tsv"
LETTERS = ("A", "B", "C", "D")
_EMPTY = "#N/A #NA -1.#IND -1.#QNAN -NaN -nan 1.#IND 1.#QNAN <NA> N/A NA NULL NaN None n/a nan null"
EMPTY_CELLS = frozenset(("", "#N/A N/A", *_EMPTY.split()))
"""Texts that pandas reads as an empty cell, in tables and in upload sheets; options with such texts are not asked."""
LETTER_PROMPTS = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接回答选项字母。",
}
"""What ``--single-pred-prompt`` adds to a question, by ``--lang``; an answer's ``prompt`` is without it."""


def table_file(data_dir: Path) -> Path:
    """The dev table, or where that is missing, the only other ``mmbench_*.tsv`` in the folder."""
    others = sorted(data_dir.glob("mmbench_*.tsv"))
    if (data_dir / QUESTIONS).is_file() or len(others) != 1:
        return data_dir / QUESTIONS
    return others[0]


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """An MMBench table; ``options`` go to ``pandas.read_table``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table, or lacks columns, or an index is no whole number or stands twice.
        MissingExtra: pandas is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; docs/evaluation.md says where it comes from.")
    pandas = needs("pandas", "eval")
    try:
        table = pandas.read_table(path, **options)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a table ({str(error).strip()}); download it again.") from None
    if missing := [name for name in ("index", "question", "A") if name not in table]:
        raise ValueError(f"{path}, line 1 has no column {', '.join(missing)}; is it an MMBench table?")
    if table.empty:
        raise ValueError(f"{path} holds no questions; download it again.")
    indices = pandas.to_numeric(table["index"], errors="coerce")
    troubles = {"is no whole number": indices % 1 != 0, "stands in the table twice": indices.duplicated()}
    for what, wrong in troubles.items():
        if wrong.any():
            row = int(wrong.argmax())
            cell = table["index"].tolist()[row]
            raise ValueError(f"{path}, row {row + 1}: the index {cell!r} {what}.")
    table["index"] = indices.astype(int)
    return table


def read_questions(path: Path, suffix: str = "", all_rounds: bool = False) -> tuple[list[Item], list[int]]:
    """The questions in the order of the table, and the indices of those with text in an option that is not asked.

    Args:
        suffix: asked behind each question, but not part of its ``prompt``.
        all_rounds: ask each question also with each rotation of its options to the left.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_table`; also naming the row that has no question, or no image
            in base64.
    """
    table = read_table(path, dtype=str, keep_default_na=False)
    # keep_default_na=False keeps texts such as "None", but pandas fills up a line that was cut with missing cells.
    cells = table.astype(object).where(table.notna(), "").to_dict("records")
    items, cut = [], []
    for number, row in enumerate(cells, 1):
        place = f"{path}, row {number}"
        hint, question = row.get("hint", ""), row["question"]
        if not question.strip():
            raise ValueError(f"{place}: question {row['index']} has no text.")
        if not is_empty(hint):
            question = f"{hint}\n{question}"
        image = _image(row.get("image", ""), f"{place}: the image of question {row['index']}")
        options = asked_options(row)
        if any(row.get(letter) for letter in LETTERS[len(options) :]):
            cut.append(row["index"])
        letters = list(LETTERS[: len(options)])
        for shift in range(len(options) if all_rounds else 1):
            turned = options[shift:] + options[:shift]
            prompt = "\n".join([question, *map("{}. {}".format, letters, turned)])
            head = {
                "question_id": row["index"],
                "round_id": shift,
                "prompt": prompt,
                "options": turned,
                "option_char": letters[shift:] + letters[:shift],
            }
            items.append(Item(head, prompt + suffix, (image,), place))
    return items, cut


def asked_options(row: Mapping[str, Any]) -> list[str]:
    """Options from A up to the first one that is empty to LLaVA."""
    return [str(row[letter]) for letter in takewhile(lambda letter: not is_empty(row.get(letter)), LETTERS)]


def is_empty(cell: Any) -> bool:
    """Whether a cell is empty to LLaVA: one of pandas' empty cells, or "none" or "nan" in any case."""
    return is_missing(cell) or str(cell) in EMPTY_CELLS or str(cell).lower() in ("nan", "none")


def is_missing(cell: Any) -> bool:
    """Whether a cell is empty to pandas, or its column is not there."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _image(cell: str, name: str) -> bytes:
    try:
        content = base64.b64decode("".join(cell.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is not base64 ({error}); download the table again.") from None
    if not content:
        raise ValueError(f"{name} is missing; download the table again.")
    return content


def read_items(args: argparse.Namespace) -> list[Item]:
    """The questions of the table, with ``all_rounds`` once for each rotation of the options; errors as of
    :func:`read_questions`.

    ``args`` of command lines without :func:`add_flags`, such as the studies', lack its flags: hence ``getattr``.
    """
    suffix = ""
    if getattr(args, "single_pred_prompt", False):
        suffix = "\n" + LETTER_PROMPTS[getattr(args, "lang", "en")]
    path, all_rounds = Path(args.question_file).expanduser(), getattr(args, "all_rounds", False)
    items, cut = read_questions(path, suffix, all_rounds)
    if cut:
        logger.warning(
            '%d questions lose options, as in LLaVA, because one reads as an empty cell ("None", "N/A"); '
            "the first is question %s",
            len(cut),
            cut[0],
        )
    return items


def add_flags(parser: argparse.ArgumentParser) -> None:
    """LLaVA's flags for MMBench."""
    parser.add_argument("--all-rounds", action="store_true", help="ask with every rotation of the options")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the letter alone")
    parser.add_argument("--lang", choices=list(LETTER_PROMPTS), default="en", help="of that request")


MMBENCH_FORMAT = QuestionFormat(read_items, "Answer an MMBench table.", add_flags, max_new_tokens=1024)
