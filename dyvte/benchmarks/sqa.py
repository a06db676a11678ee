"""ScienceQA, test split (Lu et al., 2022), as LLaVA scores it; papers print the accuracy on questions with an image.

Files: ``problems.json`` (problems by id), ``pid_splits.json`` (ids by split), ``llava_test_CQM-A.json`` (questions),
``images/test/<id>/image.png``. Ids are strings. As in LLaVA, an answer's prompt says whether its question has an
image: a question without an answer is wrong in ``accuracy`` and does not count in ``IMG-accuracy``.

The figures by subject, context and grade are those of ScienceQA's own paper, over all questions. Registered in
``dyvte/benchmarks/__init__.py``; LLaVA's command lines are ``llava.eval.model_vqa_science``, which asks, and
``llava.eval.eval_science_qa``, whose numbers must stay. Answers must keep their whole prompt, with ``<image>`` where
there is an image.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import Benchmark, File, QuestionScore, Remark, Score, grouped, mean
from dyvte.benchmarks.files import (
    last_answers,
    misfit,
    read_annotations,
    read_answers_and_remarks,
    split_error,
)
from dyvte.engine.questions import IMAGE_TOKEN, Item, QuestionFormat, Troubles, image_names, naming
from dyvte.io import read_json

PROBLEMS = "problems.json"
SPLITS = "pid_splits.json"
QUESTIONS = "llava_test_CQM-A.json"
OPTIONS = ("A", "B", "C", "D", "E")
FAILED = "FAILED"  # LLaVA's word for a letter that cannot be read
NO_PROMPT = "Unknown"
LETTER_PROMPT = "Answer with the option's letter from the given choices directly."

# LLaVA's pattern: the unescaped period matches any character.
_SENTENCE = re.compile("The answer is ([A-Z]).")
_GRADES = {"1-6": range(1, 7), "7-12": range(7, 13)}
_SOURCE = "https://github.com/lupantech/ScienceQA (data/scienceqa)"

Problems = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """One problem, and how its answer was read.

    Attributes:
        letter: of the option that the answer names, or ``FAILED``.
        index: of the choice with this letter, or -1.
        prompt, text: of the answer; ``NO_PROMPT`` and ``FAILED`` without one.
    """

    problem_id: str
    problem: dict[str, Any]
    letter: str
    index: int
    prompt: str
    text: str

    @property
    def correct(self) -> bool:
        return self.index == self.problem["answer"]

    @property
    def has_image(self) -> bool:
        return IMAGE_TOKEN in self.prompt


def read_items(args: argparse.Namespace) -> list[Item]:
    """The questions of the file; with ``single_pred_prompt`` they ask for the letter alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a list of conversations; the message names the entries.
    """
    path = Path(args.question_file).expanduser()
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list of questions")
    suffix = f"\n{LETTER_PROMPT}" if getattr(args, "single_pred_prompt", False) else ""
    items, troubles = [], Troubles()
    for number, row in enumerate(rows):
        with troubles.noted():
            items.append(item_of(row, f"{path}, entry {number}", suffix))
    troubles.tell()
    return items


def item_of(row: dict[str, Any], place: str, suffix: str = "") -> Item:
    """A row of LLaVA's ScienceQA files: ``id``, ``conversations`` (the first turn is asked), and ``image`` or none;
    ValueError for any other.
    """
    try:
        name, text = row["id"], row["conversations"][0]["value"].replace(IMAGE_TOKEN, "").strip()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: not a question with id and conversations ({error!r})") from error
    item = Item({"question_id": name}, text, (), place)
    with naming(item):
        images = image_names(row.get("image"))
    prompt = (f"{IMAGE_TOKEN}\n{text}" if images else text) + suffix
    return Item({"question_id": name, "prompt": prompt}, prompt, images, place)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """LLaVA's flags for ScienceQA."""
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    parser.add_argument("--answer-prompter", action="store_true", help="has no effect, as in LLaVA")


def letter_of(text: str, options: Sequence[str] = OPTIONS) -> str:
    """The option that an answer names: alone, before ". ", or in a single sentence "The answer is X.".

    As in LLaVA, any one character but a line break may stand for the sentence's period: "The answer is Boston" names
    B, and "The answer is B" at the end of a text names none.
    """
    if text in options:
        return text
    if text[1:3] == ". " and text[0] in options:
        return text[0]
    found = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else FAILED


def index_of(letter: str, choices: Sequence[str], options: Sequence[str] = OPTIONS) -> int:
    """The index of the choice with this letter; -1 where there is none."""
    return options.index(letter) if letter in options[: len(choices)] else -1


def read_problems(folder: Path, split: str = "test", options: Sequence[str] = OPTIONS) -> Problems:
    """The problems of a split by id, in its order.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such split, or a file is broken; the message names the problem.
    """
    names = read_annotations(folder / SPLITS, {split: [str]}, "take ScienceQA's own file")[split]
    if not names:
        raise ValueError(f"{folder / SPLITS} has no ids in {split!r}.")
    path = folder / PROBLEMS
    problems = read_annotations(path, dict, "take ScienceQA's own file")
    problems = {name: problems.get(name) for name in names}
    if wrong := misfit(problems, {str: {"choices": list, "answer": int}}, path):
        raise ValueError(f"{wrong}; {SPLITS} names it.")
    for name, problem in problems.items():
        if not 0 <= problem["answer"] < len(options):
            raise ValueError(f"{path}: the answer of problem {name!r} is {problem['answer']}, no index.")
    return problems


