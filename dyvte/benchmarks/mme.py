"""MME (Fu et al., 2023), as LLaVA scores it: the points of fourteen yes/no tasks.

Files: ``MME_Benchmark_release_version/<task>/`` (images and texts side by side, or in ``images`` and
``questions_answers_YN``; a line of a text is a question, a tab, and Yes or No), ``llava_mme.jsonl`` (questions; the
two about one image share their id). LLaVA's converter writes the answers to one file per task, which the official
script scores (see ``mme_pairs``); here the same is done in memory.

Parts: ``<task>.acc`` (percent of questions), ``<task>.acc+`` (percent of images with both questions right),
``<task>.score`` (their sum, 200 at most); ``perception`` and ``cognition`` (sums of task scores, 2000 and 800 at
most), and ``total``, the sum of the two. Papers print ``perception``.

Registered in ``dyvte/benchmarks/__init__.py``. ``scripts/convert_answer_to_mme.py`` and
``scripts/mme_calculation.py`` write and score task files, which must stay byte for byte those of LLaVA's converter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dyvte.benchmarks.benchmark import Benchmark, File, Remark, Score, sequential_sum
from dyvte.benchmarks.files import ANSWER, numbered_lines, read_answers_and_remarks, split_error
from dyvte.benchmarks.mme_pairs import Key, Reply, TaskScore, score_lines, score_task
from dyvte.io import read_text

QUESTIONS = "llava_mme.jsonl"
RELEASE = "MME_Benchmark_release_version"
GROUPS = {
    "Perception": (
        *("existence", "count", "position", "color", "posters"),
        *("celebrity", "scene", "landmark", "artwork", "OCR"),
    ),
    "Cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
TASKS = (*GROUPS["Perception"], *GROUPS["Cognition"])

_SHORT_ANSWER = "Answer the question using a single word or phrase."
_YES_OR_NO = "Please answer yes or no."
_SOURCE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"


def truth_files(release: str | Path, task: str) -> list[Path]:
    """The texts of a task, in either folder form; none where the task is missing, FileNotFoundError where it has a
    folder of images, but none of texts.
    """
    folder = Path(release, task)
    if (folder / "images").exists():
        folder /= "questions_answers_YN"
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is missing beside its images; unpack MME again.")
    return sorted(folder.glob("*.txt"))


def read_ground_truth(release: str | Path) -> dict[Key, str]:
    """Yes or No, as the texts spell it, for every question of the tasks that are there.

    Raises:
        FileNotFoundError: no task is there, or one has images but no texts.
        ValueError: a line is not a question, a tab, and Yes or No.
    """
    truths: dict[Key, str] = {}
    for task in TASKS:
        for path in truth_files(release, task):
            truths.update({(task, path.name, question): truth for question, truth in _read_text(path)})
    if not truths:
        raise FileNotFoundError(
            f"{release} holds no text of any task; docs/evaluation.md says where to get MME."
        )
    return truths


def key_of(question_id: Any, prompt: Any, truths: dict[Key, str]) -> Key:
    """The key by which LLaVA's converter looks up an answer. It is missing in ``truths`` for an unknown question."""
    if not isinstance(question_id, str) or not isinstance(prompt, str):
        return "", "", ""
    parts = question_id.split("/")
    task, file = parts[0], parts[-1].split(".")[0] + ".txt"
    if _SHORT_ANSWER in prompt:
        prompt = prompt.replace(_SHORT_ANSWER, "").strip()
    if _YES_OR_NO in prompt:
        return task, file, prompt
    key = task, file, f"{prompt} {_YES_OR_NO}"
    return key if key in truths else (task, file, f"{prompt}  {_YES_OR_NO}")  # some texts have two blanks


def replies_by_task(
    answers: Iterable[dict[str, Any]], truths: dict[Key, str]
) -> tuple[dict[str, list[Reply]], list[Remark]]:
    """The answers that have a ground truth, by task and in their order, and a remark on each other one."""
    replies: dict[str, list[Reply]] = defaultdict(list)
    remarks = []
    for place, answer in enumerate(answers):
        question_id, prompt = answer["question_id"], answer["prompt"]
        key = key_of(question_id, prompt, truths)
        if key in truths:
            replies[key[0]].append(Reply(place, question_id, key, truths[key], answer["text"]))
        else:
            remarks.append(Remark(question_id, f"no ground truth for {prompt!r}: skipped", skipped=True))
    return replies, remarks


