"""TextVQA, validation split (Singh et al., 2019), as LLaVA scores it.

Files: ``TextVQA_0.5.1_val.json`` (annotations), ``llava_textvqa_val_v051_ocr.jsonl`` (questions),
``train_images/<image_id>.jpg``. The key of a question is its image id and lower-cased text, because LLaVA's question
ids are image ids (strings). As in LLaVA's script, the mean is over the lines of the answers file: a question answered
twice counts twice, one without an answer does not count.

Registered in ``dyvte/benchmarks/__init__.py``; ``llava.eval.eval_textvqa`` is LLaVA's command line, whose
numbers must stay.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import Benchmark, File, QuestionScore, Remark, Score, mean
from dyvte.benchmarks.files import numbered_lines, read_annotations, read_answers_and_remarks, split_error
from dyvte.benchmarks.vqa_text import leave_one_out_accuracy, normalise

ANNOTATIONS = "TextVQA_0.5.1_val.json"
QUESTION_FILE = "llava_textvqa_val_v051_ocr.jsonl"
HUMANS = 10

Key = tuple[str, str]


def question_of(prompt: Any) -> str:
    """The question in a prompt, in lower case; ValueError unless it has one of LLaVA's three prompt shapes."""
    lines = prompt.split("\n") if isinstance(prompt, str) else []
    if lines and prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if found:
            return found.group(1).lower()
    elif len(lines) == 3 and "Reference OCR token: " in prompt:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ValueError(f"No TextVQA question can be read from this prompt: {prompt!r}.")


def read_humans(path: Path) -> dict[Key, list[str]]:
    """Normalised human answers by (image id, lower-cased question); of two with the same key the last one counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no TextVQA annotation file with ten answers to each question.
    """
    advice = "take TextVQA's own file, of a split with ground truth"
    shape = {"data": [{"image_id": str, "question": str, "answers": [str]}]}
    rows = read_annotations(path, shape, advice)["data"]
    humans: dict[Key, list[str]] = {}
    for number, row in enumerate(rows):
        if len(row["answers"]) != HUMANS:
            raise ValueError(f"{path}: data[{number}] does not have {HUMANS} answers; {advice}.")
        humans[row["image_id"], row["question"].lower()] = [normalise(answer) for answer in row["answers"]]
    return humans


def score_file(annotation_file: Path, answers_file: Path) -> Score:
    """Score an answers file; errors as of ``Scorer``. Answers to unknown questions are left out."""
    answers, remarks = read_answers_and_remarks(answers_file, "prompt")
    humans = read_humans(annotation_file)
    questions, answered = [], set()
    for answer in answers:
        question_id = answer["question_id"]
        try:
            key = (question_id, question_of(answer["prompt"]))
        except ValueError:
            remarks.append(Remark(question_id, "no question in its prompt: left out", skipped=True))
            continue
        if key not in humans:
            remarks.append(Remark(question_id, f"no annotation for {key[1]!r}: left out", skipped=True))
            continue
        if key in answered:
            remarks.append(Remark(question_id, f"another answer to {key[1]!r}: each of them counts"))
        answered.add(key)
        accuracy = leave_one_out_accuracy(normalise(answer["text"]), humans[key])
        questions.append(QuestionScore(question_id, accuracy))
    if not questions:
        raise split_error(answers_file, annotation_file)
    remarks += [
        Remark(image, f"no answer to {question!r}: left out of the mean", skipped=True)
        for image, question in humans
        if (image, question) not in answered
    ]
    value = 100 * mean([question.score for question in questions])
    report = f"{answers_file.stem}\nSamples: {len(questions)}\nAccuracy: {value:.2f}%\n"  # as LLaVA's script
    return Score("textvqa", BENCHMARK.metric, value, {"accuracy": value}, questions, report, "", remarks)


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """Score an answers file; see ``score_file``."""
    BENCHMARK.variant(variant)
    return score_file(data_dir / ANNOTATIONS, Path(answers_file))


def check_questions(data_dir: Path) -> None:
    """See ``Benchmark``."""
    humans = read_humans(data_dir / ANNOTATIONS)
    path = data_dir / QUESTION_FILE
    for number, row in numbered_lines(path, {"question_id": str, "text": object}):
        try:
            question = question_of(row["text"])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if (row["question_id"], question) not in humans:
            raise ValueError(
                f"{path}, line {number}: no annotation for {question!r} on image {row['question_id']!r} in "
                f"{data_dir / ANNOTATIONS}; take both files of the same split."
            )


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA",
    metric="accuracy",
    folder="textvqa",
    question_file=QUESTION_FILE,
    image_folder="train_images",
    files=(
        File(ANNOTATIONS, "https://textvqa.org/dataset"),
        File("train_images", "https://textvqa.org/dataset (training and validation images)"),
    ),
    ground_truth=lambda data_dir: [data_dir / ANNOTATIONS],
    score=score,
    check_questions=check_questions,
)
