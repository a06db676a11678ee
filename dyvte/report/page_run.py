"""Provenance of the results in an output folder: models, gates, data, code, machines and seeds.

Called by :mod:`dyvte.report.page`. Lists must be sorted or counted, so that the same results give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dyvte.decoding.report import RunInfo
from dyvte.io import read_json, read_json_object, read_text
from dyvte.report.record import ResultRecord
from dyvte.report.titles import model_title, title_of

DATA = ("tiny-eval", "tiny-train")
"""Folders of the output that hold data, not results."""
STUDIES = ("attention", "oracle", "examples", "vtw")


def records_below(root: Path) -> dict[str, ResultRecord]:
    """All result records below the output folder, by their paths there; ValueError when one is broken."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name not in DATA)
    files = [path for folder in folders for path in sorted(folder.rglob("record.json"))]
    return {path.relative_to(root).as_posix(): ResultRecord.read(path) for path in files}


def read_studies(root: Path) -> list[dict[str, Any]]:
    """The JSON manifests of the studies named in ``STUDIES``."""
    paths = [path for folder in ("study", "rivals") for path in sorted((root / folder).rglob("*.json"))]
    return [read_json_object(path) for path in paths if path.stem in STUDIES]


def facts(
    root: Path, found: Mapping[str, ResultRecord], studies: Sequence[Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Name -> distinct values of the conditions under which results were made; several values where runs differ.

    The gates are those of Tables 1 and 2 (``results/``); the grids of the other tables have their own.
    """
    records = list(found.values())
    runs = [run for record in records for run in _runs_of(record)] + [*map(_run_of, studies)]
    gated = [r for path, r in found.items() if path.startswith("results/") and r.method == "dyvte"]
    stores = [read_json_object(path) for path in sorted((root / "gates").glob("*/*/manifest.json"))]
    dates = sorted([r.scoring.created for r in records] + [study["created"] for study in studies])
    checked, differ = (sum(r.batch_check.get(name, 0) for r in records) for name in ("checked", "differ"))
    inputs = root / "steps/inputs"
    rows = {
        "Model": _distinct([*(r.model for r in records), *(study["model"] for study in studies)]),
        "Weights, SHA-256": _distinct([*(s["model"] for s in stores), *(run.model_sha256 for run in runs)]),
        "Family": _distinct(run.family for run in runs),
        "Image processor": _distinct(_pairs(run.processor) for run in runs if run.processor),
        "Decoder layers": _distinct(str(record.num_layers) for record in records),
        "Gates": _distinct(
            f"{r.settings.get('gates') or 'in the checkpoint'}, threshold {r.settings.get('threshold', '0.5')}"
            for r in gated
        ),
        "Gates, on the hub": _distinct(run.gates_name for run in runs),
        "Gates, SHA-256": _distinct(run.gates_sha256 for run in runs),
        "Precision": _distinct([*(run.dtype for run in runs), *(store["dtype"] for store in stores)]),
        "Attention kernel": _distinct(run.attention + ", CUDA graphs" * run.graphs for run in runs),
        "Prompts and batches": _counted(map(_prompts, records)),
        "Results": [f"{len(records)} evaluations and {len(studies)} studies"] if runs else [],
        "Made": [f"{dates[0]} to {dates[-1]}"] if dates else [],
        "Code, commit": _counted(
            (run.commit or "unknown") + " with uncommitted changes" * bool(run.commit and run.dirty)
            for run in runs
        ),
        "Versions": _counted(_pairs(run.versions or {}) for run in runs),
        "Hardware": _counted(run.device for run in runs),
        "Seeds": _seeds(root),
        "Batch against single": [
            f"{checked} questions were asked alone as well as in a batch; {differ} answers differ"
        ]
        * bool(checked),
        "Settings": [line for line in read_text(inputs).splitlines() if "=" in line]
        if inputs.is_file()
        else [],
    }
    return {name: values for name, values in rows.items() if values}


def digests(records: Iterable[ResultRecord]) -> list[tuple[str, str, str, str]]:
    """(benchmark, number of questions, file, SHA-256) of the data that scores depend on.

    A file has two entries where records are of different versions of it.
    """
    by_benchmark: dict[str, list[ResultRecord]] = {}
    for record in records:
        by_benchmark.setdefault(record.benchmark, []).append(record)
    found = []
    for name, own in by_benchmark.items():
        questions = " or ".join(map(str, sorted({record.num_samples for record in own})))
        files = dict.fromkeys(pair for record in own for pair in sorted(record.data_sha256.items()))
        found += [(title_of(name), questions, *pair) for pair in files]
    return found


def steps(root: Path) -> list[tuple[str, str]]:
    """(name, "failed" or minutes:seconds) of the experiments that have run, sorted by name, then number."""
    found = [(path.stem, "failed") for path in (root / "steps").glob("*.failed")]
    for path in (root / "steps").glob("*.done"):
        seconds = int(read_text(path).rpartition("seconds ")[2])
        found.append((path.stem, f"{seconds // 60}:{seconds % 60:02d}"))
    return sorted(found, key=lambda step: (step[0].rstrip("0123456789"), len(step[0]), step[0]))


def heading(records: Iterable[ResultRecord], studies: Sequence[Mapping[str, Any]], root: Path) -> str:
    """The model, or models, as a heading."""
    models = [*(record.model for record in records), *(study["model"] for study in studies)]
    return ", ".join(dict.fromkeys(map(model_title, models))) or root.resolve().name


def _runs_of(record: ResultRecord) -> list[RunInfo]:
    """The conditions under which answers were generated (those of scoring where unknown), with the CPU's name."""
    scoring = _run_of(asdict(record.scoring))
    runs = [by.run for by in record.answered]
    return [replace(r, device=scoring.device) if r.device == "cpu" else r for r in runs] or [scoring]


def _run_of(made: Mapping[str, Any]) -> RunInfo:
    """The conditions in the manifest of a study, or of a scoring."""
    known = {name: made[name] for name in ("commit", "dirty", "versions")}
    machine = made["hardware"]
    gpus = ", ".join(machine.get("gpus") or []) or "no GPU"
    device = f"{machine.get('cpu', 'unknown processor')}, {machine.get('cores', '?')} cores, {gpus}"
    return RunInfo(dtype=made.get("dtype", ""), attention="", device=device, **known)


def _distinct(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value})


def _counted(values: Iterable[str]) -> list[str]:
    """Distinct values, the most frequent first, with their counts where there are several."""
    ordered = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
    return [f"{value} ({count} results)" if len(ordered) > 1 else value for value, count in ordered]


def _prompts(record: ResultRecord) -> str:
    """The settings of prompts and batches, in words."""
    names = {"conv_mode": "template", "batch_size": "batch size", "temperature": "temperature"}
    given = dict(record.settings)
    if "temperature" in given:
        given["temperature"] = f"{float(given['temperature']):g}"
    return ", ".join(f"{text} {given[name]}" for name, text in names.items() if name in given)


def _seeds(root: Path) -> list[str]:
    """Seeds of the gate fits, of the bootstrap, and of Tiny-LLaVA's training sample."""
    fits = [path for folder in ("gates", "tables") for path in (root / folder).rglob("fit.json")]
    flags = [read_json(path)["flags"] for path in fits]
    # of a flag that is given twice the last value counts
    found = {f"gate fitting {line[-line[::-1].index('--seed')]}" for line in flags if "--seed" in line}
    bootstraps = [read_json(path) for path in (root / "tables").rglob("dynamic.json")]
    seeds = sorted(found) + sorted({f"bootstrap {b['seed']}" for b in bootstraps if "seed" in b})
    made = root / "tiny-train/.made"
    if made.is_file():
        scenes, fraction, seed = read_text(made).split()
        seeds.append(f"Tiny-LLaVA's training sample {seed} ({scenes} scenes, {fraction} of them drawn)")
    return seeds


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
