"""POPE: is this object in the image? (Li et al., 2023), as LLaVA scores it; papers print the mean of the
splits' F1.

Files: ``coco/coco_pope_{adversarial,popular,random}.json`` (JSON lines of labels), ``llava_pope_test.jsonl``
(questions, whose ``category`` is the split), ``val2014/*.jpg``. Answers meet labels by their order within a
split.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import Benchmark, File, QuestionScore, Score, mean
from dyvte.benchmarks.files import read_answers, read_json_lines

QUESTIONS = "llava_pope_test.jsonl"
LABELS = "coco"
LABEL_FILE_PREFIX = "coco_pope_"
_SOURCE = "https://github.com/AoiDragon/POPE at commit e3e3926 (output/coco); later ones have other negatives"


@dataclass(frozen=True)
class SplitScore:
    """Counts of one split ("yes" is positive) and the official figures from them, as fractions.

    A figure without a denominator is 0 here, where the official script divides by zero.
    """

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def total(self) -> int:
        return self.true_positive + self.false_positive + self.true_negative + self.false_negative

    @property
    def accuracy(self) -> float:
        return _ratio(self.true_positive + self.true_negative, self.total)

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
        return _ratio(self.true_positive + self.false_positive, self.total)


def says_yes(text: str) -> bool:
    """The official reading: whatever has no "No", "no" or "not" before its first period is a yes."""
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return not {"No", "not", "no"}.intersection(words)


def read_labels(folder: str | Path) -> dict[str, list[bool]]:
    """Labels (True is yes) by split, in file order, of all label files in ``folder``.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(Path(folder).glob(f"{LABEL_FILE_PREFIX}*.json"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no {LABEL_FILE_PREFIX}*.json; take them from POPE's repository."
        )
    return {
        path.stem.removeprefix(LABEL_FILE_PREFIX): [
            row["label"] != "no" for row in read_json_lines(path, ["label"])
        ]
        for path in paths
    }


def score_splits(
    labels: dict[str, list[bool]], categories: dict[Any, str], answers: list[dict[str, Any]]
) -> tuple[dict[str, SplitScore], list[QuestionScore]]:
    """Pair answers with labels, split by split in order; ``categories`` is the split of each question id.

    Raises:
        ValueError: an unknown or repeated question, or a split with more or fewer answers than labels: it
            would shift every later pair.
    """
    replies: dict[str, list[bool]] = {split: [] for split in labels}
    questions, seen = [], set()
    for answer in answers:
        question_id = answer["question_id"]
        split = categories.get(question_id)
        if split not in labels or question_id in seen or len(replies[split]) == len(labels[split]):
            raise ValueError(f"The answer to question {question_id} has no label of its own (split {split}).")
        seen.add(question_id)
        reply, label = says_yes(answer["text"]), labels[split][len(replies[split])]
        replies[split].append(reply)
        questions.append(QuestionScore(question_id, float(reply == label)))
    scores = {}
    for split, wanted in labels.items():
        if len(replies[split]) != len(wanted):
            raise ValueError(f"The split {split} has {len(wanted)} labels but {len(replies[split])} answers.")
        pairs = Counter(zip(replies[split], wanted, strict=True))
        scores[split] = SplitScore(
            pairs[True, True], pairs[True, False], pairs[False, False], pairs[False, True]
        )
    return scores, questions


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """Score a complete answers file; see ``score_splits`` for what is refused."""
    rows = read_json_lines(data_dir / QUESTIONS, ("question_id", "category"))
    categories = {row["question_id"]: row["category"] for row in rows}
    splits, questions = score_splits(read_labels(data_dir / LABELS), categories, read_answers(answers_file))
    parts = {}
    for name in ("f1", "accuracy", "precision", "recall", "yes_ratio"):
        by_split = {split: 100 * getattr(result, name) for split, result in splits.items()}
        parts[name] = mean(list(by_split.values()))
        parts.update({f"{split}.{name}": value for split, value in by_split.items()})
    return Score("pope", BENCHMARK.metric, parts["f1"], parts, questions)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    metric="mean F1 of the splits",
    folder="pope",
    question_file=QUESTIONS,
    image_folder="val2014",
    files=(
        File("coco/coco_pope_adversarial.json", _SOURCE),
        File("coco/coco_pope_popular.json", _SOURCE),
        File("coco/coco_pope_random.json", _SOURCE),
        File("val2014", "https://cocodataset.org (2014 validation images)"),
    ),
    ground_truth=lambda data_dir: sorted((data_dir / LABELS).glob(f"{LABEL_FILE_PREFIX}*.json")),
    score=score,
)
