"""GQA, testdev_balanced (Hudson and Manning, 2019): its official figures, after LLaVA's answer conversion.

Files: ``data/testdev_balanced_questions.json`` (a dict of question records by id),
``llava_gqa_testdev_balanced.jsonl`` (questions), ``data/images/``; optional
``data/testdev_balanced_choices.json``, which validity and plausibility need. Consistency appears when the
answers cover all entailed questions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import Benchmark, File, QuestionScore, Score, mean
from dyvte.benchmarks.files import read_answers, read_json

QUESTIONS = "data/testdev_balanced_questions.json"
CHOICES = "data/testdev_balanced_choices.json"

# Steps of a question's program that the official count of steps leaves out.
_UNCOUNTED_STEPS = ("exist", "query: name", "choose name")

Records = dict[str, dict[str, Any]]


def prediction_of(text: str) -> str:
    """What LLaVA's converter hands to the scorer: no trailing periods, lower case, nothing else changed."""
    return text.rstrip(".").lower()


def predictions_of(answers: list[dict[str, Any]]) -> dict[str, str]:
    """Predictions by question id; of two answers to one question the last one counts."""
    return {str(answer["question_id"]): prediction_of(answer["text"]) for answer in answers}


def score_predictions(
    records: Records, predictions: dict[str, str], choices: Records | None = None
) -> dict[str, float]:
    """Every official figure that the files allow, in percent (``distribution`` is a distance: low is good).

    Raises:
        ValueError: a balanced question has no prediction.
    """
    balanced = {key: record for key, record in records.items() if record.get("isBalanced", True)}
    missing = [key for key in balanced if key not in predictions]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(balanced)} GQA questions have no answer, for example {missing[0]}."
        )
    correct = {key: float(predictions[key] == record["answer"]) for key, record in balanced.items()}
    groups: dict[str, list[float]] = defaultdict(list)
    for key, record in balanced.items():
        for name in _groups_of(record):
            groups[name].append(correct[key])
    parts = {"accuracy": 100 * mean(list(correct.values()))}
    parts.update({name: 100 * mean(scores) for name, scores in sorted(groups.items())})
    distribution = answer_distribution_distance(balanced, predictions)
    if distribution is not None:
        parts["distribution"] = distribution
    consistency = consistency_of_correct(balanced, records, predictions)
    if consistency is not None:
        parts["consistency"] = 100 * consistency
    if choices is not None:
        for name in ("valid", "plausible"):
            fits = [
                float(predictions[key] in _choices_of(record, choices[key], name))
                for key, record in balanced.items()
            ]
            parts["validity" if name == "valid" else "plausibility"] = 100 * mean(fits)
    return parts


def answer_distribution_distance(records: Records, predictions: dict[str, str]) -> float | None:
    """Chi-square distance of predicted from gold answers within each global group, weighted by group size,
    over 100.

    None where no question belongs to a group.
    """
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    predicted: dict[str, Counter[str]] = defaultdict(Counter)
    for key, record in records.items():
        group = record.get("groups", {}).get("global")
        if group is not None:
            gold[group][record["answer"]] += 1
            predicted[group][predictions[key]] += 1
    if not gold:
        return None
    weighted, total = 0.0, 0
    for group, counts in gold.items():
        distance = sum((predicted[group][answer] - count) ** 2 / count for answer, count in counts.items())
        weighted += distance * counts.total()
        total += counts.total()
    return weighted / total / 100


def consistency_of_correct(balanced: Records, records: Records, predictions: dict[str, str]) -> float | None:
    """Mean over correctly answered questions of how many of the questions they entail are correct as well.

    None where nothing is entailed, or where entailed questions lack a record or a prediction.
    """
    means = []
    for key, record in balanced.items():
        entailed = [other for other in record.get("entailed", []) if other != key]
        if not entailed or predictions[key] != record["answer"]:
            continue
        if any(other not in records or other not in predictions for other in entailed):
            return None
        means.append(mean([float(predictions[other] == records[other]["answer"]) for other in entailed]))
    return mean(means) if means else None


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """Score an answers file that covers all balanced questions.

    Raises:
        ValueError: a balanced question has no answer.
    """
    records = read_json(data_dir / QUESTIONS)
    choices = read_json(data_dir / CHOICES) if (data_dir / CHOICES).is_file() else None
    predictions = predictions_of(read_answers(answers_file))
    parts = score_predictions(records, predictions, choices)
    questions = [
        QuestionScore(key, float(prediction == records[key]["answer"]))
        for key, prediction in predictions.items()
        if key in records and records[key].get("isBalanced", True)
    ]
    return Score("gqa", BENCHMARK.metric, parts["accuracy"], parts, questions)


def _groups_of(record: dict[str, Any]) -> list[str]:
    """Names of the breakdowns in which a question counts."""
    types = record.get("types", {})
    names = [f"{kind}.{types[kind]}" for kind in ("structural", "semantic") if types.get(kind)]
    if types.get("structural"):
        names.append("open" if types["structural"] == "query" else "binary")
    if "question" in record:
        names.append(f"words.{len(record['question'].split()):02d}")
    if "semantic" in record:
        steps = [f"{step['operation']}: {step['argument']}" for step in record["semantic"]]
        names.append(f"steps.{sum(not any(word in step for word in _UNCOUNTED_STEPS) for step in steps):02d}")
    return names


def _choices_of(record: dict[str, Any], choices: dict[str, list[str]], name: str) -> list[str]:
    if "Common" in record.get("types", {}).get("detailed", ""):
        return ["color", "material", "shape"]
    return choices[name]


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA",
    metric="accuracy",
    folder="gqa",
    question_file="llava_gqa_testdev_balanced.jsonl",
    image_folder="data/images",
    files=(
        File(QUESTIONS, "https://cs.stanford.edu/people/dorarad/gqa (questions)"),
        File(CHOICES, "https://cs.stanford.edu/people/dorarad/gqa", optional="validity and plausibility"),
        File("data/images", "https://cs.stanford.edu/people/dorarad/gqa (images)"),
    ),
    ground_truth=lambda data_dir: [
        path for path in (data_dir / QUESTIONS, data_dir / CHOICES) if path.is_file()
    ],
    score=score,
)
