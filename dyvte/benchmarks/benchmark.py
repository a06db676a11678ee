"""The types every benchmark module fills in, :class:`Benchmark` and :class:`Score`, and sums that scorers share.

:mod:`dyvte.report.record` scores answers through them. A *variant* here is a scoring variant: one of several official
scorers that give different numbers for the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Protocol, TypeVar

from dyvte.engine.questions import JSON_LINES, QuestionFormat

Name = TypeVar("Name")
Value = TypeVar("Value")


@dataclass(frozen=True)
class File:
    """A file or folder of a benchmark, below the benchmark's own folder.

    Attributes:
        path: relative to the benchmark's folder; may be a glob pattern.
        source: where a user gets it.
        needed_for: the figures or variants that need it; empty when it is always needed.
    """

    path: str
    source: str
    needed_for: str = ""


REMARKS_SHOWN = 10  # how many are printed; JSON output has all


@dataclass(frozen=True)
class QuestionScore:
    """One answered question and what it earned, between 0 and 1."""

    question_id: str | int
    score: float


@dataclass(frozen=True)
class Remark:
    """How a question was scored on which the official evaluator crashes, or which it silently miscounts.

    Attributes:
        what: the trouble and the treatment, such as "no answer: counted as wrong".
        skipped: whether the question, or the answer, is left out of the score.
    """

    question_id: str | int
    what: str
    skipped: bool = False


@dataclass(frozen=True)
class Score:
    """The outcome of one benchmark.

    Attributes:
        benchmark: its name in the registry.
        metric: what ``value`` is, in words.
        value: the number that papers print, unrounded; in percent, except MME's points.
        parts: every other figure of the official scorer under its own name, unrounded.
        questions: the score of each question that counts, in the order of the answers.
        report: what the official scorer prints.
        variant: the scoring variant, where there are several.
        remarks: see ``Remark``; empty for answers that the official scorer takes without trouble.
    """

    benchmark: str
    metric: str
    value: float
    parts: dict[str, float]
    questions: list[QuestionScore]
    report: str = ""
    variant: str = ""
    remarks: list[Remark] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """How many questions or answers are left out of the score."""
        return sum(remark.skipped for remark in self.remarks)


def describe(title: str, score: Score) -> str:
    """The official scorer's lines, the headline, and the first remarks."""
    lines = [score.report.rstrip("\n")] if score.report else []
    variant = f", variant {score.variant}" if score.variant else ""
    lines.append(f"{title}: {score.value:.2f} ({score.metric}{variant}; {len(score.questions)} questions)")
    if score.remarks:
        lines.append(
            f"{len(score.remarks)} remarks, {score.skipped} of them on questions or answers left out:"
        )
        lines += [f"  {remark.question_id}: {remark.what}" for remark in score.remarks[:REMARKS_SHOWN]]
        if len(score.remarks) > REMARKS_SHOWN:
            lines.append(f"  ... and {len(score.remarks) - REMARKS_SHOWN} more (all of them with --json)")
    # half a surrogate pair, which JSON can hold, cannot be printed
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


class Scorer(Protocol):
    """Scores answers in LLaVA's JSON lines. For answers that the official scorer takes, all numbers are its own.

    Raises:
        FileNotFoundError: the answers or the annotations are missing.
        ValueError: a file is broken (naming file and line), the answers are of another split, or the variant is
            unknown.
    """

    def __call__(self, data_dir: Path, answers_file: Path, variant: str = "") -> Score: ...


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its names, where its files lie, who asks its questions, and its scorer.

    Attributes:
        name: in commands and scripts.
        title: as papers write it.
        metric: what :attr:`Score.value` is, in words.
        folder: below ``playground/data/eval``, as LLaVA has it.
        question_file: what the model is asked; not listed again in ``files``.
        image_folder: relative to the benchmark's folder; empty where images lie within the question file.
        files: all other files, images included.
        ground_truth: the files that scoring reads, given the benchmark's folder.
        score: see ``Scorer``.
        variants: scoring variants that ``score`` knows; the first is the default.
        questions: how the question file is read, and the flags of the command line that asks it.
        percent: whether scores are in percent; scores in other units are left out of averages over benchmarks.
        check_questions: given the benchmark's folder, raises ValueError or FileNotFoundError for what would only
            come to light after inference: a question without annotation, a broken annotation file, a wrong split.
    """

    name: str
    title: str
    metric: str
    folder: str
    question_file: str
    image_folder: str
    files: tuple[File, ...]
    ground_truth: Callable[[Path], list[Path]]
    score: Scorer
    variants: tuple[str, ...] = ()
    questions: QuestionFormat = JSON_LINES
    percent: bool = True
    check_questions: Callable[[Path], object] = lambda data_dir: None

    def variant(self, name: str = "") -> str:
        """The scoring variant of this name, by default the first; empty for a benchmark without variants. ValueError
        for an unknown name.
        """
        if not name:
            return self.variants[0] if self.variants else ""
        if name not in self.variants:
            known = f"use one of {', '.join(self.variants)}" if self.variants else "it has none"
            raise ValueError(f"{self.title} has no variant {name!r}: {known}.")
        return name


def sequential_sum(values: Iterable[float]) -> float:
    """The sum by repeated ``+``, as in official loops; from Python 3.12 on, ``sum`` compensates rounding errors."""
    return reduce(add, values, 0.0)


def mean(values: Sequence[float]) -> float:
    """Mean by the built-in ``sum``, as official scorers have it; 0 for an empty list."""
    return sum(values) / len(values) if values else 0.0


def grouped(pairs: Iterable[tuple[Name, Value]]) -> dict[Name, list[Value]]:
    """The values of each group; groups are in the order of their first values."""
    groups: dict[Name, list[Value]] = {}
    for name, value in pairs:
        groups.setdefault(name, []).append(value)
    return groups
