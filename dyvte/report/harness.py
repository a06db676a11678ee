"""Records of a run in lmms-eval: its scores, with the costs that :mod:`dyvte.plugins.lmms` noted beside it.

python -m dyvte.report.harness RESULTS... [--reports PREFIX] [--metric NAME ...]

RESULTS are files ``*_results.json`` that ``lmms_eval --output_path`` wrote, or folders that hold some. Each task gets
a ``record.json`` in a folder of its own beside them, where :mod:`dyvte.report.table` and the other readers find it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyvte import cli
from dyvte.benchmarks.files import misfit, numbered_lines
from dyvte.io import read_json_object
from dyvte.report.record import ResultRecord, Scoring, measurements, reports_of
from dyvte.report.titles import LMMS, lmms_factor

RESULTS = {
    "results": {str: {str: object}},
    "configs": {str: {str: object}},
    "n-samples": {str: {"original": int}},
    "config": {"model_args": str | dict, "batch_size": object},
}
"""What is read of lmms-eval's results file (0.7.3)."""
RUN = {"model": str, "method": str, "settings": {str: str}, "created": str}
ANSWER = {"task": str, "split": str, "doc_id": object, "text": str, "metadata": object}
CONFIG = ("batch_size", "limit", "offset", "gen_kwargs", "num_fewshot")
"""What of lmms-eval's configuration goes to the settings of a record, where it has a value."""


@dataclass(frozen=True)
class Side:
    """The side files of one run, by all its processes.

    Attributes:
        run: see :data:`RUN`.
        answers: task -> one answer (:data:`ANSWER`) for each document; lmms-eval repeats some to fill up processes.
    """

    run: Mapping[str, Any]
    answers: Mapping[str, Sequence[Mapping[str, Any]]]


def read_side(prefix: str | Path) -> Side:
    """Read ``PREFIX.<rank>.jsonl``.

    Raises:
        FileNotFoundError, ValueError: there is none, or a line is not what :mod:`dyvte.plugins.lmms` writes.
    """
    prefix = Path(prefix).expanduser()
    files = sorted(prefix.parent.glob(f"{prefix.name}.*.jsonl"))
    if not files:
        raise FileNotFoundError(f"there is no {prefix}.*.jsonl: name the prefix of the run with --reports")
    runs: list[dict[str, Any]] = []
    found: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for file in files:
        for number, line in numbered_lines(file):
            first = number == 1
            if wrong := misfit(line, RUN if first else ANSWER, f"{file}, line {number}"):
                raise ValueError(f"{wrong}; run lmms-eval again with this version")
            if first:
                runs.append(line)
            else:
                found.setdefault(line["task"], {}).setdefault((line["split"], str(line["doc_id"])), line)
    if not runs or any(run | {"created": ""} != runs[0] | {"created": ""} for run in runs):
        raise ValueError(
            f"{prefix}.*.jsonl are {'of several runs' if runs else 'empty'}: name one run's with --reports"
        )
    return Side(runs[0], {task: list(answers.values()) for task, answers in found.items()})


def records_of(
    path: Path, reports: str | None = None, metrics: Iterable[str] = ()
) -> dict[str, ResultRecord]:
    """The record of each task of a results file.

    Args:
        reports: prefix of the side files; by default the one that the run was given.
        metrics: the score of a task that has one of these is that; else the first metric of the task's list.

    Raises:
        FileNotFoundError, ValueError: a file is missing or is not of this kind, or reports and results do not match.
    """
    content = read_json_object(path)
    if trouble := misfit(content, RESULTS, path):
        raise ValueError(f"{trouble}; it is no results file of lmms-eval")
    given = content["config"]["model_args"]
    if isinstance(given, str):  # a program that calls lmms-eval may give a dict
        given = dict(entry.split("=", 1) for entry in given.split(",") if "=" in entry)
    reports = reports or given.get("reports")
    if not reports:
        raise ValueError(f"{path}: the run wrote no reports; give reports=PREFIX in its --model_args")
    side = read_side(reports)
    return {task: _record(path, content, task, side, list(metrics)) for task in content["n-samples"]}


