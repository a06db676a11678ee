"""VQAv2 (Goyal et al., 2017): scores of the validation split; test-dev is uploaded to EvalAI instead.

Files: for the validation split ``llava_vqav2_mscoco_val2014.jsonl`` (questions, written by
``scripts/convert_vqav2_questions.py``), ``v2_mscoco_val2014_annotations.json`` and ``val2014/*.jpg``; for test-dev
``llava_vqav2_mscoco_test-dev2015.jsonl`` (questions), ``llava_vqav2_mscoco_test2015.jsonl`` (all questions of an
upload) and ``test2015/*.jpg``. Question ids are whole numbers.

Answers in LLaVA's JSON lines are scored as LLaVA uploads them: normalised as for TextVQA first. A JSON array of
``{"question_id", "answer"}``, the official format of results, is taken as it is. Evaluators (two
official versions, and lmms-eval's) then normalise once more before they compare: these are the scoring variants.

Registered in ``dyvte/benchmarks/__init__.py``; ``scripts/convert_vqav2_for_submission.py`` writes uploads. A new
evaluator is a new variant: numbers of the others must stay.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import Benchmark, File, QuestionScore, Remark, Score, grouped
from dyvte.benchmarks.check import EVAL_ZIP
from dyvte.benchmarks.files import (
    ID,
    check_known,
    last_answers,
    read_annotations,
    read_answers_and_remarks,
    read_json_lines,
    split_error,
)
from dyvte.benchmarks.vqa_text import (
    DIGITS_WITH_COMMAS,
    mean_credit,
    normalise,
    normalise_words,
    strip_punctuation,
)

ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
VAL_QUESTIONS = "llava_vqav2_mscoco_val2014.jsonl"
DEV_QUESTIONS = "llava_vqav2_mscoco_test-dev2015.jsonl"
TEST_QUESTIONS = "llava_vqav2_mscoco_test2015.jsonl"
UPLOAD_ADVICE = (
    "VQAv2's test splits have no public answers: upload answers_upload/<split>/<model>.json, which "
    "scripts/convert_vqav2_for_submission.py writes, to the phase test-dev of EvalAI's challenge 830"
)

_RECORD = {"question_id": int, "question_type": object, "answer_type": object, "answers": [{"answer": str}]}
_DIGITS_WITH_ONE_COMMA = re.compile(r"\d,\d")

ComparedTexts = tuple[str, list[str]]
"""A prediction and the human answers, in annotator order, in the form in which an evaluator compares them."""


def normalise_2021(prediction: str, humans: list[str]) -> ComparedTexts:
    """GT-Vision-Lab's evaluator since 2021-03-11: where all humans agree, nothing is normalised."""
    prediction, humans = _one_line(prediction), [_one_line(human) for human in humans]
    if len(set(humans)) == 1:
        return prediction, humans
    return _official_form(prediction), [_official_form(human) for human in humans]


def normalise_2015(prediction: str, humans: list[str]) -> ComparedTexts:
    """GT-Vision-Lab's evaluator before: human answers lose only punctuation, and where all agree not even that."""
    if len(set(humans)) > 1:
        humans = [strip_punctuation(human, _DIGITS_WITH_ONE_COMMA) for human in humans]
    return _official_form(_one_line(prediction)), humans


def normalise_always(prediction: str, humans: list[str]) -> ComparedTexts:
    """lmms-eval's evaluator: the prediction and all human answers are normalised."""
    prediction, *humans = (
        _official_form(_one_line(text), DIGITS_WITH_COMMAS) for text in (prediction, *humans)
    )
    return prediction, humans


VARIANTS: dict[str, Callable[[str, list[str]], ComparedTexts]] = {
    "2021": normalise_2021,
    "2015": normalise_2015,
    "always": normalise_always,
}


