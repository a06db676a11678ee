"""MM-Vet (Yu et al., 2023): open answers, graded by a language model.

Files: ``mm-vet.json`` (samples by id, "v1_0" on, with question, answer and capabilities), ``llava-mm-vet.jsonl``
(questions), ``images/``; optional ``bard_set.json`` (ids of the official subset). Grades come from
:mod:`dyvte.benchmarks.judge`, or from the official evaluator, and lie in ``grades/`` beside the answers.

Registered in ``dyvte/benchmarks/__init__.py``; ``scripts/convert_mmvet_for_eval.py`` writes its uploads. Changing
:func:`fingerprint` makes all existing grades those of other answers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyvte.benchmarks import mmvet_grades as grading
from dyvte.benchmarks.benchmark import Benchmark, File, QuestionScore, Remark, Score, mean
from dyvte.benchmarks.files import (
    ID,
    read_annotations,
    read_answers_and_remarks,
    read_json_lines,
    split_error,
)
from dyvte.engine.questions import OPEN_QUESTIONS

SAMPLES = "mm-vet.json"
SUBSET = "bard_set.json"
QUESTIONS = "llava-mm-vet.jsonl"
GRADES = "grades"
ALL, BARD_SET = "all", "bardset"

_SAMPLE = {"question": str, "answer": str, "capability": [str]}
Samples = dict[str, dict[str, Any]]


def sample_id(question_id: Any) -> str:
    """The sample that a question of LLaVA's file asks for."""
    return f"v1_{question_id}"


def question_of(sample: str) -> str | int:
    """The question id, as LLaVA's file has it, of a sample."""
    name = sample.removeprefix("v1_")
    return int(name) if name.isdecimal() else name


def read_samples(data_dir: Path, variant: str = ALL) -> Samples:
    """The annotated samples of a scoring variant (all, or the official subset), in the order of the file.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken; the message names file and sample.
    """
    path = data_dir / SAMPLES
    samples = read_annotations(path, {str: _SAMPLE}, "download it again")
    if variant != BARD_SET:
        return samples
    subset = read_annotations(data_dir / SUBSET, list | dict, "download it again")
    if not (chosen := [key for key in samples if key in subset]):
        raise ValueError(f"{data_dir / SUBSET} names no sample of {SAMPLES}; download it again.")
    return {key: samples[key] for key in chosen}


@dataclass(frozen=True)
class Predictions:
    """Answers by sample, in the order of their file.

    Attributes:
        texts: what is graded and submitted: the last of several answers, and "" for one that is no string.
        ids: by sample, the question id as the answers have it.
        remarks: on answers that are repeated or no string.
    """

    texts: dict[str, str]
    ids: dict[str, Any]
    remarks: list[Remark]


def read_predictions(answers_file: Path) -> Predictions:
    """The predictions of an answers file in LLaVA's JSON lines; ValueError when a line is broken."""
    rows, remarks = read_answers_and_remarks(answers_file)
    texts = {sample_id(row["question_id"]): row["text"] for row in rows}
    ids = {sample_id(row["question_id"]): row["question_id"] for row in rows}
    for key, count in Counter(sample_id(row["question_id"]) for row in rows).items():
        if count > 1:
            remarks.append(Remark(ids[key], f"answered {count} times: the last answer counts"))
    return Predictions(texts, ids, remarks)


def predictions_for(data_dir: Path, answers_file: Path) -> Predictions:
    """Those for samples of ``data_dir``; ValueError when no answer belongs to any."""
    given, samples = read_predictions(answers_file), read_samples(data_dir)
    known = {key: text for key, text in given.texts.items() if key in samples}
    if not known:
        raise split_error(answers_file, data_dir / SAMPLES)
    what = f"no sample of {SAMPLES}: left out"
    unknown = [Remark(given.ids[key], what, skipped=True) for key in given.texts if key not in known]
    return Predictions(known, {key: given.ids[key] for key in known}, given.remarks + unknown)


def fingerprint(predictions: dict[str, str]) -> str:
    """A digest of the predictions, whatever their order: grades are used only for answers with the same digest."""
    return hashlib.sha256(json.dumps(sorted(predictions.items())).encode()).hexdigest()


