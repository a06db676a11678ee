"""What was run, for the HTML report: models, gates, data, code, machines and seeds, from the stored results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dyvte.decoding.report import RunInfo
from dyvte.io import read_json, read_json_object, read_text
from dyvte.report.record import ResultRecord
from dyvte.report.titles import model_title, title_of

DATA = ("tiny-eval", "tiny-train")
"""Folders of the output that hold data, not results."""
STUDIES = ("attention", "oracle", "examples", "vtw")
Fact = tuple[str, list[str]]
"""What, and its values; more than one where runs differ."""


@dataclass(frozen=True)
class Source:
    """Where numbers come from: under which conditions, when, and on which machine."""

    run: RunInfo
    created: str
    machine: str


def records_below(root: Path) -> dict[str, ResultRecord]:
    """All result records below the output folder, by their paths there.

    Raises:
        ValueError: one is broken.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name not in DATA)
    files = [path for folder in folders for path in sorted(folder.rglob("record.json"))]
    return {path.relative_to(root).as_posix(): ResultRecord.read(path) for path in files}


def read_studies(root: Path) -> list[dict[str, Any]]:
    """Manifests of the studies of attention, of the oracle, of VTW's layer and of examples."""
    paths = [path for folder in ("study", "rivals") for path in sorted((root / folder).rglob("*.json"))]
    return [read_json_object(path) for path in paths if path.stem in STUDIES]


def _sources_of(record: ResultRecord) -> list[Source]:
    """One for each condition under which answers were generated; of scoring, where those are not known."""
    created, machine = record.scoring.created, _machine(record.scoring.hardware)
    if not record.answered:
        return [_source_of(asdict(record.scoring))]
    runs = [by.run for by in record.answered]
    return [Source(run, created, machine if run.device == "cpu" else run.device) for run in runs]


def _source_of(made: Mapping[str, Any]) -> Source:
    """Of the manifest of a study, or of a scoring."""
    known = {name: made[name] for name in ("commit", "dirty", "versions")}
    run = RunInfo(dtype=made.get("dtype", ""), attention="", device="", **known)
    return Source(run, made["created"], _machine(made["hardware"]))


def facts(root: Path, found: dict[str, ResultRecord], studies: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """What the results were made with, in the order in which a reader asks.

    The gates are those of Tables 1 and 2 (``results/``); the grids of the other tables have their own.
    """
    records = list(found.values())
    main = [record for path, record in found.items() if path.startswith("results/")]
    sources = [source for record in records for source in _sources_of(record)]
    sources += map(_source_of, studies)
    runs = [source.run for source in sources]
    stores = [read_json_object(path) for path in sorted((root / "gates").glob("*/*/manifest.json"))]
    dates = sorted(source.created for source in sources)
    rows = [
        ("Model", _distinct([*(record.model for record in records), *(study["model"] for study in studies)])),
        ("Weights, SHA-256", _distinct([*(s["model"] for s in stores), *(run.model_sha256 for run in runs)])),
        ("Decoder layers", _distinct(str(record.num_layers) for record in records)),
        ("Gates", _distinct(_gates(record) for record in main if record.method == "dyvte")),
        ("Gates, SHA-256", _distinct(run.gates_sha256 for run in runs)),
        ("Precision", _distinct([*(run.dtype for run in runs), *(store["dtype"] for store in stores)])),
        ("Attention kernel", _distinct(run.attention + ", CUDA graphs" * run.graphs for run in runs)),
        ("Prompts and batches", _counted(_prompts(record) for record in records)),
        ("Results", [f"{len(records)} evaluations and {len(studies)} studies"] if sources else []),
        ("Made", [f"{dates[0]} to {dates[-1]}"] if dates else []),
        ("Code, commit", _counted(_commit(run) for run in runs)),
        ("Versions", _counted(_pairs(run.versions or {}) for run in runs)),
        ("Hardware", _counted(source.machine for source in sources)),
        ("Seeds", _seeds(root)),
        ("Batch against single", _batches(records)),
        ("Settings", _settings(root)),
    ]
    return [(name, values) for name, values in rows if values]


def digests(records: Iterable[ResultRecord]) -> list[tuple[str, str, str, str]]:
    """(benchmark, number of questions, file, SHA-256) of the data that scores depend on.

    A file comes twice where records are of different versions of it.
    """
    records, found = list(records), []
    for name in dict.fromkeys(record.benchmark for record in records):
        own = [record for record in records if record.benchmark == name]
        questions = " or ".join(map(str, sorted({record.num_samples for record in own})))
        files = dict.fromkeys(pair for record in own for pair in sorted(record.data_sha256.items()))
        found += [(title_of(name), questions, *pair) for pair in files]
    return found


def steps(root: Path) -> list[tuple[str, str]]:
    """(name, how it ended) of the experiments that have run."""
    found = []
    for path in sorted((root / "steps").glob("*.*")):
        if path.suffix == ".failed":
            found.append((path.stem, "failed"))
        elif path.suffix == ".done":
            seconds = int(read_text(path).rpartition("seconds ")[2])
            found.append((path.stem, f"{seconds // 60}:{seconds % 60:02d}"))
    return sorted(found, key=lambda step: (step[0].rstrip("0123456789"), len(step[0]), step[0]))


def heading(records: Iterable[ResultRecord], studies: Sequence[Mapping[str, Any]], root: Path) -> str:
    """The model, or models, as a heading."""
    models = dict.fromkeys([*(r.model for r in records), *(study["model"] for study in studies)])
    return ", ".join(dict.fromkeys(map(model_title, models))) or root.resolve().name


def _distinct(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value})


