"""GQA, testdev_balanced (Hudson and Manning, 2019): its official figures, after LLaVA's answer conversion.

Files: ``data/testdev_balanced_questions.json`` (a dict of question records by id),
``llava_gqa_testdev_balanced.jsonl`` (questions), ``data/images/``; optional
``data/testdev_balanced_choices.json``, which validity and plausibility need. Ids are strings.

Registered in ``dyvte/benchmarks/__init__.py``. All figures, and the order in which terms are added, are those of
GQA's ``eval.py``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import (
    Benchmark,
    File,
    QuestionScore,
    Remark,
    Score,
    grouped,
    mean,
    sequential_sum,
)
from dyvte.benchmarks.files import check_known, read_annotations, read_answers_and_remarks, split_error

QUESTION_FILE = "llava_gqa_testdev_balanced.jsonl"
QUESTIONS = "data/testdev_balanced_questions.json"
CHOICES = "data/testdev_balanced_choices.json"

_UNCOUNTED_STEPS = ("exist", "query: name", "choose name")
"""Parts of the steps of a question's program that the official count of steps leaves out."""
_RECORD = {
    "answer": str,
    "question?": str,
    "types?": {"structural?": str | None, "semantic?": str | None, "detailed?": str},
    "semantic?": [{"operation": str, "argument": str}],
    "groups?": {"global?": str | None},
    "entailed?": [str],
}

_BREAKDOWNS = ("structural type", "semantic type", "steps number", "words number")
"""The official breakdowns, in the order in which they are printed; their first words stand in names of parts."""

Records = dict[str, dict[str, Any]]
Parts = dict[str, float]


def prediction_of(text: str) -> str:
    """The text as LLaVA's converter gives it to the scorer: in lower case, without trailing periods."""
    return text.rstrip(".").lower()


def read_records(path: Path) -> Records:
    """Question records by id; ValueError unless the file is a dict of records with answers."""
    return read_annotations(path, {str: _RECORD}, "take GQA's own file, of a split with ground truth")


def read_choices(path: Path, balanced: Records) -> Records | None:
    """Valid and plausible answers by question id; None where there is no such file, ValueError where it has no lists
    for a balanced question.
    """
    if not path.is_file():
        return None
    choices = read_annotations(path, {str: {"valid": [str], "plausible": [str]}}, "remove or replace it")
    if missing := [key for key in balanced if key not in choices]:
        raise ValueError(
            f"{path} has no valid and plausible answers for question {missing[0]!r}; remove or replace it."
        )
    return choices


def balanced_of(records: Records) -> Records:
    """The questions that official figures count: those that the records do not mark as unbalanced."""
    return {key: record for key, record in records.items() if record.get("isBalanced", True)}


def score_predictions(records: Records, predictions: dict[str, str], choices: Records | None = None) -> Parts:
    """Every official figure that the files allow, in percent (``distribution`` is a distance: lower is better).

    A balanced question without a prediction counts as wrong everywhere.
    """
    balanced = balanced_of(records)
    groups = correct_by_group(balanced, predictions)
    parts = {name: 100 * mean(groups.pop(name, [])) for name in ("accuracy", "binary", "open")}
    parts |= {name: 100 * mean(scores) for name, scores in sorted(groups.items())}
    if (distribution := answer_distribution_distance(balanced, predictions)) is not None:
        parts["distribution"] = distribution
    if (consistency := consistency_of_correct(balanced, records, predictions)) is not None:
        parts["consistency"] = 100 * consistency
    for part, name in (("validity", "valid"), ("plausibility", "plausible")):
        if choices:
            fits = [
                predictions.get(key) in _choices_of(balanced[key], choices[key], name) for key in balanced
            ]
            parts[part] = 100 * mean([*map(float, fits)])
    return parts


def correct_by_group(balanced: Records, predictions: dict[str, str]) -> dict[str, list[float]]:
    """1 or 0 for each question, for all of them ("accuracy") and for each breakdown."""
    return grouped(
        (name, float(predictions.get(key) == record["answer"]))
        for key, record in balanced.items()
        for name in ("accuracy", *_groups_of(record))
    )


def answer_distribution_distance(records: Records, predictions: dict[str, str]) -> float | None:
    """Chi-square distance of predicted from gold answers within each global group, weighted by group size,
    over 100.

    None where no question belongs to a group.
    """
    groups = grouped((record.get("groups", {}).get("global"), key) for key, record in records.items())
    groups.pop(None, None)
    weighted, total = 0.0, 0
    for keys in groups.values():
        gold = Counter(records[key]["answer"] for key in keys)
        predicted = Counter(predictions.get(key) for key in keys)
        distances = (float(predicted[answer] - count) ** 2 / count for answer, count in gold.items())
        weighted += sequential_sum(distances) * len(keys)
        total += len(keys)
    return weighted / total / 100 if groups else None


