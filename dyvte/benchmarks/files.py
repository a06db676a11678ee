"""Readers of LLaVA's JSON lines (questions, answers) and of annotation files, both checked against a :data:`Shape`.

Called by all scorers of this package and by ``scripts/convert_*``. A broken file must raise ValueError with file and
line or field; a single unusable answer becomes a remark instead.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from itertools import starmap
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from dyvte.benchmarks.benchmark import Remark
from dyvte.io import parse_json, read_json, read_text

Shape = Any
"""What JSON must be: a type or union of types; ``[shape]``: a list; ``{str: shape}``: an object with any names;
``{"name": shape, "other?": shape}``: an object with these names (and any others), of which ``other`` may be missing.
"""
ID = int | float | str
ANSWER = {"question_id": object, "text": object}
_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "a boolean",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


def misfit(value: Any, shape: Shape, place: Any, field: str = "") -> str:
    """How JSON violates a shape, such as ``PLACE: questions[3].answer is a list, not a string``; else empty."""
    where = f"{place}: {field}" if field else f"{place}"
    kind = type(shape) if isinstance(shape, (list, dict)) else shape
    if not isinstance(value, kind):
        kinds = get_args(kind) or (kind,)
        wanted = " or ".join(_NAMES[one] for one in kinds if one is not int or float not in kinds)
        return f"{where} is {_NAMES[type(value)]}, not {wanted}"
    parts: list[tuple[Any, Shape, Any, str]] = []
    if isinstance(shape, list):
        parts = [(item, shape[0], place, f"{field}[{number}]") for number, item in enumerate(value)]
    elif isinstance(shape, dict) and str in shape:
        parts = [(item, shape[str], place, f"{field}[{name!r}]") for name, item in value.items()]
    elif isinstance(shape, dict):
        if missing := [name for name in shape if name not in value and not name.endswith("?")]:
            return f"{where} lacks {', '.join(missing)}"
        named = [(name.removesuffix("?"), part) for name, part in shape.items()]
        stem = f"{field}." if field else ""
        parts = [(value[name], part, place, stem + name) for name, part in named if name in value]
    return next(filter(None, starmap(misfit, parts)), "")


def read_annotations(path: Path, shape: Shape, advice: str) -> Any:
    """The content of a JSON file, which must have this shape and not be empty.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no JSON, empty, or of another shape; the
            message names file and field, and ends with ``advice``.
    """
    content = read_json(path)
    if wrong := misfit(content, shape, path) or ("" if content else f"{path} is empty"):
        raise ValueError(f"{wrong}; {advice}.")
    return content


def numbered_lines(path: str | Path, shape: Shape = dict) -> list[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not empty; the objects must have this shape.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not JSON, or of another shape; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; docs/evaluation.md says where each file comes from.")
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, place := f"{path}, line {number}")
        if wrong := misfit(row, shape, place):
            raise ValueError(f"{wrong}.")
        rows.append((number, row))
    return rows


def read_json_lines(path: str | Path, shape: Shape = dict) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; see ``numbered_lines``."""
    return [row for _, row in numbered_lines(path, shape)]


def check_known(path: Path, known: Container[Any], complaint: str) -> list[int | str]:
    """The question ids of a question file, all of which must be in ``known``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is broken, or its question is not known, with file, line, id and ``complaint``.
    """
    rows = numbered_lines(path, {"question_id": ID})
    for number, row in rows:
        if row["question_id"] not in known:
            raise ValueError(f"{path}, line {number}: question {row['question_id']!r} {complaint}")
    return [row["question_id"] for _, row in rows]


def read_answers_and_remarks(path: str | Path, *more: str) -> tuple[list[dict[str, Any]], list[Remark]]:
    """The answers of a file in LLaVA's format, with ``question_id``, ``text`` and the fields ``more``. A ``text``
    that is no string becomes "", with a remark: official evaluators crash over it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or a line is broken or has no usable question_id.
    """
    answers = read_json_lines(path, {"question_id": ID, **dict.fromkeys((*more, "text"), object)})
    if not answers:
        raise ValueError(f"{path} holds no answers; run the evaluation again.")
    remarks = []
    for answer in answers:
        if not isinstance(answer["text"], str):
            what = f"text is {_NAMES[type(answer['text'])]}, not a string: taken as an empty answer"
            remarks.append(Remark(answer["question_id"], what))
            answer["text"] = ""
    return answers, remarks


def read_answers(path: str | Path) -> list[dict[str, Any]]:
    """The answers alone; see ``read_answers_and_remarks``."""
    return read_answers_and_remarks(path)[0]


def last_answers(
    answers: Iterable[dict[str, Any]], known: Collection[Any]
) -> tuple[dict[Any, dict[str, Any]], list[Remark]]:
    """The last answer to each known question, and a remark on each other answer."""
    found: dict[Any, dict[str, Any]] = {}
    remarks = []
    known_as_text = set(map(str, known))
    for answer in answers:
        name = answer["question_id"]
        if name in known:
            if name in found:
                remarks.append(Remark(name, "answered again: only the last answer counts", skipped=True))
            found[name] = answer
        else:
            types = "a string; ids are numbers" if isinstance(name, str) else "a number; ids are strings"
            hint = f" ({types})" if str(name) in known_as_text else ""
            remarks.append(Remark(name, f"no such question{hint}: left out", skipped=True))
    return found, remarks


def split_error(answers_file: str | Path, annotations: str | Path) -> ValueError:
    """The error to raise for answers none of which belongs to an annotated question."""
    return ValueError(
        f"No answer in {answers_file} belongs to a question of {annotations}; is it of another split or benchmark?"
    )
