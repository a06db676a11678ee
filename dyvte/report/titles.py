"""Names of benchmarks, models, methods, averages and units in all tables, figures and pages of report and study.

Called from :mod:`dyvte.report` and :mod:`dyvte.study`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from dyvte import methods
from dyvte.benchmarks import get_benchmark

if TYPE_CHECKING:
    from dyvte.report.record import ResultRecord

AVERAGE = "average"
BASELINE = "none"
LMMS = "lmms-eval/"
"""Benchmarks of lmms-eval are named ``lmms-eval/TASK/METRIC``: numbers of a harness differ from those of LLaVA's
scripts, so the two never share a name."""
LMMS_PERCENT = {
    "mmbench*/gpt_eval_score": 1,
    "mmvet*/gpt_eval_score": 1,
    **dict.fromkeys(("*/exact_match", "*/acc", "*/anls", "*/relaxed_overall", "*/mmmu_acc"), 100),
    **dict.fromkeys(("pope*/pope_*", "seedbench*/seed_*", "ocrbench*/ocrbench_accuracy"), 100),
}
"""``TASK/METRIC`` of lmms-eval 0.7.3 -> factor that makes percent of it. Other metrics stay in units of their own."""


def title_of(benchmark: str) -> str:
    """A benchmark's name as papers write it; of lmms-eval, task and metric."""
    if benchmark.startswith(LMMS):
        return f"{benchmark.removeprefix(LMMS).replace('/', ', ')} (lmms-eval)"
    return "Average" if benchmark == AVERAGE else get_benchmark(benchmark).title


def label_of(record: ResultRecord) -> str:
    """The title of a record's method; see :func:`dyvte.methods.title`."""
    return methods.title(record.method, record.settings)


def model_title(model: str) -> str:
    """The name of a checkpoint's folder, with its parent's where it is just "model"."""
    path = Path(model)
    return f"{path.parent.name}/{path.name}" if path.name == "model" else path.name


def method_title(manifest: Mapping[str, str]) -> str:
    """The exit method of a study's manifest."""
    method = manifest["method"]
    return "without exit" if method == BASELINE else methods.title(method, manifest)


def lmms_factor(benchmark: str) -> int | None:
    """What a score of lmms-eval is multiplied by to be in percent; None where its unit is not known."""
    name = benchmark.removeprefix(LMMS)
    return next((factor for pattern, factor in LMMS_PERCENT.items() if fnmatch(name, pattern)), None)


def in_percent(benchmark: str) -> bool:
    """Whether the scores of a benchmark are in percent."""
    if benchmark.startswith(LMMS):
        return lmms_factor(benchmark) is not None
    return get_benchmark(benchmark).percent


def averaged(benchmarks: Iterable[str]) -> list[str]:
    """The benchmarks that an average covers: those scored in percent, or all where none is."""
    names = list(dict.fromkeys(benchmarks))
    return [name for name in names if in_percent(name)] or names


def average_title(benchmarks: Iterable[str]) -> str:
    """``Average``, with the benchmarks it leaves out because their scores are not in percent."""
    names = list(dict.fromkeys(benchmarks))
    left_out = [title_of(name) for name in names if name not in averaged(names)]
    return f"Average without {', '.join(left_out)}" if left_out else "Average"


def flops_unit(tflops: Iterable[float]) -> tuple[float, str]:
    """(factor on TFLOPs, name) of the unit: GFLOPs where all values are below 0.1 TFLOPs."""
    return (1000.0, "GFLOPs") if max(tflops) < 0.1 else (1.0, "TFLOPs")