def accuracy_of(prediction: str, answers: list[dict[str, Any]], variant: str) -> float:
    """Mean over the humans of min(1, agreement with the others / 3), between 0 and 1.

    The others are those whose record differs, as in the original: humans with equal records, which only missing
    answer ids can make, do not support each other.
    """
    said, humans = VARIANTS[variant](prediction, [answer["answer"] for answer in answers])
    records = [{**answer, "answer": human} for answer, human in zip(answers, humans, strict=True)]
    agreeing = [record for record in records if record["answer"] == said]
    return mean_credit([sum(other != record for other in agreeing) for record in records])


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of an official annotation file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no annotation file of VQA; the message names the entry.
    """
    source = "take it from visualqa.org/download.html"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {source}. {UPLOAD_ADVICE}.")
    records = read_annotations(path, {"annotations": [_RECORD]}, source)["annotations"]
    counts = Counter(record["question_id"] for record in records)
    for number, record in enumerate(records):
        if counts[record["question_id"]] > 1 or not record["answers"]:
            what = "has no answers" if not record["answers"] else "has a question_id that is used twice"
            raise ValueError(f"{path}: annotations[{number}] {what} ({record['question_id']}); {source}.")
    if not records:
        raise ValueError(f"{path} holds no annotations; {source}.")
    return records


def read_predictions(path: Path) -> tuple[list[dict[str, Any]], list[Remark], bool]:
    """Objects with ``question_id`` and ``answer``, a string, remarks, and whether the file is official results (a
    JSON array of such objects).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken or empty; the message names the line or entry.
    """
    official = path.is_file() and path.read_text(encoding="utf-8", errors="replace").lstrip().startswith("[")
    if not official:
        answers, remarks = read_answers_and_remarks(path)
        rows = [{"question_id": row["question_id"], "answer": normalise(row["text"])} for row in answers]
        return rows, remarks, official
    rows, remarks = read_annotations(path, [{"question_id": ID, "answer": object}], "write it again"), []
    for row in rows:
        if not isinstance(row["answer"], str):
            what = f"answer is {row['answer']!r:.40}, not a string: taken as an empty answer"
            remarks.append(Remark(row["question_id"], what))
            row["answer"] = ""
    return rows, remarks, official


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """Score answers to the validation split; see ``Scorer``. Its figures are ``overall``, ``answer_type.*`` and
    ``question_type.*``.

    A question without an answer is scored as an empty answer, as it is in LLaVA's uploads; in a results file it is
    wrong.
    """
    variant = BENCHMARK.variant(variant)
    path, answers_file = Path(data_dir) / ANNOTATIONS, Path(answers_file)
    records = read_records(path)
    answers, remarks, official = read_predictions(answers_file)
    predictions, unused = last_answers(answers, {record["question_id"] for record in records})
    if not predictions:
        raise ValueError(f"{split_error(answers_file, path)} {UPLOAD_ADVICE}.")
    remarks += unused
    empty = None if official else {"answer": ""}
    questions, pairs = [], []
    for record in records:
        name = record["question_id"]
        answer = predictions.get(name, empty)
        accuracy = accuracy_of(answer["answer"], record["answers"], variant) if answer else 0.0
        if name not in predictions:
            remarks.append(Remark(name, "no answer: " + ("wrong" if official else "scored as an empty one")))
        questions.append(QuestionScore(name, accuracy))
        kinds = ("question_type", "answer_type")
        pairs += [("overall", accuracy), *((f"{kind}.{record[kind]}", accuracy) for kind in kinds)]
    parts = {name: 100 * sum(scores) / len(scores) for name, scores in grouped(pairs).items()}
    report = report_of(parts)
    if official:
        report += f"\n\n{answers_file.name} is an official results file: its answers are taken as they are."
    return Score("vqav2", BENCHMARK.metric, parts["overall"], parts, questions, report, variant, remarks)


def report_of(parts: Mapping[str, float]) -> str:
    """What the official script prints; figures are rounded to two decimals as there."""
    lines = [f"Overall Accuracy is: {round(parts['overall'], 2):.02f}", ""]
    for title, prefix in (("Question", "question_type."), ("Answer", "answer_type.")):
        lines.append(f"Per {title} Type Accuracy is the following:")
        for name, value in parts.items():
            if name.startswith(prefix):
                lines.append(f"{name.removeprefix(prefix)} : {round(value, 2):.02f}")
        lines += ["", ""]
    return "\n".join(lines).rstrip()


def check_questions(data_dir: Path) -> None:
    """See ``Benchmark``. One complete split is enough; of each split that is there, the files must fit together."""
    pairs = ((VAL_QUESTIONS, ANNOTATIONS), (DEV_QUESTIONS, TEST_QUESTIONS))
    there = [pair for pair in pairs if all((data_dir / name).is_file() for name in pair)]
    if not there:
        needs = " or ".join(f"{first} and {second}" for first, second in pairs)
        raise FileNotFoundError(f"{data_dir} needs {needs}; docs/evaluation.md says where they come from.")
    for asked, frame in there:
        if frame == ANNOTATIONS:
            known = {record["question_id"] for record in read_records(data_dir / frame)}
        else:
            known = {row["question_id"] for row in read_json_lines(data_dir / frame, {"question_id": ID})}
        check_known(data_dir / asked, known, f"is not in {frame}; take both files of the same split.")


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def _official_form(text: str, digits_with_comma: re.Pattern[str] = _DIGITS_WITH_ONE_COMMA) -> str:
    """The official normalisation of punctuation, digits and articles."""
    return normalise_words(strip_punctuation(text, digits_with_comma))


BENCHMARK = Benchmark(
    name="vqav2",
    title="VQAv2",
    metric="accuracy",
    folder="vqav2",
    question_file=VAL_QUESTIONS,
    image_folder="val2014",
    files=(
        File(
            VAL_QUESTIONS,
            "scripts/convert_vqav2_questions.py, from visualqa.org's v2_OpenEnded_mscoco_val2014_questions.json",
            needed_for="the validation split",
        ),
        File(ANNOTATIONS, "https://visualqa.org/download.html", needed_for="the validation split"),
        File(
            "val2014", "https://cocodataset.org (2014 validation images)", needed_for="the validation split"
        ),
        File(DEV_QUESTIONS, EVAL_ZIP, needed_for="test-dev"),
        File(TEST_QUESTIONS, EVAL_ZIP, needed_for="test-dev"),
        File("test2015", "https://cocodataset.org (2015 test images)", needed_for="test-dev"),
    ),
    ground_truth=lambda data_dir: [data_dir / ANNOTATIONS],
    score=score,
    variants=tuple(VARIANTS),
    check_questions=check_questions,
)
