"""Scores one task of MME as the official script does: each two consecutive lines of a task file are a pair.

Called by :mod:`dyvte.benchmarks.mme`. Ids are not compared, and must not be: official numbers pair by position alone.
Where the official script would crash, a task is scored by image instead, and a missing answer is wrong. A reply with
a tab or a line break makes lines without four columns: MME's script crashes on them; InternVL's copy, which is
followed here, leaves them out.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from dataclasses import dataclass

from dyvte.benchmarks.benchmark import QuestionScore, Remark

Key = tuple[str, str, str]
"""Task, name of the text file (one for each image), question with its "Please answer yes or no."."""


@dataclass(frozen=True)
class Reply:
    """An answer with its ground truth: ``place`` is its index in the answers file, ``truth`` is Yes or No."""

    place: int
    question_id: str
    key: Key
    truth: str
    text: str

    @property
    def written(self) -> str:
        """Its line in the task file: text file, question, ground truth and reply, separated by tabs."""
        return "\t".join((*self.key[1:], self.truth, self.text)) + "\n"

    @property
    def lines(self) -> list[str]:
        """The lines that the official script reads: more than one where the reply has a line break."""
        return io.StringIO(self.written, newline=None).readlines()

    @property
    def breaks_columns(self) -> bool:
        """Whether a tab or a line break splits the reply into several columns or lines."""
        return "\t" in self.text or len(self.lines) > 1


@dataclass(frozen=True)
class TaskScore:
    """Counts of one task (``both``: images with both questions right), and the official figures from them.

    ``acc`` and ``acc_plus`` are in percent; ``score`` is their sum, 200 at most.
    """

    correct: int
    questions: int
    both: int
    images: int

    @property
    def acc(self) -> float:
        return self.correct / self.questions * 100

    @property
    def acc_plus(self) -> float:
        return self.both / self.images * 100

    @property
    def score(self) -> float:
        return self.acc + self.acc_plus


@dataclass(frozen=True)
class TaskOutcome:
    """A task's score, its scored questions with their ``place`` among the answers, and the remarks."""

    score: TaskScore
    questions: list[tuple[float, QuestionScore]]
    remarks: list[Remark]


def says(reply: str) -> str:
    """Yes, no, or other (which is never right), by the official rule: from the first four characters alone."""
    start = reply.lower()[:4]
    return next((label for label in ("yes", "no") if label in start), "other")


def score_lines(lines: list[str]) -> tuple[TaskScore, list[bool | None]]:
    """The score of a task file's lines, and whether each line is right, None for one that is left out; ValueError
    where the official script crashes on these lines.
    """
    if len(lines) % 2:
        raise ValueError(f"{len(lines)} lines do not make pairs")
    right: list[bool | None] = []
    for line in lines:
        columns = line.split("\t")
        if len(columns) != 4:
            right.append(None)
            continue
        if columns[2].lower() not in ("yes", "no"):
            raise ValueError(f"{columns[2]!r} stands where Yes or No is expected")
        right.append(says(columns[3]) == columns[2].lower())
    counted = [one for one in right if one is not None]
    if not counted:
        raise ValueError("no line has four columns")
    both = sum(bool(first and second) for first, second in zip(right[::2], right[1::2], strict=True))
    return TaskScore(sum(counted), len(counted), both, len(right) // 2), right


def score_task(replies: list[Reply], truths: dict[Key, str]) -> TaskOutcome:
    """Score one task, of one question at least, as the official script does, or by image where that crashes."""
    try:
        return _by_position(replies, truths)
    except ValueError as error:
        reason = str(error) if replies else "there is no answer"
        return _by_image(replies, truths, reason)


def _by_position(replies: list[Reply], truths: dict[Key, str]) -> TaskOutcome:
    reply_lines = [(reply, line) for reply in replies for line in reply.lines]
    score, right = score_lines([line for _, line in reply_lines])
    questions: list[tuple[float, QuestionScore]] = []
    remarks: list[Remark] = []
    number = 0
    for reply in replies:
        outcome, partner = right[number], reply_lines[number ^ 1][0]
        number += len(reply.lines)
        if outcome is not None:
            questions.append((reply.place, QuestionScore(reply.question_id, float(outcome))))
        if partner.key[1] != reply.key[1]:
            what = (
                f"paired by its place with a question about {partner.question_id}, as in the official script"
            )
            remarks.append(Remark(reply.question_id, what))
        if reply.breaks_columns:
            what = "tab or line break in the reply: lines without four columns are left out, and later pairs move"
            remarks.append(Remark(reply.question_id, what, skipped=outcome is None))
    scored = [line for (_, line), outcome in zip(reply_lines, right, strict=True) if outcome is not None]
    if all(says(line.split("\t")[3]) == "other" for line in scored):
        what = "neither yes nor no, like all replies of its task: wrong, where the official script stops"
        remarks += [Remark(reply.question_id, what) for reply in replies]
    return TaskOutcome(score, questions, remarks + _remarks_on_counts(replies, truths))


def _remarks_on_counts(replies: list[Reply], truths: dict[Key, str]) -> list[Remark]:
    """Remarks on questions with no answer or several, although the number of lines is even."""
    counts, names = Counter(reply.key for reply in replies), _names(replies, truths)
    remarks = []
    for key in truths:
        if counts[key] == 0:
            what = f"no answer to {key[2]!r}: left out, as in the official script"
            remarks.append(Remark(names[key], what, skipped=True))
        elif counts[key] > 1:
            what = f"{counts[key]} answers to {key[2]!r}: each counts, as in the official script"
            remarks.append(Remark(names[key], what))
    return remarks


def _by_image(replies: list[Reply], truths: dict[Key, str], reason: str) -> TaskOutcome:
    task = next(iter(truths))[0]
    what = f"the official script stops over this task ({reason}): scored by image, missing answers are wrong"
    remarks = [Remark(task, what)]
    last = {reply.key: reply for reply in replies}
    for reply in replies:
        if last[reply.key] is not reply:
            what = f"a later answer to {reply.key[2]!r} counts instead of this one"
            remarks.append(Remark(reply.question_id, what, skipped=True))
        elif reply.breaks_columns:
            remarks.append(Remark(reply.question_id, "tab or line break in the reply: read as a whole"))
    names = _names(replies, truths)
    questions: list[tuple[float, QuestionScore]] = []
    images: dict[str, list[bool]] = defaultdict(list)
    for key, truth in truths.items():
        reply, name = last.get(key), names[key]
        right = reply is not None and says(reply.text) == truth.lower()
        images[key[1]].append(right)
        questions.append((reply.place if reply else float("inf"), QuestionScore(name, float(right))))
        if reply is None:
            remarks.append(Remark(name, f"no answer to {key[2]!r}: counted as wrong"))
    correct, both = sum(map(sum, images.values())), sum(map(all, images.values()))
    return TaskOutcome(TaskScore(correct, len(truths), both, len(images)), questions, remarks)


def _names(replies: list[Reply], truths: dict[Key, str]) -> dict[Key, str]:
    """The id of each question from the answers about its image; without any, the start that all its ids have."""
    ids = {reply.key[1]: reply.question_id for reply in replies}
    return {key: ids.get(key[1], f"{key[0]}/{key[1].removesuffix('.txt')}") for key in truths}
