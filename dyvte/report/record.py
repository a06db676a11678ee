"""The result of one evaluation, with all that is needed to judge it and to repeat it, as one JSON file.

python -m dyvte.report.record NAME --data-dir DIR --answers FILE --output FILE --model PATH --method METHOD
...
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dyvte.benchmarks import BENCHMARKS, Benchmark, Score, get_benchmark
from dyvte.benchmarks.benchmark import describe, mean
from dyvte.benchmarks.files import read_answers, read_json
from dyvte.provenance import git_state, hardware, sha256_of, versions

SCHEMA = 1
NO_EXIT = "none"


@dataclass(frozen=True, kw_only=True)
class ResultRecord:
    """One benchmark, one model, one method.

    Scores are unrounded; TFLOPs and seconds are means per sample. ``tflops`` counts one prefill with the
    vision tower, the projector and the gates, ``decoder_tflops`` the decoder layers and the gates. ``exit_layers``
    counts samples by exit layer (its keys are strings, "none" where no gate fired); ``mean_exit_layer``
    counts those as the number of layers. ``kv_bytes`` is the mean of keys and values held after prefill; None where
    the answers were written without it. ``seconds`` is the wall time of generation. ``remarks`` counts the
    questions over which the official evaluator stumbles, ``skipped`` those of them without a part in the score.
    ``batch_check`` says of how many questions, asked in a batch and alone, how many answers differ.
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
    commit: str | None
    dirty: bool | None
    command: str
    created: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    data_sha256: dict[str, str]
    schema: int = SCHEMA

    def write(self, path: str | Path) -> None:
        """Write as JSON, making the folder where needed."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> ResultRecord:
        """Read what ``write`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no record, or one of another schema.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(
                f"{path} is not a result record of schema {SCHEMA}; write it again with this version."
            )
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if wrong := (needed - content.keys()) | (content.keys() - known):
            raise ValueError(f"{path} lacks or has too much: {sorted(wrong)}.")
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


def measurements(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The record's fields that come from the answers' ``metadata``.

    Raises:
        ValueError: an answer was written without measurements.
    """
    metadata = [answer.get("metadata") or {} for answer in answers]
    if any("tokens_per_layer" not in entry for entry in metadata):
        raise ValueError(
            "Some answers hold no measurements in metadata; write them with llava.eval.model_vqa_loader."
        )
    num_layers = len(metadata[0]["tokens_per_layer"])
    exits = [entry["exit_layer"] for entry in metadata]
    counts = Counter(exits)
    held: list[Any] = [entry.get("kv_bytes") for entry in metadata]
    return {
        "num_layers": num_layers,
        "exit_layers": {
            NO_EXIT if layer is None else str(layer): counts[layer]
            for layer in sorted(counts, key=lambda layer: num_layers if layer is None else layer)
        },
        "mean_exit_layer": mean([num_layers if layer is None else layer for layer in exits]),
        **{
            name: mean([entry[name] for entry in metadata])
            for name in ("tflops", "decoder_tflops", "seconds", "prompt_tokens", "visual_tokens")
        },
        "kv_bytes": None if None in held else mean(held),
        "batch_check": batch_check(answers),
    }


def batch_check(answers: list[dict[str, Any]]) -> dict[str, int]:
    """Of the questions asked alone as well as in a batch, how many there are and how many answers differ."""
    pairs = [(a["text"], a["metadata"]["batch1_text"]) for a in answers if "batch1_text" in a["metadata"]]
    return {"checked": len(pairs), "differ": sum(batched != alone for batched, alone in pairs)}


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
    commit, dirty = git_state()
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
        **measurements(answers),
        commit=commit,
        dirty=dirty,
        command=command.strip(),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        versions=versions(),
        hardware=hardware(),
        data_sha256=sha256_of(data_files, data_dir),
    )
    return record, score


def write_scores(score: Score, path: str | Path) -> None:
    """Write the score of each question as JSON."""
    scores = [asdict(question) for question in score.questions]
    Path(path).write_text(json.dumps(scores), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
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
    options = parser.parse_args(arguments)

    benchmark = get_benchmark(options.name)
    try:
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
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    if score.remarks:
        print(describe(benchmark.title, score))
    if record.batch_check["differ"]:
        print("{differ} of {checked} answers differ from those of batch size 1".format(**record.batch_check))
    print(
        f"{benchmark.title}, {options.method}: {record.score:.2f} "
        f"({record.metric}, {record.num_samples} questions), "
        f"mean exit layer {record.mean_exit_layer:.2f} of {record.num_layers}, "
        f"{record.decoder_tflops:.3g} decoder TFLOPs, {record.seconds:.4f} s per sample"
    )


if __name__ == "__main__":
    main()