def _record(
    path: Path, content: Mapping[str, Any], task: str, side: Side, metrics: Sequence[str]
) -> ResultRecord:
    place, config, run_config = f"{path}, task {task}", content["configs"].get(task, {}), content["config"]
    answers, questions = side.answers.get(task, ()), content["n-samples"][task]["original"]
    partial = run_config.get("limit") is not None or run_config.get("offset")
    if not answers or (len(answers) > questions if partial else len(answers) != questions):
        raise ValueError(
            f"{place}: {len(answers)} reports for {questions} questions; the reports are of another run"
        )
    parts = {
        name: float(value)
        for name, value in content["results"].get(task, {}).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "_stderr" not in name
    }
    wanted = [*metrics, *(entry["metric"] for entry in config.get("metric_list") or ())]
    scored = [name for metric in wanted for name in parts if name.partition(",")[0] == metric]
    if not scored:
        raise ValueError(f"{place}: it has no score; there are {', '.join(parts) or 'none'} (--metric)")
    metric, _, scored_with = scored[0].partition(",")
    benchmark = f"{LMMS}{task}/{metric}"
    factor = lmms_factor(benchmark)
    lines = [{"question_id": answer["doc_id"], **answer} for answer in answers]
    measured = measurements(reports_of(lines, f"reports of task {task}"), [line["text"] for line in lines])
    versions = {(by.run.versions or {}).get("lmms_eval", "of unknown version") for by in measured["answered"]}
    templates = dict.fromkeys(by.run.template for by in measured["answered"] if by.run.template)
    settings = {
        **side.run["settings"],
        **{name: str(run_config[name]) for name in CONFIG if run_config.get(name)},
        "conv_mode": ", ".join(templates),
        "harness": f"lmms-eval {', '.join(sorted(versions))}",
        "harness_class": str(run_config.get("model_backend", "")).rpartition(".")[2],
        "task_version": _version(config.get("metadata")),
    }
    documents = content.get("task_hashes", {}).get(task)
    return ResultRecord(
        benchmark=benchmark,
        model=side.run["model"],
        method=side.run["method"],
        settings={name: value for name, value in settings.items() if value},
        metric=f"{metric}, {'in percent' if factor else 'as lmms-eval gives it'}",
        variant="" if scored_with == "none" else scored_with,
        score=parts[scored[0]] * (factor or 1),
        parts=parts,
        remarks=0,
        skipped=0,
        num_samples=len(lines),
        **measured,
        scoring=Scoring(created=side.run["created"], versions={"lmms_eval": ", ".join(sorted(versions))}),
        command=f"python -m lmms_eval --model {run_config.get('model', 'dyvte')} --tasks {task} "
        f"--batch_size {run_config['batch_size']} --model_args {run_config['model_args']}",
        data_sha256={"documents": documents} if documents else {},
    )


def _version(metadata: Any) -> str:
    """Of a task, whose ``metadata`` is an object, or a list of some."""
    entries = metadata if isinstance(metadata, list) else [metadata]
    return ", ".join(
        str(entry["version"]) for entry in entries if isinstance(entry, Mapping) and "version" in entry
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.harness", description="Records from results of lmms-eval."
    )
    parser.add_argument("results", nargs="+", type=Path, help="*_results.json, or folders that hold some")
    parser.add_argument("--reports", help="prefix of the side files; default: as the run was given it")
    parser.add_argument("--metric", nargs="+", default=[], help="the metric that is a task's score")

    def action(options: argparse.Namespace) -> None:
        for place in options.results:
            files = sorted(place.rglob("*_results.json")) if place.is_dir() else [place]
            if not files:
                raise FileNotFoundError(
                    f"{place} holds no *_results.json: run lmms-eval with --output_path {place}"
                )
            for path in files:
                for task, record in records_of(path, options.reports, options.metric).items():
                    file = path.parent / f"{path.name.removesuffix('_results.json')}_{task}" / "record.json"
                    record.write(file)
                    print(f"{file}: {record.score:.2f} ({record.metric}, {record.num_samples} questions)")

    cli.run(parser, action, argv)


if __name__ == "__main__":
    main()
