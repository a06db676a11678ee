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


@dataclass
class SplitScore:
    """Counts of one split ("yes", True, is positive) and the official figures from them, as fractions.

    Attributes:
        pairs: how many scored questions there are of each (reply, label).
        replies: how many answers of each reply, also without a label.
    """

    pairs: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    replies: Counter[bool] = field(default_factory=Counter)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """TP, FP, TN, FN."""
        pairs = self.pairs
        return pairs[True, True], pairs[True, False], pairs[False, False], pairs[False, True]

    @property
    def figures(self) -> dict[str, float]:
        """By name, in the official order. One whose denominator is 0 is 0; the official script divides by zero."""
        return {name: _ratio(*terms) for name, terms in self._ratios.items()}

    def undefined_figures(self) -> list[str]:
        """The figures whose denominator is 0."""
        titles = {"yes_ratio": "yes ratio", "precision": "precision", "recall": "recall", "f1": "F1"}
        return [title for name, title in titles.items() if not self._ratios[name][1]]

    @property
    def _ratios(self) -> dict[str, tuple[float, float]]:
        """Numerator and denominator of each figure."""
        tp, fp, tn, fn = self.counts
        precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
        return {
            "f1": (2 * precision * recall, precision + recall),
            "accuracy": (tp + tn, sum(self.counts)),
            "precision": (tp, tp + fp),
            "recall": (tp, tp + fn),
            "yes_ratio": (self.replies[True], self.replies.total()),
        }


@dataclass
class Outcome:
    """Scores by split, questions in the order of the answers, and remarks."""

    splits: dict[str, SplitScore]
    remarks: list[Remark]
    questions: list[QuestionScore] = field(default_factory=list)

    def add(self, question_id: str | int, split: str, reply: bool, label: bool) -> None:
        self.splits[split].pairs[reply, label] += 1
        self.questions.append(QuestionScore(question_id, float(reply == label)))


def says_yes(text: str) -> bool:
    """The official rule: a reply is yes unless "No", "no" or "not" is a word before its first period."""
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return not {"No", "not", "no"}.intersection(words)


def score_by_position(labels: Labels, categories: Categories, answers: list[dict[str, Any]]) -> Outcome:
    """As LLaVA: the n-th answer of a split gets the split's n-th label, whatever its id; surplus is not scored."""
    asked = {split: [key for key, own in categories.items() if own == split] for split in labels}
    outcome = _unscored(labels, categories, answers, by_position=True)
    for answer in answers:
        question_id = answer["question_id"]
        split = categories.get(question_id, "")
        if split not in labels:
            continue
        replies, reply = outcome.splits[split].replies, says_yes(answer["text"])
        place = replies.total()
        replies[reply] += 1
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
    return outcome


def score_by_id(labels: Labels, categories: Categories, answers: list[dict[str, Any]]) -> Outcome:
    """Each answer gets the label of its question: the label's line is the id less the smallest id of the split.

    Of two answers to one question the last one counts; a question without an answer counts as wrong, and not in
    the yes ratio. ValueError where an id of the question file is no whole number.
    """
    first: dict[str, int] = {}
    for key, split in categories.items():
        if not isinstance(key, int):
            raise ValueError(f"POPE's question {key!r} has no whole number as id, as the variant id needs.")
        first[split] = min(key, first.get(split, key))
    said = {answer["question_id"]: says_yes(answer["text"]) for answer in answers}
    order = [key for key in said if key in categories] + [key for key in categories if key not in said]
    outcome = _unscored(labels, categories, answers, by_position=False)
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
            outcome.splits[split].replies[said[key]] += 1
        outcome.add(key, split, said.get(key, not label), label)
    return outcome


PAIRINGS: dict[str, Callable[[Labels, Categories, list[dict[str, Any]]], Outcome]] = {
    "position": score_by_position,
    "id": score_by_id,
}
"""The scoring variants; the first is the default."""


def _unscored(
    labels: Labels, categories: Categories, answers: list[dict[str, Any]], by_position: bool
) -> Outcome:
    """An outcome to add to, with remarks on questions that are unknown, or not answered exactly once."""
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
    return Outcome({split: SplitScore() for split in labels}, remarks)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
