"""The result of one evaluation, with all that is needed to judge it and to repeat it, as one JSON file.

python -m dyvte.report.record NAME --data-dir DIR --answers FILE --output FILE --model PATH --method METHOD
    [--variant VARIANT] [--setting KEY=VALUE ...] [--command TEXT] [--scores FILE]

``scripts/v1_5/eval/common.sh`` runs it after answering. All tables, figures and pages are made from records: a field
may be added with a default; renaming or removing one needs a new ``SCHEMA``, and old records must stay readable.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dyvte import cli, provenance
from dyvte.benchmarks import BENCHMARKS, Benchmark, Score, get_benchmark
from dyvte.benchmarks.benchmark import describe, mean
from dyvte.benchmarks.files import read_answers
from dyvte.decoding.report import PrefillReport, RunInfo
from dyvte.io import read_json, write_json

SCHEMA = 2
NO_EXIT = "none"  # key of ResultRecord.exit_layers for samples in which no gate fired


@dataclass(frozen=True)
class AnsweredBy:
    """The conditions under which this many ``answers`` of a file were generated."""

    run: RunInfo
    answers: int


@dataclass(frozen=True)
class Scoring:
    """Provenance of scoring alone; :class:`AnsweredBy` is that of the answers."""

    commit: str | None = None
    dirty: bool | None = None
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Scoring:
        """With this code, now and on this machine."""
        created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        return cls(*provenance.git_state(), created, provenance.versions(), provenance.hardware())


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """One benchmark, one model, one method.

    Scores are unrounded; costs are means per sample.

    Attributes:
        settings: of the method and the prompts, as strings.
        variant: scoring variant of the benchmark; empty where it has none.
        remarks, skipped: number of :attr:`Score.remarks`, and of those that left something out of the score.
        exit_layers: number of samples by exit layer, as a string, or ``NO_EXIT``.
        mean_exit_layer: counts a sample without exit as the number of layers.
        tflops: of one prefill with vision tower, projector and gates.
        decoder_tflops: of the decoder layers and the gates.
        kv_bytes: keys and values held after prefill; None where the answers were written without it.
        seconds: wall time of generation.
        batch_check: "checked": questions asked both in a batch and alone; "differ": those of other answers.
        answered: the distinct conditions under which the answers were generated, most answers first: several where a
            file was resumed elsewhere or merged from shards. Answers without conditions, such as all of schema 1, are
            not counted.
        scoring: possibly long after the answers and on another machine.
    """

    benchmark: str
    model: str
    method: str
    settings: dict[str, str]
    metric: str
    variant: str
    score: float
    parts: dict[str, float]
    remarks: int
    skipped: int
    num_samples: int
    num_layers: int
    exit_layers: dict[str, int]
    mean_exit_layer: float
    tflops: float
    decoder_tflops: float
    kv_bytes: float | None = None
    seconds: float
    prompt_tokens: float
    visual_tokens: float
    batch_check: dict[str, int]
    answered: tuple[AnsweredBy, ...] = ()
    scoring: Scoring
    command: str
    data_sha256: dict[str, str]
    schema: int = SCHEMA

    @property
    def commit(self) -> str | None:
        """The commits of the code that generated the answers, separated by blanks; if unknown, that of scoring."""
        known = dict.fromkeys(by.run.commit for by in self.answered if by.run.commit)
        return " ".join(known) or self.scoring.commit

    def write(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> ResultRecord:
        """Read a record, also of schema 1, which has the provenance of scoring alone.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or the file is no record, or one of another schema.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.get("schema") not in (1, SCHEMA):
            reason = f"is not a result record of schema {SCHEMA}; write it again with this version"
            raise ValueError(f"{path} {reason}.")
        if content["schema"] == 1:
            names = [name.name for name in fields(Scoring) if name.name in content]
            content |= {"schema": SCHEMA, "scoring": {name: content.pop(name) for name in names}}
        try:
            answered = [(RunInfo(**by["run"]), by["answers"]) for by in content.pop("answered", ())]
            scoring = Scoring(**content.pop("scoring"))
            return cls(**content, scoring=scoring, answered=tuple(AnsweredBy(*by) for by in answered))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a whole result record ({error}).") from None


