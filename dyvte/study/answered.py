"""Score and cost of every question under every method, from the files that evaluations write beside records.

Called by :mod:`dyvte.study.dynamic`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dyvte.benchmarks.files import read_answers
from dyvte.io import read_json
from dyvte.report.record import ResultRecord, find_records, reports_of
from dyvte.report.samples import MERGED, SCORES, Key, keyed
from dyvte.report.titles import BASELINE, label_of
from dyvte.study.oracle import OracleStudy

ORACLE, EARLIEST = "Oracle exit", "Earliest exit that keeps the answer"


@dataclass(frozen=True, eq=False)
class Answered:
    """One method on one benchmark.

    Attributes:
        label: the method as tables show it.
        method: its name in records; "oracle" for the oracles.
        keys: the questions with an image that have a score, n of them, their ids as text.
        scores: (n,) in percent.
        costs: (n,) TFLOPs of the whole prefill.
        exit_layer: of a fixed exit.
    """

    label: str
    method: str
    keys: tuple[Key, ...]
    scores: NDArray
    costs: NDArray
    exit_layer: int | None = None


def read_answered(path: Path, record: ResultRecord) -> Answered:
    """A record with the files beside it, ``merge.jsonl`` and ``scores.json``.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: they do not belong together.
    """
    scores_file, answers_file = path.with_name(SCORES), path.with_name(MERGED)
    if not scores_file.is_file():
        raise FileNotFoundError(
            f"{scores_file} is missing: start the evaluation again, it keeps its answers and writes the scores"
        )
    scored, answers = read_json(scores_file), read_answers(answers_file)
    of_scores, of_answers = (keyed(str(row["question_id"]) for row in rows) for rows in (scored, answers))
    scores = dict(zip(of_scores, [row["score"] for row in scored], strict=True))
    reports = dict(zip(of_answers, reports_of(answers, answers_file), strict=True))
    keys = tuple(sorted(key for key in scores if key in reports and reports[key].visual_tokens))
    if not keys:
        raise ValueError(f"{scores_file}: none of its questions has an answer with an image in merge.jsonl")
    in_percent = np.array([100.0 * scores[key] for key in keys])
    costs = np.array([reports[key].tflops for key in keys])
    exit_layer = int(record.settings["exit_layer"]) if record.method == "fixed" else None
    return Answered(label_of(record), record.method, keys, in_percent, costs, exit_layer)


def read_all(paths: Sequence[Path], oracles: Sequence[Path] = ()) -> tuple[str, dict[str, list[Answered]]]:
    """The model, and benchmark -> its methods, from record files or their folders and studies of the oracle exit.

    Raises:
        FileNotFoundError, ValueError: files are missing; they are of several models, twice of one method, or of
            different questions of one benchmark; or something lacks for an oracle's cost.
    """
    found: dict[str, list[Answered]] = {}
    records = {path: ResultRecord.read(path) for path in find_records(paths)}
    for path, record in records.items():
        answered, others = read_answered(path, record), found.setdefault(record.benchmark, [])
        if answered.label in [other.label for other in others]:
            raise ValueError(f"{path} is the second record of {answered.label!r} on {record.benchmark}")
        if others and others[0].keys != answered.keys:
            raise ValueError(
                f"{path} is of other questions than {others[0].label!r}: evaluate all on the same"
            )
        others.append(answered)
    models = {record.model for record in records.values()}
    if len(models) > 1:
        raise ValueError(f"a comparison is of one model; these records are of {', '.join(sorted(models))}")
    (model,) = models
    depth = next(iter(records.values())).num_layers
    for path in oracles:
        study = OracleStudy.read(path)
        if study.manifest["model"] != model:
            raise ValueError(f"{path} is of {study.manifest['model']}, the records of {model}")
        if (name := study.manifest["benchmark"]) in found:
            found[name] += oracle_exits(study, fixed_exits(name, found[name]), depth)
    return model, found


def fixed_exits(name: str, methods: Iterable[Answered]) -> list[Answered]:
    """Every fixed exit of a benchmark, by layer, and the baseline behind them.

    Raises:
        ValueError: there are none, or there is no baseline.
    """
    fixed = {method.exit_layer: method for method in methods if method.exit_layer is not None}
    baseline = [method for method in methods if method.method == BASELINE]
    if not fixed or not baseline:
        raise ValueError(
            f"{name} lacks the baseline or the fixed exits: run METHOD=none scripts/v1_5/eval/{name}.sh and "
            f"python -m dyvte.study.fixed_exits {name}"
        )
    return [fixed[layer] for layer in sorted(fixed)] + baseline


def oracle_exits(study: OracleStudy, fixed: Sequence[Answered], depth: int) -> list[Answered]:
    """The baseline's answers at the cost of each question's own exit, under two rules.

    Both keep the answer of every question. The oracle exit is the first layer from which every label is 1. The
    earliest exit asks less: that this one changes no token of the answer.

    Args:
        fixed: every fixed exit of the benchmark, and the baseline.
        depth: the model's number of layers.

    Raises:
        ValueError: a fixed exit layer or a question is missing.
    """
    if len(fixed) - 1 != depth:
        raise ValueError("the oracle's cost needs every fixed exit layer: run fixed_exits without --layers")
    keys, costs = fixed[-1].keys, np.stack([method.costs for method in fixed], 1)
    exits = []
    for label, layers in ((ORACLE, study.exit_layers), (EARLIEST, study.earliest_exits)):
        layer_of = dict(zip(keyed(study.question_id.tolist()), layers.tolist(), strict=True))
        if missing := [key for key in keys if key not in layer_of]:
            raise ValueError(
                f"the oracle study lacks {len(missing)} of the questions: run it without --limit"
            )
        chosen = costs[np.arange(len(keys)), [layer_of[key] for key in keys]]
        exits.append(Answered(label, "oracle", keys, fixed[-1].scores, chosen))
    return exits
