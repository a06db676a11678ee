"""LLaVA's JSON lines of questions and answers; ``dyvte.io`` reads JSON."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import Remark
from dyvte.io import read_text


def numbered_lines(path: str | Path, required: Iterable[str] = ()) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON-lines file; each object must hold the ``required`` keys.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object or lacks a key; the message names file and line.
    """
    path, required = Path(path), tuple(required)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; docs/evaluation.md says where each file comes from.")
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not valid JSON ({error}); was its run cut?") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object.")
        missing = [key for key in required if key not in row]
        if missing:
            raise ValueError(f"{path}, line {number} lacks {', '.join(missing)}.")
        rows.append((number, row))
    return rows


def read_json_lines(path: str | Path, required: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; see ``numbered_lines``."""
    return [row for _, row in numbered_lines(path, required)]


def check_known(path: Path, known: Container[Any], complaint: str) -> list[int | str]:
    """The question ids of a question file, all of which must be known.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is broken, or its question is not known, with file, line, id and ``complaint``.
    """
    ids = []
    for number, row in numbered_lines(path, ["question_id"]):
        ids.append(row["question_id"])
        if not isinstance(ids[-1], (int, str)) or ids[-1] not in known:
            raise ValueError(f"{path}, line {number}: question {ids[-1]!r} {complaint}")
    return ids


def read_answers_and_remarks(
    path: str | Path, required: Iterable[str] = ("question_id", "text")
) -> tuple[list[dict[str, Any]], list[Remark]]:
    """The answers of a file in LLaVA's format, every ``text`` a string, and a remark on each that was none.

    Official evaluators crash over such a text; here it becomes the empty answer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or a line is broken or has no usable question_id.
    """
    answers, remarks = [], []
    for number, answer in numbered_lines(path, required):
        question_id = answer["question_id"]
        if isinstance(question_id, (dict, list)) or question_id is None:
            raise ValueError(f"{path}, line {number}: question_id is neither a number nor a string.")
        if not isinstance(answer.get("text", ""), str):
            kind = "null" if answer["text"] is None else f"of type {type(answer['text']).__name__}"
            what = f"text is {kind}, not a string: taken as an empty answer"
            remarks.append(Remark(question_id, what))
            answer = {**answer, "text": ""}
        answers.append(answer)
    if not answers:
        raise ValueError(f"{path} holds no answers; run the evaluation again.")
    return answers, remarks


def read_answers(path: str | Path, required: Iterable[str] = ("question_id", "text")) -> list[dict[str, Any]]:
    """The answers alone; see ``read_answers_and_remarks``."""
    return read_answers_and_remarks(path, required)[0]


def other_split(answers_file: str | Path, annotations: str | Path) -> ValueError:
    """The error for answers none of which belongs to an annotated question."""
    return ValueError(
        f"No answer in {answers_file} belongs to a question of {annotations}; is it of another split or benchmark?"
    )