def find_records(paths: Iterable[str | Path]) -> list[Path]:
    """Record files; a folder stands for every ``record.json`` below it.

    Raises:
        FileNotFoundError: a file is missing, or a folder holds no record.
    """
    found = []
    for path in map(Path, paths):
        files = sorted(path.rglob("record.json")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(
                f"{path} holds no record.json; run scripts/v1_5/eval/*.sh with OUT below it."
            )
        found.extend(files)
    return found


def read_records(paths: Iterable[str | Path]) -> list[ResultRecord]:
    """Read record files as ``find_records`` finds them; raises what it and ``ResultRecord.read`` raise."""
    return [ResultRecord.read(path) for path in find_records(paths)]


def records_parser(module: str, description: str, **choices: Iterable[str]) -> argparse.ArgumentParser:
    """The parser of a command that reads records, with ``choices`` as positional arguments before them."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    for name, values in choices.items():
        parser.add_argument(name, choices=list(values))
    records = "record files, or folders that hold record.json files"
    parser.add_argument("records", nargs="+", type=Path, help=records)
    return parser


def reports_of(answers: Sequence[Mapping[str, Any]], file: str | Path) -> list[PrefillReport]:
    """The report of each answer of a file; ValueError when an answer was written without measurements."""
    place = f"{file}, metadata of"
    return [PrefillReport.from_dict(a.get("metadata"), f"{place} {a.get('question_id')}") for a in answers]


def measurements(reports: Sequence[PrefillReport], texts: Sequence[str]) -> dict[str, Any]:
    """The fields of :class:`ResultRecord` that come from reports and texts; ValueError without seconds."""
    if any(report.seconds is None for report in reports):
        raise ValueError("some answers have no seconds in their metadata; answer the questions again")
    num_layers = reports[0].num_layers
    exits = [num_layers if report.exit_layer is None else report.exit_layer for report in reports]
    counts = sorted(Counter(exits).items())
    batched = zip(texts, (report.batch1_text for report in reports), strict=True)
    differ = [text != alone for text, alone in batched if alone is not None]
    # counted as JSON: a RunInfo has no hash, because its versions are a mapping
    runs = Counter(json.dumps(asdict(report.run), sort_keys=True) for report in reports if report.run)
    means = ["tflops", "decoder_tflops", "prompt_tokens", "visual_tokens", "seconds"]
    means += ["kv_bytes"] if all(report.kv_bytes is not None for report in reports) else []
    return {
        "kv_bytes": None,
        "num_layers": num_layers,
        "exit_layers": {NO_EXIT if layer == num_layers else str(layer): count for layer, count in counts},
        "mean_exit_layer": mean([float(layer) for layer in exits]),
        **{name: mean([float(getattr(report, name)) for report in reports]) for name in means},
        "batch_check": {"checked": len(differ), "differ": sum(differ)},
        "answered": tuple(AnsweredBy(RunInfo(**json.loads(run)), count) for run, count in runs.most_common()),
    }


def make_record(
    benchmark: Benchmark,
    data_dir: Path,
    answers_file: Path,
    *,
    model: str,
    method: str,
    settings: dict[str, str],
    command: str,
    variant: str = "",
) -> tuple[ResultRecord, Score]:
    """Score an answers file; the record of score, measurements and provenance, and the score.

    Settings without a value are left out. ``variant`` is a scoring variant of the benchmark; empty for its default.

    Raises:
        FileNotFoundError, ValueError: a file is missing; answers are broken, incomplete, or without measurements.
    """
    score = benchmark.score(data_dir, answers_file, benchmark.variant(variant))
    answers = read_answers(answers_file)
    questions = data_dir / benchmark.question_file
    data_files = {*benchmark.ground_truth(data_dir), *([questions] if questions.is_file() else [])}
    measured = measurements(reports_of(answers, answers_file), [answer["text"] for answer in answers])
    # a family with a template of its own ignores the scripts' conv_mode
    templates = dict.fromkeys(by.run.template for by in measured["answered"] if by.run.template)
    if templates:
        settings = {**settings, "conv_mode": ", ".join(templates)}
    record = ResultRecord(
        benchmark=benchmark.name,
        model=model,
        method=method,
        settings={key: value for key, value in settings.items() if value},
        metric=score.metric,
        variant=score.variant,
        score=score.value,
        parts=score.parts,
        remarks=len(score.remarks),
        skipped=score.skipped,
        num_samples=len(answers),
        **measured,
        scoring=Scoring.here(),
        command=command.strip(),
        data_sha256=provenance.sha256_of(data_files, data_dir),
    )
    return record, score


def write_scores(score: Score, path: Path) -> None:
    write_json(path, [asdict(question) for question in score.questions], indent=None)


def score_answers(options: argparse.Namespace) -> None:
    benchmark = get_benchmark(options.name)
    record, score = make_record(
        benchmark,
        options.data_dir,
        options.answers,
        model=options.model,
        method=options.method,
        settings=dict(entry.split("=", 1) for entry in options.setting),
        command=options.command,
        variant=options.variant,
    )
    record.write(options.output)
    if options.scores:
        write_scores(score, options.scores)
    if score.remarks:
        print(describe(benchmark.title, score))
    if record.batch_check["differ"]:
        print("{differ} of {checked} answers differ from those of batch size 1".format(**record.batch_check))
    if len(record.answered) > 1:
        print(f"The answers were generated under {len(record.answered)} different conditions; see the record")
    print(
        f"{benchmark.title}, {options.method}: {record.score:.2f} ({record.metric}, {record.num_samples} questions), "
        f"mean exit layer {record.mean_exit_layer:.2f} of {record.num_layers}, "
        f"{record.decoder_tflops:.3g} decoder TFLOPs, {record.seconds:.4f} s per sample"
    )


def main(argv: Sequence[str] | None = None) -> None:
    prog, description = "python -m dyvte.report.record", "Score answers; keep all facts."
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add = parser.add_argument
    add("name", choices=sorted(BENCHMARKS))
    add("--data-dir", type=Path, required=True, help="the benchmark's folder")
    add("--answers", type=Path, required=True)
    add("--output", type=Path, required=True, help="record to write")
    add("--scores", type=Path, help="write the score of each question here (JSON)")
    add("--variant", default="", help="scoring variant; default: the benchmark's first")
    add("--model", required=True)
    add("--method", required=True)
    add("--setting", nargs="*", default=[], metavar="KEY=VALUE")
    add("--command", default="")
    cli.run(parser, score_answers, argv)


if __name__ == "__main__":
    main()
