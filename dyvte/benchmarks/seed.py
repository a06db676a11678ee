"""SEED-Bench (Li et al., 2023), images and videos, as LLaVA scores it.

Files: ``SEED-Bench.json`` (``question_type``: id of each type by name; ``questions`` with ``question_id``,
``question_type_id``, ``data_type``, ``answer``), ``llava-seed-bench.jsonl`` (questions),
``SEED-Bench-image/<data_id>``, ``SEED-Bench-video-image/<type>_<question_id>.png`` (one frame of each video).
LLaVA's question ids are numbers for images and strings such as ``v12`` for videos, and a reply is right when it is
the letter, exactly.

Parts, in percent: ``total``, ``image``, ``video`` (each where there are such questions), and one for each type under
its own name. Papers that write SEED print ``total``, those that write SEED-IMG print ``image``.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import Benchmark, File, QuestionScore, Remark, Score
from dyvte.benchmarks.files import check_known, other_split, read_answers_and_remarks, read_json_lines
from dyvte.io import read_json, write_whole

ANNOTATIONS = "SEED-Bench.json"
QUESTIONS = "llava-seed-bench.jsonl"

_SOURCE = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"
_FRAMES = "the videos' sources and scripts/extract_seed_video_frames.py"
_REVISION = "LLaVA-1.5 was scored on an older revision of 19,242 questions, 5,009 of them on videos"


@dataclass(frozen=True)
class Question:
    """One annotated question. ``id`` is a number wherever the annotation's is one, as in LLaVA's answers."""

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


def read_annotations(path: str | Path) -> Annotations:
    """Read ``SEED-Bench.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken; the message names the question.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not {"questions", "question_type"} <= content.keys():
        raise ValueError(f"{path} lacks questions or question_type; download it again from {_SOURCE}.")
    types = {number: name for name, number in content["question_type"].items()}
    questions = []
    for place, row in enumerate(content["questions"], start=1):
        try:
            about = row["question_type_id"], row["data_type"], row["answer"]
            question = Question(number_of(row["question_id"]), row["question_id"], *about)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}, question {place} of the list is broken ({error!r}).") from None
        if question.type not in types:
            raise ValueError(
                f"{path}, question {question.id!r} is of type {question.type}, which has no name."
            )
        questions.append(question)
    if not questions:
        raise ValueError(f"{path} holds no questions; download it again from {_SOURCE}.")
    return Annotations(questions, types)


def number_of(question_id: Any) -> Any:
    """The id as a number where it is one; otherwise (``v12``) as it is."""
    try:
        return int(question_id)
    except (TypeError, ValueError):
        return question_id


def score_questions(annotations: Annotations, texts: dict[Any, str]) -> dict[str, float]:
    """All accuracies, in percent.

    Args:
        texts: replies by question id; a question without one is wrong.
    """
    groups: dict[str, list[bool]] = defaultdict(list)
    for question in annotations.questions:
        for name in ("total", question.data_type, annotations.types[question.type]):
            groups[name].append(texts.get(question.id) == question.answer)
    names = ("total", "image", "video", *annotations.asked_types)
    return {name: sum(groups[name]) / len(groups[name]) * 100 for name in names if name in groups}


def report(annotations: Annotations, parts: dict[str, float]) -> str:
    """What LLaVA's script prints."""
    lines = [f"{name}: {parts[name]:.2f}%" for name in annotations.asked_types]
    kinds = [kind for kind in ("total", "image", "video") if kind in parts]
    return "\n".join(
        lines + [f"{kind.replace('total', 'Total')} accuracy: {parts[kind]:.2f}%" for kind in kinds]
    )


def remarks_on(
    annotations: Annotations, answers: list[dict[str, Any]], texts: dict[Any, str]
) -> list[Remark]:
    """What is remarkable about answers: unknown, repeated or missing, and types over which LLaVA's script stops."""
    known = {question.id for question in annotations.questions}
    last = {answer["question_id"]: answer for answer in answers}
    remarks = []
    for answer in answers:
        question_id = answer["question_id"]
        if question_id not in known:
            hint = "; its id should be a number" if number_of(question_id) in known else ""
            remarks.append(
                Remark(question_id, f"not a question of {ANNOTATIONS}: ignored{hint}", skipped=True)
            )
        elif last[question_id] is not answer:
            remarks.append(Remark(question_id, "a later answer counts instead of this one", skipped=True))
    missing = [question.id for question in annotations.questions if question.id not in texts]
    remarks += [Remark(question_id, "no answer: counted as wrong") for question_id in dict.fromkeys(missing)]
    for number, name in annotations.types.items():
        of_type = [question for question in annotations.questions if question.type == number]
        if all(question.id in texts and texts[question.id] != question.answer for question in of_type):
            what = f"wrong, as all answers of type {name}, over which LLaVA's script stops: 0.00%"
            remarks += [Remark(question.id, what) for question in of_type]
    kinds = {question.data_type for question in annotations.questions}
    remarks += [
        Remark(kind, f"no {kind} questions in {ANNOTATIONS}: no accuracy, where LLaVA's script stops")
        for kind in ("image", "video")
        if kind not in kinds
    ]
    return remarks


def write_upload(annotations: Annotations, texts: dict[Any, str], path: str | Path) -> None:
    """Write the leaderboard's JSON lines, one for each annotation; the prediction of a missing answer is empty."""
    lines = []
    for question in annotations.questions:
        text = texts.get(question.written_id, texts.get(question.id, ""))
        lines.append(json.dumps({"question_id": question.written_id, "prediction": text}) + "\n")
    write_whole(path, "".join(lines))


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """See ``Scorer``."""
    annotations = read_annotations(data_dir / ANNOTATIONS)
    return score_answers_file(annotations, data_dir / ANNOTATIONS, answers_file)[0]


def score_answers_file(
    annotations: Annotations, annotations_file: Path, answers_file: Path
) -> tuple[Score, dict[Any, str]]:
    """The score of an answers file, and the replies by question id."""
    answers, remarks = read_answers_and_remarks(answers_file)
    texts = {answer["question_id"]: answer["text"] for answer in answers}
    if not any(question.id in texts for question in annotations.questions):
        raise other_split(answers_file, annotations_file)
    remarks += remarks_on(annotations, answers, texts)
    parts = score_questions(annotations, texts)
    places = {question_id: place for place, question_id in enumerate(texts)}
    in_order = sorted(annotations.questions, key=lambda question: places.get(question.id, len(places)))
    questions = [
        QuestionScore(question.id, float(texts.get(question.id) == question.answer)) for question in in_order
    ]
    lines = report(annotations, parts)
    return Score("seed", BENCHMARK.metric, parts["total"], parts, questions, lines, "", remarks), texts


def check_questions(data_dir: Path) -> None:
    """Questions and annotations must be of the same revision."""
    annotations = read_annotations(data_dir / ANNOTATIONS)
    ids, path = Counter(question.id for question in annotations.questions), data_dir / QUESTIONS
    videos = sum(question.data_type == "video" for question in annotations.questions)
    revisions = (
        f"{data_dir / ANNOTATIONS} has {ids.total()} questions, {videos} of them on videos, and {QUESTIONS} "
        f"{len(read_json_lines(path))}. They must be of one revision. {_REVISION}."
    )
    unasked = ids - Counter(check_known(path, ids, f"has no annotation. {revisions}"))
    if unasked:
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
