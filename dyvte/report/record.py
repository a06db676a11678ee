"""The result of one evaluation, with all that is needed to judge it and to repeat it, as one JSON file.

python -m dyvte.report.record NAME --data-dir DIR --answers FILE --output FILE --model PATH --method METHOD
    [--variant VARIANT] [--setting KEY=VALUE ...] [--command TEXT] [--scores FILE]
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dyvte import cli, provenance
from dyvte.benchmarks import BENCHMARKS, Benchmark, Score, get_benchmark
from dyvte.benchmarks.benchmark import describe, mean
from dyvte.benchmarks.files import read_answers
from dyvte.decoding.report import PrefillReport, RunInfo
from dyvte.io import read_json, write_json

SCHEMA = 2
NO_EXIT = "none"


@dataclass(frozen=True)
class AnsweredBy:
    """Under which conditions this many answers of a file were generated."""

    run: RunInfo
    answers: int


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Who scored, when and where: nothing of it says how the answers came about."""

    commit: str | None = None
    dirty: bool | None = None
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def now(cls) -> Scoring:
        """By this process."""
        commit, dirty = provenance.git_state()
        return cls(
            commit=commit,
            dirty=dirty,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            versions=provenance.versions(),
            hardware=provenance.hardware(),
        )


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """One benchmark, one model, one method.

    Scores are unrounded; costs are means per sample.

    Attributes:
        remarks, skipped: questions over which the official evaluator stumbles; those of them without a part in the
            score.
        exit_layers: samples by exit layer; keys are strings, "none" where no gate fired.
        mean_exit_layer: counts "none" as the number of layers.
        tflops: of one prefill with vision tower, projector and gates.
        decoder_tflops: of the decoder layers and the gates.
        kv_bytes: keys and values held after prefill; None where the answers were written without it.
        seconds: wall time of generation.
        batch_check: of how many questions, asked in a batch and alone, how many answers differ.
        answered: the distinct conditions under which the answers were generated, most answers first: several where a
            file was resumed elsewhere or merged of shards. Without the answers that do not say, and so empty for
            records of schema 1.
        scoring: of this record, possibly long after the answers and on another machine.
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
        """Of the code that generated the answers, with blanks between where there are several; where it is unknown,
        of the code that scored.
        """
        known = dict.fromkeys(by.run.commit for by in self.answered if by.run.commit)
        return " ".join(known) or self.scoring.commit

    def write(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> ResultRecord:
        """Read what ``write`` wrote, also of schema 1, in which all provenance was that of scoring.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no record, or one of another schema.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.get("schema") not in (1, SCHEMA):
            raise ValueError(
                f"{path} is not a result record of schema {SCHEMA}; write it again with this version."
            )
        if content["schema"] == 1:
            old = {name.name: content.pop(name.name) for name in fields(Scoring) if name.name in content}
            content |= {"schema": SCHEMA, "scoring": old}
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if wrong := (needed - content.keys()) | (content.keys() - known):
            raise ValueError(f"{path} lacks or has too much: {sorted(wrong)}.")
        try:
            content["scoring"] = Scoring(**content["scoring"])
            content["answered"] = tuple(
                AnsweredBy(RunInfo(**by["run"]), by["answers"]) for by in content.get("answered", ())
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} has a broken provenance ({error}).") from None
        return cls(**content)


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


def add_records(parser: argparse.ArgumentParser) -> None:
    """The argument that names records on the command lines of tables and figures."""
    parser.add_argument(
        "records", nargs="+", type=Path, help="record files, or folders that hold record.json files"
    )


def reports_of(answers: Sequence[Mapping[str, Any]], file: str | Path) -> list[PrefillReport]:
    """The report of each answer of a file.

    Raises:
        ValueError: an answer was written without measurements.
    """
    return [
        PrefillReport.from_dict(answer.get("metadata"), f"{file}, metadata of {answer.get('question_id')}")
        for answer in answers
    ]


def measurements(reports: Sequence[PrefillReport], texts: Sequence[str]) -> dict[str, Any]:
    """The record's fields that come from the reports of all answers, given the answers' ``texts``.

    Raises:
        ValueError: a report has no seconds.
    """
    num_layers = reports[0].num_layers
    exits = [num_layers if report.exit_layer is None else report.exit_layer for report in reports]
    seconds = [report.seconds for report in reports if report.seconds is not None]
    held = [report.kv_bytes for report in reports if report.kv_bytes is not None]
    alone = [
        (text, r.batch1_text) for text, r in zip(texts, reports, strict=True) if r.batch1_text is not None
    ]
    if len(seconds) < len(reports):
        raise ValueError("some answers have no seconds in their metadata; answer the questions again")
    return {
        "num_layers": num_layers,
        "exit_layers": {
            NO_EXIT if layer == num_layers else str(layer): count
            for layer, count in sorted(Counter(exits).items())
        },
        "mean_exit_layer": mean([float(layer) for layer in exits]),
        **{
            name: mean([float(getattr(report, name)) for report in reports])
            for name in ("tflops", "decoder_tflops", "prompt_tokens", "visual_tokens")
        },
        "kv_bytes": mean([float(size) for size in held]) if len(held) == len(reports) else None,
        "seconds": mean(seconds),
        "batch_check": {"checked": len(alone), "differ": sum(batched != text for batched, text in alone)},
        "answered": answered_by([report.run for report in reports]),
    }


def answered_by(runs: Sequence[RunInfo | None]) -> tuple[AnsweredBy, ...]:
    """The distinct ones with their counts, the most frequent first."""
    # as text: a run has no hash, because its versions are a mapping
    counts = Counter(json.dumps(asdict(run), sort_keys=True) for run in runs if run is not None)
    return tuple(AnsweredBy(RunInfo(**json.loads(text)), count) for text, count in counts.most_common())


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
    """Score an answers file and put the outcome, its measurements and its provenance together.

    Settings without a value are left out. ``variant`` is one of the benchmark's; empty for its default.

    Raises:
        FileNotFoundError: the answers or the benchmark's files are missing.
        ValueError: the answers are broken, incomplete, or without measurements.
    """
    score = benchmark.score(data_dir, answers_file, benchmark.variant(variant))
    answers = read_answers(answers_file)
    questions = data_dir / benchmark.question_file
    data_files = {*benchmark.ground_truth(data_dir), *([questions] if questions.is_file() else [])}
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
        **measurements(reports_of(answers, answers_file), [answer["text"] for answer in answers]),
        scoring=Scoring.now(),
        command=command.strip(),
        data_sha256=provenance.sha256_of(data_files, data_dir),
    )
    return record, score


def write_scores(score: Score, path: str | Path) -> None:
    """Write the score of each question as JSON."""
    write_json(path, [asdict(question) for question in score.questions], indent=None)


def score_answers(options: argparse.Namespace) -> None:
    """Write the record, and the scores where asked for, and print a summary."""
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
        f"{benchmark.title}, {options.method}: {record.score:.2f} "
        f"({record.metric}, {record.num_samples} questions), "
        f"mean exit layer {record.mean_exit_layer:.2f} of {record.num_layers}, "
        f"{record.decoder_tflops:.3g} decoder TFLOPs, {record.seconds:.4f} s per sample"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.record", description="Score answers; keep all facts."
    )
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--data-dir", type=Path, required=True, help="the benchmark's folder")
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="record to write")
    parser.add_argument("--scores", type=Path, help="write the score of each question here (JSON)")
    parser.add_argument(
        "--variant", default="", help="official variant to follow; default: the benchmark's first"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--setting", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--command", default="")
    cli.run(parser, score_answers, argv)


if __name__ == "__main__":
    main()
