"""What was run, for the HTML report: models, gates, data, code, machines and seeds, from the stored results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyvte.report.record import ResultRecord
from dyvte.report.table import title_of
from dyvte.study.titles import model_title

DATA = ("tiny-eval", "tiny-train")
"""Folders of the output that hold data, not results."""
STUDIES = ("attention", "oracle", "examples", "vtw")
Fact = tuple[str, list[str]]
"""What, and its values; more than one where runs differ."""


@dataclass(frozen=True)
class Digest:
    """Files of a benchmark that scores depend on.

    Attributes:
        questions: how many were asked; more than one number where records differ.
        files: (name, SHA-256) each; a name comes twice where records are of different files.
    """

    benchmark: str
    questions: list[int]
    files: list[tuple[str, str]]


def read_records(root: Path) -> dict[str, ResultRecord]:
    """All result records below the output folder, by their paths there.

    Raises:
        ValueError: one is broken.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name not in DATA)
    files = [path for folder in folders for path in sorted(folder.rglob("record.json"))]
    return {path.relative_to(root).as_posix(): ResultRecord.read(path) for path in files}


def read_studies(root: Path) -> list[dict[str, Any]]:
    """Manifests of the studies of attention, of the oracle, of VTW's layer and of examples, without the examples."""
    paths = [path for folder in ("study", "rivals") for path in sorted((root / folder).rglob("*.json"))]
    contents = [_read(path) for path in paths if path.stem in STUDIES]
    return [{key: value for key, value in content.items() if key != "examples"} for content in contents]


def facts(root: Path, found: dict[str, ResultRecord], studies: Sequence[dict[str, Any]]) -> list[Fact]:
    """What the results were made with, in the order in which a reader asks.

    The gates are those of Tables 1 and 2 (``results/``); the grids of the other tables have their own.
    """
    records = list(found.values())
    main = [record for path, record in found.items() if path.startswith("results/")]
    sources = [vars(record) for record in records] + list(studies)
    manifests = [_read(path) for path in sorted((root / "gates").glob("*/*/manifest.json"))]
    dates = sorted(source["created"] for source in sources)
    rows = [
        ("Model", _distinct(source["model"] for source in sources)),
        ("Weights, SHA-256", _distinct(manifest["model"] for manifest in manifests)),
        ("Decoder layers", _distinct(str(record.num_layers) for record in records)),
        ("Gates", _distinct(_gates(record) for record in main if record.method == "dyvte")),
        ("Precision", _distinct(source["dtype"] for source in (*studies, *manifests))),
        ("Prompts and batches", _counted(_prompts(record) for record in records)),
        ("Results", [f"{len(records)} evaluations and {len(studies)} studies"] if sources else []),
        ("Made", [f"{dates[0]} to {dates[-1]}"] if dates else []),
        ("Code, commit", _counted(_commit(source) for source in sources)),
        ("Versions", _counted(_pairs(source["versions"]) for source in sources)),
        ("Hardware", _counted(_machine(source["hardware"]) for source in sources)),
        ("Seeds", _seeds(root)),
        ("Batch against single", _batches(records)),
        ("Settings", _settings(root)),
    ]
    return [(name, values) for name, values in rows if values]


def digests(records: Iterable[ResultRecord]) -> list[Digest]:
    """The data that scores depend on, by benchmark."""
    records, found = list(records), []
    for name in dict.fromkeys(record.benchmark for record in records):
        own = [record for record in records if record.benchmark == name]
        files = dict.fromkeys(pair for record in own for pair in sorted(record.data_sha256.items()))
        found.append(Digest(title_of(name), sorted({record.num_samples for record in own}), list(files)))
    return found


def steps(root: Path) -> list[tuple[str, str]]:
    """(name, how it ended) of the steps of ``scripts/reproduce/all.sh`` that have run."""
    found = []
    for path in sorted((root / "steps").glob("*.*")):
        if path.suffix == ".failed":
            found.append((path.stem, "failed"))
        elif path.suffix == ".done":
            seconds = int(path.read_text(encoding="utf-8").rpartition("seconds ")[2])
            found.append((path.stem, f"{seconds // 60}:{seconds % 60:02d}"))
    return sorted(found, key=lambda step: (step[0].rstrip("0123456789"), _number(step[0])))


def heading(records: Iterable[ResultRecord], studies: Sequence[dict[str, Any]], root: Path) -> str:
    """The model, or models, as a heading."""
    models = dict.fromkeys([*(r.model for r in records), *(study["model"] for study in studies)])
    return ", ".join(dict.fromkeys(map(model_title, models))) or root.resolve().name


def _number(name: str) -> int:
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits or 0)


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(dict.fromkeys(values))


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


def _commit(source: dict[str, Any]) -> str:
    if not source["commit"]:
        return "unknown"
    return source["commit"] + (" with uncommitted changes" if source["dirty"] else "")


def _pairs(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _machine(hardware: dict[str, Any]) -> str:
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
        if "--seed" in (flags := _read(path)["flags"])
    }
    bootstraps = {
        str(content["seed"])
        for path in (root / "tables").rglob("dynamic.json")
        if "seed" in (content := _read(path))
    }
    seeds = [f"gate fitting {seed}" for seed in sorted(fits)]
    seeds += [f"bootstrap {seed}" for seed in sorted(bootstraps)]
    made = root / "tiny-train/.made"
    if made.is_file():
        scenes, fraction, seed = made.read_text(encoding="utf-8").split()
        seeds.append(f"Tiny-LLaVA's training sample {seed} ({scenes} scenes, {fraction} of them drawn)")
    return seeds


def _settings(root: Path) -> list[str]:
    """The settings that ``all.sh`` was started with."""
    path = root / "steps/inputs"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if "=" in line]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