def consistency_of_correct(balanced: Records, records: Records, predictions: dict[str, str]) -> float | None:
    """Mean, over correctly answered questions, of the share of the questions they entail that is correct as well.

    None where nothing is entailed, or where an entailed question lacks a record, or is not balanced and lacks a
    prediction: the official script then has no such figure either.
    """
    means, entailing = [], False
    scorable = records.keys() & (predictions.keys() | balanced.keys())
    for key, record in balanced.items():
        entailed = [other for other in record.get("entailed", []) if other != key]
        entailing = entailing or bool(entailed)
        if not entailed or predictions.get(key) != record["answer"]:
            continue
        if not scorable.issuperset(entailed):
            return None
        means.append(mean([float(predictions.get(other) == records[other]["answer"]) for other in entailed]))
    return mean(means) if entailing else None


def report_of(parts: dict[str, float], sizes: dict[str, int]) -> str:
    """The lines of the official script; ``sizes`` are the numbers of questions in the breakdowns."""
    lines = []
    if "validity" not in parts:
        lines.append("Failed to load choices -- cannot evaluate validity or plausibility")
    lines.append("")
    for name in ("binary", "open", "accuracy", "consistency", "validity", "plausibility", "distribution"):
        # Without choices the official script prints validity and plausibility as 0.
        if name in parts or name in ("validity", "plausibility"):
            unit = " (lower is better)" if name == "distribution" else "%"
            lines.append(f"{name.capitalize()}: {parts.get(name, 0):.2f}{unit}")
    for title in _BREAKDOWNS:
        kind = title.split()[0]
        lines += ["", f"Accuracy / {title}:"]
        for part in (part for part in parts if part.startswith(f"{kind}.")):
            name = part.removeprefix(f"{kind}.")
            label = int(name) if kind in ("steps", "words") else name
            lines.append(f"  {label}: {parts[part]:.2f}% ({sizes[part]} questions)")
    return "\n".join(lines) + "\n"


def remarks_on(balanced: Records, records: Records, answers: list[dict[str, Any]]) -> list[Remark]:
    """Remarks on missing, repeated and unknown questions."""
    counts = Counter(answer["question_id"] for answer in answers)
    remarks = [Remark(key, "no answer: counted as wrong") for key in balanced if key not in counts]
    for key, count in counts.items():
        if key not in records:
            remarks.append(Remark(key, "unknown question: ignored", skipped=True))
        elif count > 1:
            remarks.append(Remark(key, f"answered {count} times: the last answer counts"))
    return remarks


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """See ``Scorer``."""
    variant = BENCHMARK.variant(variant)
    records = read_records(data_dir / QUESTIONS)
    balanced = balanced_of(records)
    choices = read_choices(data_dir / CHOICES, balanced)
    answers, remarks = read_answers_and_remarks(answers_file)
    predictions = {answer["question_id"]: prediction_of(answer["text"]) for answer in answers}
    if not predictions.keys() & balanced.keys():
        raise split_error(answers_file, data_dir / QUESTIONS)
    parts = score_predictions(records, predictions, choices)
    sizes = {name: len(scores) for name, scores in correct_by_group(balanced, predictions).items()}
    scored = [key for key in (predictions | balanced) if key in balanced]
    questions = [QuestionScore(key, float(predictions.get(key) == records[key]["answer"])) for key in scored]
    remarks += remarks_on(balanced, records, answers)
    report = report_of(parts, sizes)
    return Score("gqa", BENCHMARK.metric, parts["accuracy"], parts, questions, report, variant, remarks)


def check_questions(data_dir: Path) -> None:
    """See ``Benchmark``."""
    records = read_records(data_dir / QUESTIONS)
    read_choices(data_dir / CHOICES, balanced_of(records))
    complaint = f"has no record in {data_dir / QUESTIONS}; take both files of the same split."
    check_known(data_dir / QUESTION_FILE, records, complaint)


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
    """The ``valid`` or ``plausible`` answers of a question, by GQA's rule for types with "Common" in their name."""
    if "Common" in record.get("types", {}).get("detailed", ""):
        return ["color", "material", "shape"]
    return choices[name]


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA",
    metric="accuracy",
    folder="gqa",
    question_file=QUESTION_FILE,
    image_folder="data/images",
    files=(
        File(QUESTIONS, "https://cs.stanford.edu/people/dorarad/gqa (questions)"),
        File(CHOICES, "https://cs.stanford.edu/people/dorarad/gqa", needed_for="validity and plausibility"),
        File("data/images", "https://cs.stanford.edu/people/dorarad/gqa (images)"),
    ),
    ground_truth=lambda data_dir: [*filter(Path.is_file, (data_dir / QUESTIONS, data_dir / CHOICES))],
    score=score,
    check_questions=check_questions,
)
