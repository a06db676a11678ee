"""Benchmarks, one per file: where its files lie, and how its official scorer turns answers into numbers."""

from dyvte.benchmarks import gqa, mmbench, mme, mmvet, pope, seed, sqa, textvqa, vqav2
from dyvte.benchmarks.benchmark import Benchmark, QuestionScore, Score

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (vqav2, gqa, sqa, textvqa, pope, mme, mmbench, seed, mmvet)
}

__all__ = ["BENCHMARKS", "Benchmark", "QuestionScore", "Score", "get_benchmark"]


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]
