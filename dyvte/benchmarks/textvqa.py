"""TextVQA, validation split (Singh et al., 2019), as LLaVA scores it.

Files: ``TextVQA_0.5.1_val.json`` (annotations), ``llava_textvqa_val_v051_ocr.jsonl`` (questions),
``train_images/<image_id>.jpg``. A question is known by its image and its lower-cased words, because LLaVA's
question ids are image ids.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import Benchmark, File, QuestionScore, Score, mean
from dyvte.benchmarks.files import read_answers, read_json
from dyvte.benchmarks.vqa_text import leave_one_out_accuracy, normalise

ANNOTATIONS = "TextVQA_0.5.1_val.json"


def question_of(prompt: str) -> str:
    """The question within a prompt, in lower case, for each of the three prompt shapes that LLaVA uses.

    Raises:
        ValueError: the prompt has none of these shapes.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if found:
            return found.group(1).lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ValueError(f"No TextVQA question can be read from this prompt: {prompt!r}.")


def read_annotations(path: str | Path) -> dict[tuple[str, str], list[str]]:
    """Normalised human answers by (image id, lower-cased question); of two with the same key the last one
    counts.
    """
    humans: dict[tuple[str, str], list[str]] = {}
    for row in read_json(path)["data"]:
        humans[row["image_id"], row["question"].lower()] = [normalise(answer) for answer in row["answers"]]
    return humans


def score_answers(humans: dict[tuple[str, str], list[str]], answers: list[dict[str, Any]]) -> Score:
    """Score answer lines, all of them and no others: a question without a line is not in the mean.

    Raises:
        ValueError: an answer belongs to no annotated question.
    """
    questions = []
    for answer in answers:
        key = (answer["question_id"], question_of(answer["prompt"]))
        if key not in humans:
            raise ValueError(f"No annotation for question {key[1]!r} on image {key[0]}; is it another split?")
        accuracy = leave_one_out_accuracy(normalise(answer["text"]), humans[key])
        questions.append(QuestionScore(answer["question_id"], accuracy))
    value = 100 * mean([question.score for question in questions])
    return Score("textvqa", BENCHMARK.metric, value, {"accuracy": value}, questions)


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """Score a complete answers file.

    Raises:
        ValueError: questions are missing or answered twice, or an answer belongs to no annotated question.
    """
    humans = read_annotations(data_dir / ANNOTATIONS)
    answers = read_answers(answers_file, ("question_id", "prompt", "text"))
    answered = {(answer["question_id"], question_of(answer["prompt"])) for answer in answers}
    if len(answered) < len(answers) or len(humans.keys() - answered) > 0:
        raise ValueError(
            f"{answers_file} has {len(answers)} answers to {len(answered)} questions, "
            f"but {ANNOTATIONS} has {len(humans)}; run the missing ones, or delete the file and start again."
        )
    return score_answers(humans, answers)


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA",
    metric="accuracy",
    folder="textvqa",
    question_file="llava_textvqa_val_v051_ocr.jsonl",
    image_folder="train_images",
    files=(
        File(ANNOTATIONS, "https://textvqa.org/dataset"),
        File("train_images", "https://textvqa.org/dataset (training and validation images)"),
    ),
    ground_truth=lambda data_dir: [data_dir / ANNOTATIONS],
    score=score,
)
