"""The registry of benchmarks, each with a file of its own: where its data lie, and how official scorers count.

A new benchmark is a module with a ``BENCHMARK`` and its name in the tuple below, whose order lists and tables keep.
"""

from dyvte.benchmarks import gqa, mmbench, mme, mmvet, pope, seed, sqa, textvqa, vqav2
from dyvte.benchmarks.benchmark import Benchmark, QuestionScore, Score

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (vqav2, gqa, sqa, textvqa, pope, mme, mmbench, seed, mmvet)
}

__all__ = ["BENCHMARKS", "Benchmark", "QuestionScore", "Score", "get_benchmark"]


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of this name; ValueError when there is none."""
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]
