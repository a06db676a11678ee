"""Matches POPE's answers to labels, by position or by id, and computes the figures of each split.

Called by :mod:`dyvte.benchmarks.pope`. By position, numbers must stay LLaVA's, also where answers are missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dyvte.benchmarks.benchmark import QuestionScore, Remark

Labels = dict[str, list[bool]]
"""By split, in the order of the label file; True is yes."""
Categories = dict[Any, str]
"""Question id -> split, in the order of the question file."""


@dataclass(frozen=True)
class SplitScore:
    """Counts of one split ("yes" is positive) and the official figures from them, as fractions.

    ``answers`` and ``said_yes`` count all answers, also those without a label. A figure whose denominator is 0 is 0
    here; the official script divides by zero.
    """

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int
    answers: int
    said_yes: int

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """TP, FP, TN, FN."""
        return self.true_positive, self.false_positive, self.true_negative, self.false_negative

    @property
    def figures(self) -> dict[str, float]:
        """By name, in the official order."""
        return {name: _ratio(*terms) for name, terms in self._ratios.items()}

    def undefined_figures(self) -> list[str]:
        """The figures whose denominator is 0."""
        titles = {"yes_ratio": "yes ratio", "precision": "precision", "recall": "recall", "f1": "F1"}
        return [title for name, title in titles.items() if not self._ratios[name][1]]

    @property
    def _ratios(self) -> dict[str, tuple[float, float]]:
        """Numerator and denominator of each figure."""
        predicted = self.true_positive + self.false_positive
        labeled = self.true_positive + self.false_negative
        precision, recall = _ratio(self.true_positive, predicted), _ratio(self.true_positive, labeled)
        return {
            "f1": (2 * precision * recall, precision + recall),
            "accuracy": (self.true_positive + self.true_negative, sum(self.counts)),
            "precision": (self.true_positive, predicted),
            "recall": (self.true_positive, labeled),
            "yes_ratio": (self.said_yes, self.answers),
        }


@dataclass
class Outcome:
    """Scores by split, questions in the order of the answers, and remarks.

    Attributes:
        pairs: how many scored questions there are of each (split, reply, label).
        replies: how many answers of each (split, reply), also without a label.
    """

    remarks: list[Remark]
    questions: list[QuestionScore] = field(default_factory=list)
    pairs: Counter[tuple[str, bool, bool]] = field(default_factory=Counter)
    replies: Counter[tuple[str, bool]] = field(default_factory=Counter)
    splits: dict[str, SplitScore] = field(default_factory=dict)

    def add(self, question_id: str | int, split: str, reply: bool, label: bool) -> None:
        self.pairs[split, reply, label] += 1
        self.questions.append(QuestionScore(question_id, float(reply == label)))

    def sum_up(self, labels: Labels) -> Outcome:
        """Compute ``splits``; returns self."""
        for split in labels:
            said_yes, said_no = (self.replies[split, reply] for reply in (True, False))
            self.splits[split] = SplitScore(
                true_positive=self.pairs[split, True, True],
                false_positive=self.pairs[split, True, False],
                true_negative=self.pairs[split, False, False],
                false_negative=self.pairs[split, False, True],
                answers=said_yes + said_no,
                said_yes=said_yes,
            )
        return self


def says_yes(text: str) -> bool:
    """The official rule: a reply is yes unless "No", "no" or "not" is a word before its first period."""
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return not {"No", "not", "no"}.intersection(words)


def score_by_position(labels: Labels, categories: Categories, answers: list[dict[str, Any]]) -> Outcome:
    """As LLaVA: the n-th answer of a split gets the split's n-th label, whatever its id; surplus is not scored."""
    asked = {split: [key for key, own in categories.items() if own == split] for split in labels}
    outcome = Outcome(_missing_and_repeated(labels, categories, answers, by_position=True))
    given: Counter[str] = Counter()
    for answer in answers:
        question_id = answer["question_id"]
        split = categories.get(question_id, "")
        if split not in labels:
            continue
        place, reply = given[split], says_yes(answer["text"])
        given[split] += 1
        outcome.replies[split, reply] += 1
        if place >= len(labels[split]):
            what = "more answers than labels: counts in the yes ratio alone"
            outcome.remarks.append(Remark(question_id, what, skipped=True))
            continue
        expected_id = asked[split][place] if place < len(asked[split]) else None
        if expected_id != question_id:
            outcome.remarks.append(
                Remark(question_id, f"scored by the label of question {expected_id}, by position")
            )
        outcome.add(question_id, split, reply, labels[split][place])
    return outcome.sum_up(labels)


def score_by_id(labels: Labels, categories: Categories, answers: list[dict[str, Any]]) -> Outcome:
    """Each answer gets the label of its question: the label's line is the id less the smallest id of the split.

    Of two answers to one question the last one counts; a question without an answer counts as wrong, and not in
    the yes ratio.

    Raises:
        ValueError: an id of the question file is no whole number.
    """
    first: dict[str, int] = {}
    for key, split in categories.items():
        if not isinstance(key, int):
            raise ValueError(f"POPE's question {key!r} has no whole number as id, as the variant id needs.")
        first[split] = min(key, first.get(split, key))
    said = {answer["question_id"]: says_yes(answer["text"]) for answer in answers}
    order = [key for key in said if key in categories] + [key for key in categories if key not in said]
    outcome = Outcome(_missing_and_repeated(labels, categories, answers, by_position=False))
    for key in order:
        split = categories[key]
        if split not in labels:
            continue
        place = key - first[split]
        if place >= len(labels[split]):
            outcome.remarks.append(Remark(key, "its split has no label for it: left out", skipped=True))
            continue
        label = labels[split][place]
        if key in said:
            outcome.replies[split, said[key]] += 1
        outcome.add(key, split, said.get(key, not label), label)
    return outcome.sum_up(labels)


PAIRINGS: dict[str, Callable[[Labels, Categories, list[dict[str, Any]]], Outcome]] = {
    "position": score_by_position,
    "id": score_by_id,
}
"""The scoring variants; the first is the default."""


def _missing_and_repeated(
    labels: Labels, categories: Categories, answers: list[dict[str, Any]], by_position: bool
) -> list[Remark]:
    """Remarks on questions that are unknown, or not answered exactly once."""
    counts = Counter(answer["question_id"] for answer in answers)
    missing = "no answer: left out; later answers move up" if by_position else "no answer: counted as wrong"
    repeated = "each takes a label; later answers move down" if by_position else "the last answer counts"
    remarks = [
        Remark(key, missing, skipped=by_position)
        for key, split in categories.items()
        if split in labels and key not in counts
    ]
    for key, count in counts.items():
        if key not in categories:
            remarks.append(Remark(key, "unknown question: ignored", skipped=True))
        elif categories[key] not in labels:
            remarks.append(Remark(key, f"no label file for {categories[key]}: ignored", skipped=True))
        elif count > 1:
            remarks.append(Remark(key, f"answered {count} times: {repeated}"))
    return remarks


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
