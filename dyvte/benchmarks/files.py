"""Reading what benchmarks are made of: JSON, and LLaVA's JSON lines of questions and answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON.
    """
    path = _existing(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download or write it again.") from None


def read_json_lines(path: str | Path, required: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, each of which must hold the ``required`` keys.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object or lacks a key; the message names file and line.
    """
    path = _existing(path)
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not valid JSON ({error}); was its run cut?"
                ) from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is not a JSON object.")
            missing = [key for key in required if key not in row]
            if missing:
                raise ValueError(f"{path}, line {number} lacks {', '.join(missing)}.")
            rows.append(row)
    return rows


def read_answers(path: str | Path, required: Iterable[str] = ("question_id", "text")) -> list[dict[str, Any]]:
    """The answers that ``llava.eval.model_vqa_loader`` wrote, every ``text`` a string.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or a line is broken.
    """
    answers = read_json_lines(path, required)
    if not answers:
        raise ValueError(f"{path} holds no answers; run the evaluation again.")
    for answer in answers:
        if not isinstance(answer.get("text", ""), str):
            raise ValueError(f"{path}: the answer to question {answer['question_id']} is not a string.")
    return answers


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; docs/evaluation.md says where each file comes from.")
    return path