def write_task_files(replies: dict[str, list[Reply]], folder: str | Path) -> None:
    """Write ``<task>.txt`` for the official script for each task with answers; remove it for the other tasks."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        path = folder / f"{task}.txt"
        if replies.get(task):
            # JSON can hold half a surrogate pair, which UTF-8 cannot encode
            written = "".join(reply.written for reply in replies[task]).encode("utf-8", errors="replace")
            path.write_bytes(written)
        else:
            path.unlink(missing_ok=True)


def score_task_files(folder: str | Path) -> dict[str, TaskScore]:
    """The scores of all tasks from their files, as the official script reads them.

    Raises:
        FileNotFoundError: a task has no file.
        ValueError: the official script would crash on a file.
    """
    scores = {}
    for task in TASKS:
        path = Path(folder, f"{task}.txt")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; scripts/convert_answer_to_mme.py writes it.")
        with path.open(encoding="utf-8") as file:
            lines = file.readlines()
        try:
            scores[task] = score_lines(lines)[0]
        except ValueError as error:
            raise ValueError(
                f"{path}: {error}; score the answers file with python -m dyvte.benchmarks."
            ) from None
    return scores


def sum_of(tasks: Iterable[str], scores: dict[str, TaskScore]) -> float:
    """The sum of the scores of those tasks that have one."""
    return sequential_sum(scores[task].score for task in tasks if task in scores)


def report(scores: dict[str, TaskScore]) -> str:
    """The lines that the official script prints."""
    lines = []
    for group, tasks in GROUPS.items():
        lines += [f"=========== {group} ===========", f"total score: {sum_of(tasks, scores)} \n"]
        lines += [f"\t {task}  score: {scores[task].score}" for task in tasks if task in scores]
        lines.append("\n")
    return "\n".join(lines)


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """See ``Scorer``."""
    truths = read_ground_truth(data_dir / RELEASE)
    answers, remarks = read_answers_and_remarks(answers_file, "prompt")
    replies, skipped = replies_by_task(answers, truths)
    if not replies:
        raise split_error(answers_file, data_dir / RELEASE)
    remarks += skipped
    scores, questions, parts = {}, [], {}
    for task in TASKS:
        task_truths = {key: truth for key, truth in truths.items() if key[0] == task}
        if not task_truths:
            remarks.append(
                Remark(task, f"no texts in {RELEASE}: the sums are without this task", skipped=True)
            )
            continue
        outcome = score_task(replies.get(task, []), task_truths)
        scores[task] = outcome.score
        questions += outcome.questions
        remarks += outcome.remarks
        parts[f"{task}.score"] = outcome.score.score
        parts[f"{task}.acc"] = outcome.score.acc
        parts[f"{task}.acc+"] = outcome.score.acc_plus
    perception, cognition = (sum_of(tasks, scores) for tasks in GROUPS.values())
    sums = {"perception": perception, "cognition": cognition, "total": perception + cognition}
    in_order = [question for _, question in sorted(questions, key=lambda one: one[0])]
    return Score("mme", BENCHMARK.metric, perception, sums | parts, in_order, report(scores), remarks=remarks)


def check_questions(data_dir: Path) -> None:
    """See ``Benchmark``; the question file must ask each question of the texts, and no other."""
    truths = read_ground_truth(data_dir / RELEASE)
    asked = set()
    for number, row in numbered_lines(data_dir / QUESTIONS, ANSWER):
        key = key_of(row["question_id"], row["text"], truths)
        if key not in truths:
            raise ValueError(
                f"{data_dir / QUESTIONS}, line {number}: no text in {data_dir / RELEASE} has this question; "
                f"expected {f'{key[0]}/.../{key[1]}'!r} with {key[2]!r}. Is it another release of MME?"
            )
        asked.add(key)
    if unasked := [key for key in truths if key not in asked]:
        raise ValueError(
            f"{data_dir / QUESTIONS} lacks {len(unasked)} of the {len(truths)} questions in {data_dir / RELEASE}, "
            f"for example {unasked[0][2]!r} of {unasked[0][0]}; the missing ones would spoil the pairs."
        )


def _read_text(path: Path) -> Iterable[tuple[str, str]]:
    """(question, Yes or No) of each line that is not empty."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        columns = line.strip().split("\t")
        if columns == [""]:
            continue
        if len(columns) != 2 or columns[1].lower() not in ("yes", "no"):
            raise ValueError(f"{path}, line {number} is not a question, a tab, and Yes or No: {line!r}.")
        yield columns[0], columns[1]


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    metric="perception, sum of ten tasks' points",
    percent=False,
    folder="MME",
    question_file=QUESTIONS,
    image_folder=RELEASE,
    files=tuple(File(f"{RELEASE}/{task}", _SOURCE) for task in TASKS),
    ground_truth=lambda data_dir: [path for task in TASKS for path in truth_files(data_dir / RELEASE, task)],
    score=score,
    check_questions=check_questions,
)
