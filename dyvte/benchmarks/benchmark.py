"""What a benchmark is to the rest of the project: the files it reads, and answers in, score out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class QuestionScore:
    """One answered question and what it earned, between 0 and 1."""

    question_id: str | int
    score: float


@dataclass(frozen=True)
class Score:
    """The outcome of one benchmark.

    ``value`` is the number that papers print, unrounded and in percent; ``parts`` holds every other figure of
    the official scorer under its own name; ``questions`` is in the order of the answers file.
    """

    benchmark: str
    metric: str
    value: float
    parts: dict[str, float]
    questions: list[QuestionScore]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its names, where its files lie within its folder, and its scorer.

    ``question_file`` and ``image_folder`` are what a model reads; ``ground_truth`` lists the files that
    scoring reads, given the benchmark's folder; ``score(data_dir, answers_file)`` scores LLaVA's answers
    jsonl.
    """

    name: str
    title: str
    metric: str
    question_file: str
    image_folder: str
    ground_truth: Callable[[Path], list[Path]]
    score: Callable[[Path, Path], Score]


def mean(values: list[float]) -> float:
    """Plain mean, summed in order as the official scorers do; an empty list counts as 0."""
    return sum(values) / len(values) if values else 0.0
