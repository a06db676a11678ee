"""How POPE's answers meet labels, by position or by id, and the figures of a split that come from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dyvte.benchmarks.benchmark import QuestionScore, Remark

Labels = dict[str, list[bool]]
Categories = dict[Any, str]


@dataclass(frozen=True)
class SplitScore:
    """Counts of one split ("yes" is positive) and the official figures from them, as fractions.

    ``answers`` and ``said_yes`` count answers before they meet labels. A figure without a denominator is 0 here,
    where the official script divides by zero.
    """

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int
    answers: int
    said_yes: int

    @property
    def accuracy(self) -> float:
        total = self.true_positive + self.true_negative + self.false_positive + self.false_negative
        return _ratio(self.true_positive + self.true_negative, total)

    @property
    def precision(self) -> float:
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        return _ratio(self.said_yes, self.answers)

    def without_denominator(self) -> list[str]:
        """The figures that are 0 only for want of a denominator."""
        denominators = {
            "yes ratio": self.answers,
            "precision": self.true_positive + self.false_positive,
            "recall": self.true_positive + self.false_negative,
            "F1": self.precision + self.recall,
        }
        return [name for name, value in denominators.items() if not value]


@dataclass
class Outcome:
    """What answers and labels give: scores by split, questions in the order of the answers, and remarks."""

    splits: dict[str, SplitScore]
    questions: list[QuestionScore] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)


def says_yes(text: str) -> bool:
    """The official reading: whatever has no "No", "no" or "not" before its first period is a yes."""
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return not {"No", "not", "no"}.intersection(words)


def score_by_position(labels: Labels, categories: Categories, answers: list[dict[str, Any]]) -> Outcome:
    """Give the answers of a split the split's labels one by one, as LLaVA does; what is left over has no part."""
    asked = {split: [key for key, own in categories.items() if own == split] for split in labels}
    replies: dict[str, list[bool]] = {split: [] for split in labels}
    questions, remarks = [], _missing_and_repeated(labels, categories, answers, by_position=True)
    for answer in answers:
        question_id = answer["question_id"]
        split = categories.get(question_id, "")
        if split not in labels:
            continue
        place, reply = len(replies[split]), says_yes(answer["text"])
        replies[split].append(reply)
        if place >= len(labels[split]):
            remarks.append(
                Remark(question_id, "more answers than labels: counts in the yes ratio alone", True)
            )
            continue
        owner = asked[split][place] if place < len(asked[split]) else None
        if owner != question_id:
            remarks.append(Remark(question_id, f"scored by the label of question {owner}, by position"))
        questions.append(QuestionScore(question_id, float(reply == labels[split][place])))
    splits = {
        split: _count(
            list(zip(replies[split], wanted, strict=False)), len(replies[split]), sum(replies[split])
        )
        for split, wanted in labels.items()
    }
    return Outcome(splits, questions, remarks)


def score_by_id(labels: Labels, categories: Categories, answers: list[dict[str, Any]]) -> Outcome:
    """Give each answer the label of its question: its id less the smallest id of the split is the label's line.

    Of two answers to one question the last one counts; a question without an answer counts as wrong, and not in
    the yes ratio.

    Raises:
        ValueError: an id of the question file is no whole number.
    """
    strange = [key for key in categories if not isinstance(key, int)]
    if strange:
        raise ValueError(
            f"POPE's question {strange[0]!r} has no whole number as id, as the variant id needs."
        )
    first: dict[str, int] = {}
    for key, split in categories.items():
        first[split] = min(key, first.get(split, key))
    replies = {answer["question_id"]: says_yes(answer["text"]) for answer in answers}
    order = [key for key in replies if key in categories] + [key for key in categories if key not in replies]
    pairs: dict[str, list[tuple[bool, bool]]] = {split: [] for split in labels}
    given: dict[str, list[bool]] = {split: [] for split in labels}
    questions, remarks = [], _missing_and_repeated(labels, categories, answers, by_position=False)
    for key in order:
        split = categories[key]
        if split not in labels:
            continue
        place = key - first[split]
        if place >= len(labels[split]):
            remarks.append(Remark(key, "its split has no label for it: left out", skipped=True))
            continue
        wanted = labels[split][place]
        if key in replies:
            given[split].append(replies[key])
        pairs[split].append((replies.get(key, not wanted), wanted))
        questions.append(QuestionScore(key, float(replies.get(key) == wanted)))
    splits = {split: _count(pairs[split], len(given[split]), sum(given[split])) for split in labels}
    return Outcome(splits, questions, remarks)


PAIRINGS: dict[str, Callable[[Labels, Categories, list[dict[str, Any]]], Outcome]] = {
    "position": score_by_position,
    "id": score_by_id,
}


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


def _count(pairs: list[tuple[bool, bool]], answers: int, said_yes: int) -> SplitScore:
    """The counts of (reply, label) pairs."""
    counts = Counter(pairs)
    return SplitScore(
        counts[True, True], counts[True, False], counts[False, False], counts[False, True], answers, said_yes
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
