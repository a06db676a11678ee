"""Checks whether a benchmark's files are there and fit together, before hours of inference.

Called by ``python -m dyvte.benchmarks check``, which ``scripts/v1_5/eval/common.sh`` runs first, and by
:mod:`dyvte.reproduce.work`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dyvte.benchmarks.benchmark import Benchmark, File

EVAL_ZIP = "LLaVA's eval.zip (link in docs/Evaluation.md of github.com/haotian-liu/LLaVA)"


@dataclass(frozen=True)
class Finding:
    """One file or folder of a benchmark.

    Attributes:
        path: where it is, or belongs.
        state: "there", "missing", "wrong" (there, but not usable), or "optional" (missing, and only some figures or
            variants need it).
        detail: what is wrong, where to get it, or what it would be needed for.
    """

    path: Path
    state: str
    detail: str = ""


def check(benchmark: Benchmark, data_dir: Path) -> list[Finding]:
    """Look for every file of a benchmark and, when all are there, whether questions and annotations fit together."""
    findings: list[Finding] = []
    for file in (File(benchmark.question_file, EVAL_ZIP), *benchmark.files):
        path = data_dir / file.path
        if any(data_dir.glob(file.path)) if "*" in file.path else path.exists():
            findings.append(Finding(path, "there"))
        elif file.needed_for:
            findings.append(Finding(path, "optional", f"only for {file.needed_for}; from {file.source}"))
        else:
            findings.append(Finding(path, "missing", f"from {file.source}"))
    if all(finding.state != "missing" for finding in findings):
        try:
            benchmark.check_questions(data_dir)
        except (FileNotFoundError, ValueError) as error:
            findings.append(Finding(data_dir / benchmark.question_file, "wrong", str(error)))
    return findings


def ready(findings: list[Finding]) -> bool:
    """Whether nothing that is needed is missing or wrong."""
    return all(finding.state in ("there", "optional") for finding in findings)
