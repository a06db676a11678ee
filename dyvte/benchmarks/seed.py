"""SEED-Bench (Li et al., 2023), images and videos, as LLaVA scores it: right is a reply that equals the letter.

Files: ``SEED-Bench.json`` (``question_type``: id of each type by name; ``questions`` with ``question_id``,
``question_type_id``, ``data_type``, ``answer``), ``llava-seed-bench.jsonl`` (questions),
``SEED-Bench-image/<data_id>``, ``SEED-Bench-video-image/<type>_<question_id>.png`` (one frame of each video).
LLaVA's question ids are numbers for images and strings such as ``v12`` for videos.

Parts, in percent: ``total``, ``image``, ``video`` (each where there are such questions), and one for each type under
its own name. Papers that write SEED print ``total``, those that write SEED-IMG print ``image``.

Registered in ``dyvte/benchmarks/__init__.py``; ``scripts/convert_seed_for_submission.py`` writes its uploads. Numbers
must stay those of LLaVA's script.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import Benchmark, File, QuestionScore, Remark, Score, grouped, mean
from dyvte.benchmarks.files import (
    check_known,
    last_answers,
    read_annotations,
    read_answers_and_remarks,
    read_json_lines,
    split_error,
)
from dyvte.io import write_whole

ANNOTATIONS = "SEED-Bench.json"
QUESTIONS = "llava-seed-bench.jsonl"

_SHAPE = {
    "question_type": {str: int},
    "questions": [{"question_id": int | str, "question_type_id": int, "data_type": str, "answer": str}],
}
_SOURCE = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"
_FRAMES = "the videos' sources and scripts/extract_seed_video_frames.py"
_REVISION = "LLaVA-1.5 was scored on an older revision of 19,242 questions, 5,009 of them on videos"


@dataclass(frozen=True)
class Question:
    """One annotated question: ``written_id`` as in the annotations (for uploads), ``id`` as in LLaVA's answers."""

    id: int | str
    written_id: str
    type: int
    data_type: str
    answer: str


@dataclass(frozen=True)
class Annotations:
    """The questions in their order, and the types' names by id."""

    questions: list[Question]
    types: dict[int, str]

    @property
    def asked_types(self) -> list[str]:
        """Names of the types that have questions, by id."""
        return [self.types[number] for number in sorted({question.type for question in self.questions})]


def read_seed(path: Path) -> Annotations:
    """Read ``SEED-Bench.json``; ValueError, naming the question, when it is broken."""
    advice = f"download it again from {_SOURCE}"
    content = read_annotations(path, _SHAPE, advice)
    types = {number: name for name, number in content["question_type"].items()}
    questions: list[Question] = []
    for row in content["questions"]:
        written_id, kind = row["question_id"], row["question_type_id"]
        name = _number_of(written_id)
        if kind not in types:
            raise ValueError(f"{path}: question {name!r} is of type {kind}, which has no name; {advice}.")
        questions.append(Question(name, written_id, kind, row["data_type"], row["answer"]))
    if not questions:
        raise ValueError(f"{path} holds no questions; {advice}.")
    return Annotations(questions, types)


def _number_of(question_id: int | str) -> int | str:
    """The id as a number where its digits make one; otherwise (``v12``) as it is."""
    try:
        return int(question_id)
    except ValueError:
        return question_id


def score_questions(annotations: Annotations, texts: dict[Any, str]) -> dict[str, float]:
    """All accuracies, in percent, of replies by question id; a question without one is wrong."""
    groups = grouped(
        (name, texts.get(question.id) == question.answer)
        for question in annotations.questions
        for name in ("total", question.data_type, annotations.types[question.type])
    )
    names = ("total", "image", "video", *annotations.asked_types)
    return {name: mean(groups[name]) * 100 for name in names if name in groups}


def report(annotations: Annotations, parts: dict[str, float]) -> str:
    """The lines that LLaVA's script prints."""
    titles = dict.fromkeys(annotations.asked_types, "{}") | {
        "total": "Total accuracy",
        "image": "image accuracy",
        "video": "video accuracy",
    }
    return "\n".join(
        f"{title.format(name)}: {parts[name]:.2f}%" for name, title in titles.items() if name in parts
    )


