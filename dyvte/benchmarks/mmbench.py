"""MMBench, dev split of July 2023 (Liu et al., 2023): multiple choice, right only when right in every rotation.

Files: ``mmbench_dev_20230712.tsv``, which holds questions, answers and images (base64). Rotation ``k`` of a question
is a row of its own, whose index is larger by ``k`` million. Where that table is missing, the only other
``mmbench_*.tsv`` of the folder (the Chinese one, say) is scored.

Registered in ``dyvte/benchmarks/__init__.py``; ``scripts/convert_mmbench_for_submission.py`` calls
:func:`match_answers`. Scoring variants must stay as they were published.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dyvte.benchmarks import mmbench_questions as tables
from dyvte.benchmarks.benchmark import Benchmark, QuestionScore, Remark, Score, grouped, mean
from dyvte.benchmarks.files import ANSWER, read_json_lines
from dyvte.benchmarks.option_letters import letter_2024, letter_today

ROUND = 1_000_000  # distance between the indices of a question's rotations
ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
"""Level-2 categories, by the headings that papers give them."""

VARIANTS: dict[str, Callable[[str, Mapping[str, Any]], str | None]] = {
    "letter": lambda reply, options: reply,
    "vlmevalkit-2024": letter_2024,
    "vlmevalkit": letter_today,
}
"""Scoring variants: how a letter is read from a reply. "letter": the reply must be the letter and nothing else.
"vlmevalkit-2024" and "vlmevalkit": the letter that VLMEvalKit's exact matching infers (see ``option_letters``), then
and today. The paper's figures come from MMBench's server, with which all three agree on replies that are bare
letters, as LLaVA's are; how it reads other replies is not public."""


def match_answers(indices: list[int], answers: list[dict[str, Any]]) -> tuple[dict[int, Any], list[Remark]]:
    """The text that counts for each index, as in LLaVA's converter: the last one.

    Answers to unknown questions are left out, and so are texts that are a list or an object.
    """
    known = set(indices)
    texts: dict[int, Any] = {}
    remarks = []
    for answer in answers:
        index, text = answer["question_id"], answer["text"]
        if not isinstance(index, (int, float)) or index not in known:
            name = index if isinstance(index, (int, str)) else str(index)
            remarks.append(Remark(name, "no such question in the table: ignored", skipped=True))
            continue
        index = int(index)
        if index in texts:
            remarks.append(Remark(index, "answered again: only the last answer counts", skipped=True))
        if not isinstance(text, str):
            kept = "counted as empty" if isinstance(text, (list, dict, type(None))) else "taken as text"
            remarks.append(Remark(index, f"the answer is not a string ({text!r:.40}): {kept}"))
        texts[index] = None if isinstance(text, (list, dict)) else text
    remarks += [
        Remark(index, "no answer: counted as an empty one") for index in indices if index not in texts
    ]
    return texts, remarks


def reply_of(text: Any) -> str:
    """The reply as the official matcher reads it from an upload sheet."""
    if tables.is_missing(text) or text in tables.EMPTY_CELLS:
        return "nan"  # what the official matcher reads in an empty cell
    return str(int(text)) if isinstance(text, float) and text.is_integer() else str(text)


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """Circular accuracy: a question counts when all its rotations are answered right.

    Raises:
        FileNotFoundError, ValueError: see ``Scorer``; also for a table without answers (test split).
    """
    variant = BENCHMARK.variant(variant)
    path = tables.table_file(data_dir)
    table = tables.read_table(path, usecols=lambda name: name != "image")
    if "answer" not in table or table["answer"].isna().all():
        raise ValueError(
            f"{path} has no answers (a test split): upload the xlsx that "
            "scripts/convert_mmbench_for_submission.py writes."
        )
    answers = read_json_lines(answers_file, ANSWER)
    rows = table.to_dict("records")
    texts, remarks = match_answers([row["index"] for row in rows], answers)
    if not texts:
        raise ValueError(
            f"{answers_file}: none of its {len(answers)} answers belongs to {path}; wrong split?"
        )
    infer = VARIANTS[variant]
    right = {
        row["index"]: infer(reply_of(texts.get(row["index"])), _choices(row)) == row["answer"] for row in rows
    }
    bases = [row for row in rows if row["index"] < ROUND]
    missed = {index % ROUND for index, hit in right.items() if not hit}
    hits = {row["index"]: float(row["index"] not in missed) for row in bases}
    figures = circular_figures(bases, hits)
    parts = {name: 100 * value for name, value in figures.items()}
    parts["row_accuracy"] = 100 * mean([float(hit) for hit in right.values()])
    parts["base_row_accuracy"] = 100 * mean([float(right[row["index"]]) for row in bases])
    questions = [QuestionScore(index, hit) for index, hit in hits.items()]
    report, remarks = _report(bases, figures), remarks + _table_remarks(rows, hits)
    return Score("mmbench", BENCHMARK.metric, parts["overall"], parts, questions, report, variant, remarks)


def circular_figures(bases: list[dict[str, Any]], hits: Mapping[int, float]) -> dict[str, float]:
    """Fractions of questions hit: overall, by level-2 category and by category, in the official order."""
    figures = {"overall": mean([hits[row["index"]] for row in bases])}
    for column in ("l2-category", "category"):
        named = (row for row in bases if isinstance(row.get(column), str))
        members: dict[str, list[float]] = grouped((row[column], hits[row["index"]]) for row in named)
        figures |= {ABBREVIATIONS.get(name, name): mean(members[name]) for name in sorted(members)}
    return figures


def _table_remarks(rows: list[dict[str, Any]], hits: Mapping[int, float]) -> list[Remark]:
    """Remarks on rows whose right answer is not asked, and on rotations without their question."""
    remarks = []
    for row in rows:
        asked = tables.LETTERS[: len(tables.asked_options(row))]
        if row["index"] % ROUND not in hits:
            what = "a rotation of a question that is not in the table: left out"
            remarks.append(Remark(row["index"], what, skipped=True))
        elif row["answer"] not in asked:
            what = f"its answer {row['answer']} is not among the options that are asked ({', '.join(asked)})"
            what += ': one reads as an empty cell ("None", "N/A" and the like)'
            remarks.append(Remark(row["index"], what))
    return remarks


def _choices(row: Mapping[str, Any]) -> dict[str, Any]:
    """Options as VLMEvalKit collects them: all that are not empty, gaps or not."""
    return {
        letter: row[letter] for letter in string.ascii_uppercase if not tables.is_missing(row.get(letter))
    }


def _report(bases: list[dict[str, Any]], figures: Mapping[str, float]) -> str:
    """VLMEvalKit's table of fractions."""
    split = next((row["split"] for row in bases if isinstance(row.get("split"), str)), "none")
    lines = {"split": split, **{"Overall" if k == "overall" else k: str(v) for k, v in figures.items()}}
    first, second = max(map(len, lines)), max(map(len, lines.values()))
    rule = f"{'-' * first}  {'-' * second}"
    return "\n".join([rule, *(f"{name:{first}}  {value}" for name, value in lines.items()), rule])


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench",
    metric="circular accuracy",
    folder="mmbench",
    question_file=tables.QUESTIONS,
    image_folder="",
    files=(),
    ground_truth=lambda data_dir: [tables.table_file(data_dir)],
    score=score,
    variants=tuple(VARIANTS),
    questions=tables.MMBENCH_FORMAT,
    check_questions=lambda data_dir: tables.read_questions(data_dir / tables.QUESTIONS),
)