def score(data_dir: Path, answers_file: Path, variant: str = ALL) -> Score:
    """Score answers that have been graded; the value is the mean over the rounds of grading.

    Raises:
        FileNotFoundError, ValueError: see ``Scorer``; also when grades are missing, incomplete or of other answers.
    """
    variant = BENCHMARK.variant(variant)
    predictions = predictions_for(data_dir, answers_file)
    samples = read_samples(data_dir, variant)
    path = grading.find_grades(answers_file.parent / GRADES, fingerprint(predictions.texts))
    if path is None:
        raise FileNotFoundError(
            f"{answers_file} has not been graded: {answers_file.parent / GRADES} holds no grades. Run "
            "python -m dyvte.benchmarks.judge, or upload results/<name>.json to an MM-Vet evaluator and put its "
            "grade file there."
        )
    grades, rounds = grading.read_grades(path), grading.rounds_of(path)
    if ungraded := [key for key in samples if key not in grades or len(grades[key]["score"]) < rounds]:
        raise ValueError(
            f"{path}: {len(ungraded)} of {len(samples)} samples lack grades of {rounds} rounds, the first of them "
            f"{ungraded[0]!r}; run python -m dyvte.benchmarks.judge again, it goes on from there."
        )
    totals = grading.aggregate({key: sample["capability"] for key, sample in samples.items()}, grades, rounds)
    ids = {key: question_id for key, question_id in predictions.ids.items() if key in samples}
    ids |= {key: question_of(key) for key in samples if key not in ids}
    questions = [QuestionScore(ids[key], mean(grades[key]["score"][:rounds])) for key in ids]
    judges = sorted({name for grade in grades.values() for name in grade["model"] if name})
    remarks = predictions.remarks + _remarks_on_grades(path, ids, predictions.texts, grades, rounds)
    metric = f"{BENCHMARK.metric} by {', '.join(judges)}" if judges else BENCHMARK.metric
    value, report = float(totals.rounds.mean()), totals.report(grading.graded_model(path))
    return Score("mmvet", metric, value, parts_of(totals), questions, report, variant, remarks)


def parts_of(totals: grading.Totals) -> dict[str, float]:
    """Unrounded: means by capability and in total, standard deviation (population) and values of the rounds' totals,
    and means by exact combination of capabilities.
    """
    parts = {name: float(values.mean()) for name, values in totals.capabilities.items()}
    parts["std"] = float(totals.rounds.std())
    parts |= {f"runs.{index}": float(value) for index, value in enumerate(totals.rounds)}
    for name, values in totals.combinations.items():
        if name != grading.TOTAL:
            parts[f"integration.{name}"] = float(values.mean())
    return parts


def check_questions(data_dir: Path) -> None:
    """See ``Benchmark``; each question must have a sample, and each sample a question."""
    samples = read_samples(data_dir)
    rows = read_json_lines(data_dir / QUESTIONS, {"question_id": ID, "image": object, "text": object})
    asked = [sample_id(row["question_id"]) for row in rows]
    for key in asked:
        if key not in samples:
            raise ValueError(f"{data_dir / QUESTIONS} asks for {key!r}, which {SAMPLES} does not have.")
    if missing := [key for key in samples if key not in asked]:
        raise ValueError(
            f"{data_dir / QUESTIONS} lacks {len(missing)} samples of {SAMPLES}, as {missing[0]!r}."
        )


def _remarks_on_grades(
    path: Path, ids: dict[str, Any], texts: dict[str, str], grades: grading.Grades, rounds: int
) -> list[Remark]:
    remarks = []
    if not grading.source_path(path).is_file():
        remarks.append(Remark(path.name, "does not say which answers it grades: taken to be these"))
    for key, question_id in ids.items():
        scores = grades[key]["score"][:rounds]
        if key not in texts:
            if any(scores):
                raise ValueError(
                    f"{path} grades {key!r}, which the answers lack: it belongs to other answers."
                )
            remarks.append(Remark(question_id, "no answer: counted as 0, the judge was not asked"))
            continue
        contents = grades[key]["content"][:rounds]
        read = map(grading.parse_score, contents)
        if numberless := sum(number != value for number, value in zip(read, scores, strict=True)):
            what = f"in {numberless} of {rounds} rounds the judge gave no number: counted as 0"
            remarks.append(Remark(question_id, what))
    return remarks


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    metric="mean grade",
    folder="mm-vet",
    question_file=QUESTIONS,
    image_folder="images",
    files=(
        File(SAMPLES, "mm-vet.zip (link in the README of github.com/yuweihao/MM-Vet)"),
        File("images", "mm-vet.zip (link in the README of github.com/yuweihao/MM-Vet)"),
        File(SUBSET, "mm-vet.zip", needed_for=f"variant {BARD_SET}"),
    ),
    ground_truth=lambda data_dir: [data_dir / SAMPLES],
    score=score,
    variants=(ALL, BARD_SET),
    questions=OPEN_QUESTIONS,
    check_questions=check_questions,
)