def remarks_on(annotations: Annotations, texts: dict[Any, str]) -> list[Remark]:
    """Remarks on missing answers, and on types and kinds of data for which LLaVA's script crashes."""
    missing = dict.fromkeys(question.id for question in annotations.questions if question.id not in texts)
    remarks = [Remark(question_id, "no answer: counted as wrong") for question_id in missing]
    for number, name in annotations.types.items():
        of_type = [question for question in annotations.questions if question.type == number]
        if all(question.id in texts and texts[question.id] != question.answer for question in of_type):
            what = f"wrong, as all answers of type {name}, over which LLaVA's script stops: 0.00%"
            remarks += [Remark(question.id, what) for question in of_type]
    kinds = {question.data_type for question in annotations.questions}
    what = f"no {{}} questions in {ANNOTATIONS}: no accuracy, where LLaVA's script stops"
    return remarks + [Remark(kind, what.format(kind)) for kind in ("image", "video") if kind not in kinds]


def write_upload(annotations: Annotations, texts: dict[Any, str], path: str | Path) -> None:
    """Write the leaderboard's JSON lines, one for each annotation; the prediction of a missing answer is empty."""
    lines = []
    for question in annotations.questions:
        text = texts.get(question.written_id, texts.get(question.id, ""))
        lines.append(json.dumps({"question_id": question.written_id, "prediction": text}) + "\n")
    write_whole(path, "".join(lines))


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """See ``Scorer``."""
    return score_files(data_dir / ANNOTATIONS, answers_file)[0]


def score_files(annotations_file: Path, answers_file: Path) -> tuple[Score, Annotations, dict[Any, str]]:
    """The score of an answers file, the annotations, and all replies by question id, also to unknown questions."""
    annotations = read_seed(annotations_file)
    answers, remarks = read_answers_and_remarks(answers_file)
    last, unused = last_answers(answers, {question.id for question in annotations.questions})
    if not last:
        raise split_error(answers_file, annotations_file)
    texts = {name: answer["text"] for name, answer in last.items()}
    parts = score_questions(annotations, texts)
    places = {question_id: place for place, question_id in enumerate(texts)}
    in_order = sorted(annotations.questions, key=lambda question: places.get(question.id, len(places)))
    questions = [
        QuestionScore(question.id, float(texts.get(question.id) == question.answer)) for question in in_order
    ]
    remarks += unused + remarks_on(annotations, texts)
    lines = report(annotations, parts)
    score = Score("seed", BENCHMARK.metric, parts["total"], parts, questions, lines, "", remarks)
    return score, annotations, {answer["question_id"]: answer["text"] for answer in answers}


def check_questions(data_dir: Path) -> None:
    """See ``Benchmark``; questions and annotations must be of the same revision."""
    annotations = read_seed(data_dir / ANNOTATIONS)
    ids, path = Counter(question.id for question in annotations.questions), data_dir / QUESTIONS
    videos = sum(question.data_type == "video" for question in annotations.questions)
    revisions = (
        f"{data_dir / ANNOTATIONS} has {ids.total()} questions, {videos} of them on videos, and {QUESTIONS} "
        f"{len(read_json_lines(path))}. They must be of one revision. {_REVISION}."
    )
    if unasked := ids - Counter(check_known(path, ids, f"has no annotation. {revisions}")):
        raise ValueError(f"{path} does not ask question {next(iter(unasked))!r}. {revisions}")


BENCHMARK = Benchmark(
    name="seed",
    title="SEED-Bench",
    metric="accuracy on images and videos",
    folder="seed_bench",
    question_file=QUESTIONS,
    image_folder=".",
    files=(
        File(ANNOTATIONS, _SOURCE),
        File("SEED-Bench-image", _SOURCE),
        File("SEED-Bench-video-image", _FRAMES),
    ),
    ground_truth=lambda data_dir: [data_dir / ANNOTATIONS],
    score=score,
    check_questions=check_questions,
)