def judge(
    problems: Problems, answers: Mapping[str, dict[str, Any]], options: Sequence[str] = OPTIONS
) -> tuple[list[Outcome], list[Remark]]:
    """The outcome of each problem, in the order of the problems."""
    outcomes, remarks = [], []
    for name, problem in problems.items():
        answer = answers.get(name, {"text": FAILED, "prompt": NO_PROMPT})
        prompt = answer.get("prompt")
        asked = prompt if isinstance(prompt, str) else NO_PROMPT
        letter = letter_of(answer["text"], options)
        index = index_of(letter, problem["choices"], options)
        outcomes.append(Outcome(name, problem, letter, index, asked, answer["text"]))
        remarks += _remarks_on(outcomes[-1], name in answers, prompt)
    return outcomes, remarks


def figures(outcomes: list[Outcome]) -> dict[str, float]:
    """In percent: ``accuracy``, ``IMG-accuracy`` where a prompt has an image, and the breakdowns for which the
    problems have the fields.
    """
    pairs = [("accuracy", outcome) for outcome in outcomes]
    pairs += [("IMG-accuracy", outcome) for outcome in outcomes if outcome.has_image]
    pairs += [(name, outcome) for outcome in outcomes for name in _groups_of(outcome.problem)]
    groups = grouped((name, outcome.correct) for name, outcome in pairs)
    return {name: mean(correct) * 100 for name, correct in groups.items()}


def report_of(outcomes: list[Outcome], parts: dict[str, float]) -> str:
    """The line that LLaVA's script prints, which divides by zero where no prompt has an image."""
    image = f"{parts['IMG-accuracy']:.2f}%" if "IMG-accuracy" in parts else "none (no prompt has an image)"
    correct = sum(outcome.correct for outcome in outcomes)
    return (
        f"Total: {len(outcomes)}, Correct: {correct}, "
        f"Accuracy: {parts['accuracy']:.2f}%, IMG-Accuracy: {image}"
    )


def score_file(
    folder: Path, answers_file: Path, split: str = "test", options: Sequence[str] = OPTIONS
) -> tuple[Score, list[Outcome]]:
    """The score of an answers file, and the outcome of each problem of the split; errors as of ``Scorer``."""
    problems = read_problems(folder, split, options)
    answers, remarks = read_answers_and_remarks(answers_file)
    last, unused = last_answers(answers, problems)
    if not last:
        raise split_error(answers_file, folder / PROBLEMS)
    outcomes, found = judge(problems, last, options)
    parts = figures(outcomes)
    remarks += unused + found
    if "IMG-accuracy" not in parts:
        remarks.append(Remark("all", "no prompt has an image: the accuracy on images is given as 0"))
    questions = [QuestionScore(outcome.problem_id, float(outcome.correct)) for outcome in outcomes]
    value, report = parts.get("IMG-accuracy", 0.0), report_of(outcomes, parts)
    return Score("sqa", BENCHMARK.metric, value, parts, questions, report, "", remarks), outcomes


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """Score an answers file; see ``score_file``. ``Score.questions`` also has the questions without an image."""
    BENCHMARK.variant(variant)
    return score_file(Path(data_dir), Path(answers_file))[0]


def check_questions(data_dir: Path) -> None:
    """See ``Benchmark``."""
    problems, path = read_problems(data_dir), data_dir / QUESTIONS
    advice = "take both files of the same release"
    for number, row in enumerate(read_annotations(path, [{"id": str}], advice)):
        if row["id"] not in problems:
            raise ValueError(
                f"{path}: entry {number} has the id {row['id']!r}, which is none of the test split in "
                f"{data_dir / SPLITS}; {advice}."
            )


def _groups_of(problem: dict[str, Any]) -> list[str]:
    """The names of the paper's breakdowns in which a problem counts; none for fields it lacks."""
    names = [f"subject.{problem['subject']}"] if problem.get("subject") else []
    if {"hint", "image"} <= problem.keys():
        contexts = {"text": bool(problem["hint"]), "image": bool(problem["image"])}
        contexts["none"] = not any(contexts.values())
        names += [f"context.{name}" for name, applies in contexts.items() if applies]
    grade = str(problem.get("grade", "")).removeprefix("grade")
    names += [f"grade.{name}" for name, grades in _GRADES.items() if grade in map(str, grades)]
    return names


def _remarks_on(outcome: Outcome, answered: bool, prompt: Any) -> list[Remark]:
    """Remarks on what LLaVA's script miscounts or crashes on in one answer."""
    name, has_image_in_data = outcome.problem_id, bool(outcome.problem.get("image"))
    if not answered:
        what = "no answer: wrong, and without a part in the accuracy on images"
        return [Remark(name, what, skipped=has_image_in_data)]
    if not isinstance(prompt, str):
        return [Remark(name, "no prompt: taken as a question without an image", skipped=has_image_in_data)]
    if "image" in outcome.problem and outcome.has_image != has_image_in_data:
        counted = "counted" if outcome.has_image else "not counted"
        shown = f"image in {PROBLEMS}: {has_image_in_data}, in the prompt: {outcome.has_image}"
        return [Remark(name, f"{shown}; {counted} among the images")]
    return []


CONVERSATIONS = QuestionFormat(
    read_items,
    "Answer ScienceQA's questions.",
    add_flags,
    question_file="tables/question.json",
    conv_mode="llava_v0",
    max_new_tokens=1024,
)

BENCHMARK = Benchmark(
    name="sqa",
    title="ScienceQA",
    metric="accuracy on questions with an image",
    folder="scienceqa",
    question_file=QUESTIONS,
    image_folder="images/test",
    files=(
        File(PROBLEMS, _SOURCE),
        File(SPLITS, _SOURCE),
        File("images/test", f"{_SOURCE.split(' ')[0]} (tools/download.sh)"),
    ),
    ground_truth=lambda data_dir: [data_dir / PROBLEMS, data_dir / SPLITS],
    score=score,
    questions=CONVERSATIONS,
    check_questions=check_questions,
)