def _counted(values: Iterable[str]) -> list[str]:
    """Distinct values, the most frequent first, with how often each comes where there are several."""
    counts = Counter(values)
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [f"{value} ({count} results)" if len(ordered) > 1 else value for value, count in ordered]


def _gates(record: ResultRecord) -> str:
    gates = record.settings.get("gates") or "in the checkpoint"
    return f"{gates}, threshold {record.settings.get('threshold', '0.5')}"


def _prompts(record: ResultRecord) -> str:
    names = {"conv_mode": "template", "batch_size": "batch size", "temperature": "temperature"}
    given = {**record.settings}
    if "temperature" in given:
        given["temperature"] = f"{float(given['temperature']):g}"
    return ", ".join(f"{text} {given[name]}" for name, text in names.items() if name in given)


def _commit(run: RunInfo) -> str:
    return "unknown" if not run.commit else run.commit + (" with uncommitted changes" if run.dirty else "")


def _pairs(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _machine(hardware: Mapping[str, Any]) -> str:
    gpus = ", ".join(hardware.get("gpus") or []) or "no GPU"
    return f"{hardware.get('cpu', 'unknown processor')}, {hardware.get('cores', '?')} cores, {gpus}"


def _batches(records: Sequence[ResultRecord]) -> list[str]:
    checked = sum(record.batch_check.get("checked", 0) for record in records)
    if not checked:
        return []
    differ = sum(record.batch_check.get("differ", 0) for record in records)
    return [f"{checked} questions were asked alone as well as in a batch; {differ} answers differ"]


def _seeds(root: Path) -> list[str]:
    """Seeds of the gate fits, of the bootstrap, and of Tiny-LLaVA's training sample."""
    # of a flag that is given twice the last value counts
    fits = {
        flags[len(flags) - flags[::-1].index("--seed")]
        for folder in ("gates", "tables")
        for path in (root / folder).rglob("fit.json")
        if "--seed" in (flags := read_json(path)["flags"])
    }
    bootstraps = {
        str(content["seed"])
        for path in (root / "tables").rglob("dynamic.json")
        if "seed" in (content := read_json(path))
    }
    seeds = [f"gate fitting {seed}" for seed in sorted(fits)]
    seeds += [f"bootstrap {seed}" for seed in sorted(bootstraps)]
    made = root / "tiny-train/.made"
    if made.is_file():
        scenes, fraction, seed = read_text(made).split()
        seeds.append(f"Tiny-LLaVA's training sample {seed} ({scenes} scenes, {fraction} of them drawn)")
    return seeds


def _settings(root: Path) -> list[str]:
    """The settings that the experiments were started with."""
    path = root / "steps/inputs"
    lines = read_text(path).splitlines() if path.is_file() else []
    return [line for line in lines if "=" in line]
