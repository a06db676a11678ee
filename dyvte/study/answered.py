"""Score and cost of every question under every method, from the files that evaluations write beside records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyvte.benchmarks.files import read_answers
from dyvte.io import read_json
from dyvte.report.record import ResultRecord, find_records, reports_of
from dyvte.report.titles import label_of
from dyvte.study.files import read_study
from dyvte.study.oracle import STUDY, OracleStudy

ORACLE, EARLIEST = "Oracle exit", "Earliest exit that keeps the answer"
Key = tuple[str, int]
"""A question's id, and how many answers with this id came before (MME asks twice about an image)."""


@dataclass(frozen=True, eq=False)
class Answered:
    """One method on one benchmark.

    Attributes:
        record: of the evaluation.
        keys: the questions with an image that have a score, n of them.
        scores: (n,) in percent.
        costs: (n,) TFLOPs of the whole prefill.
    """

    record: ResultRecord
    keys: tuple[Key, ...]
    scores: NDArray
    costs: NDArray

    @property
    def label(self) -> str:
        """The method as tables show it."""
        return label_of(self.record)


def read_answered(path: Path) -> Answered:
    """Read a record and the files beside it, ``merge.jsonl`` and ``scores.json``.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: they do not belong together.
    """
    record, scores_file = ResultRecord.read(path), path.with_name("scores.json")
    if not scores_file.is_file():
        raise FileNotFoundError(
            f"{scores_file} is missing: start the evaluation again, it keeps its answers and writes the scores"
        )
    scores = _keyed((str(row["question_id"]), row["score"]) for row in read_json(scores_file))
    answers_file = path.with_name("merge.jsonl")
    answers = read_answers(answers_file)
    names = [str(answer["question_id"]) for answer in answers]
    reports = _keyed(zip(names, reports_of(answers, answers_file), strict=True))
    keys = tuple(sorted(key for key in scores if key in reports and reports[key].visual_tokens))
    if not keys:
        raise ValueError(f"{scores_file}: none of its questions has an answer with an image in merge.jsonl")
    return Answered(
        record,
        keys,
        np.array([100.0 * scores[key] for key in keys]),
        np.array([reports[key].tflops for key in keys]),
    )


def _keyed(pairs: Iterable[tuple[str, Any]]) -> dict[Key, Any]:
    seen: Counter[str] = Counter()
    found = {}
    for name, value in pairs:
        found[name, seen[name]] = value
        seen[name] += 1
    return found


def read_all(paths: Sequence[Path]) -> dict[str, list[Answered]]:
    """Benchmark -> its methods, from record files or their folders.

    Raises:
        FileNotFoundError, ValueError: files are missing; records are of several models, twice of one method, or
            of different questions of one benchmark.
    """
    found: dict[str, list[Answered]] = {}
    for path in find_records(paths):
        answered = read_answered(path)
        others = found.setdefault(answered.record.benchmark, [])
        if answered.label in [other.label for other in others]:
            raise ValueError(
                f"{path} is the second record of {answered.label!r} on {answered.record.benchmark}"
            )
        if others and others[0].keys != answered.keys:
            raise ValueError(
                f"{path} is of other questions than {others[0].label!r}: evaluate all on the same"
            )
        others.append(answered)
    models = {answered.record.model for methods in found.values() for answered in methods}
    if len(models) > 1:
        raise ValueError(f"a comparison is of one model; these records are of {', '.join(sorted(models))}")
    return found


def read_oracle(path: Path) -> tuple[str, str, dict[str, dict[Key, int]]]:
    """Model and benchmark of an oracle study, and the exit layers of its questions under two rules.

    Both keep the answer of every question; the number of layers stands for no exit. The oracle exit is the first
    layer from which every label is 1. The earliest exit asks less: that this one changes no token of the answer.
    """
    manifest, arrays = read_study(path, STUDY)
    study = OracleStudy(manifest, *(arrays[name] for name in ("labels", "kept", "has_exit")))
    keeps = study.kept & study.has_exit[:, None]
    earliest = np.where(keeps.any(1), keeps.argmax(1), keeps.shape[1])
    names = arrays["question_id"].tolist()
    exits = {ORACLE: study.exit_layers, EARLIEST: earliest}
    layers = {label: _keyed(zip(names, found.tolist(), strict=True)) for label, found in exits.items()}
    return manifest["model"], manifest["benchmark"], layers


def oracle_costs(layers: Mapping[Key, int], keys: Sequence[Key], fixed: NDArray) -> NDArray:
    """(n,) cost of each question at its oracle exit.

    Args:
        layers: see ``read_oracle``.
        keys: the n questions.
        fixed: (n, L + 1) costs at every exit layer, the last without exit.

    Raises:
        ValueError: a question has no oracle exit in ``layers``.
    """
    if missing := [key for key in keys if key not in layers]:
        raise ValueError(f"the oracle study lacks {len(missing)} of the questions: run it without --limit")
    return fixed[np.arange(len(keys)), [layers[key] for key in keys]]
