"""POPE (Li et al., 2023), yes/no questions about objects, as LLaVA scores it; papers print the mean F1 of the splits.

Files: ``coco/coco_pope_{adversarial,popular,random}.json`` (JSON lines of labels), ``llava_pope_test.jsonl``
(questions, whose ``category`` is the split), ``val2014/*.jpg``. Ids are whole numbers. Scoring variants are in
:mod:`dyvte.benchmarks.pope_pairing`; "position" is LLaVA's and must stay the default.

Registered in ``dyvte/benchmarks/__init__.py``; ``llava.eval.eval_pope`` is LLaVA's command line for it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dyvte.benchmarks.benchmark import Benchmark, File, Remark, Score, mean
from dyvte.benchmarks.files import numbered_lines, read_answers_and_remarks, read_json_lines, split_error
from dyvte.benchmarks.pope_pairing import PAIRINGS, Labels, Outcome, SplitScore

QUESTIONS = "llava_pope_test.jsonl"
LABELS = "coco"
LABEL_FILE_PREFIX = "coco_pope_"
_SOURCE = "https://github.com/AoiDragon/POPE at commit e3e3926 (output/coco); later ones have other negatives"


def read_labels(folder: str | Path) -> Labels:
    """Labels (True is yes) by split, in file order, of all label files in ``folder``; ValueError for a broken one."""
    return {
        split: [row["label"] != "no" for row in read_json_lines(path, {"label": object})]
        for split, path in label_files(folder).items()
    }


def label_files(folder: str | Path) -> dict[str, Path]:
    """Label file by split, in the order of their names; FileNotFoundError when there are none. Other files of the
    folder are ignored.
    """
    paths = sorted(Path(folder).glob(f"{LABEL_FILE_PREFIX}*.json"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no {LABEL_FILE_PREFIX}*.json; take them from POPE's repository."
        )
    return {path.stem.removeprefix(LABEL_FILE_PREFIX): path for path in paths}


def score_files(label_folder: Path, question_file: Path, answers_file: Path, variant: str) -> Outcome:
    """The outcome of an answers file, with the labels of the splits that the question file asks; errors as of
    ``Scorer``.
    """
    rows = read_json_lines(question_file, {"question_id": int | str, "category": str})
    categories = {row["question_id"]: row["category"] for row in rows}
    asked = set(categories.values())
    labels = {split: wanted for split, wanted in read_labels(label_folder).items() if split in asked}
    answers, remarks = read_answers_and_remarks(answers_file)
    if not any(categories.get(answer["question_id"]) in labels for answer in answers):
        raise split_error(answers_file, question_file)
    outcome = PAIRINGS[variant](labels, categories, answers)
    for split, result in outcome.splits.items():
        if undefined := result.undefined_figures():
            what = f"nothing to divide by: counted as 0: {', '.join(undefined)}"
            outcome.remarks.append(Remark(split, what))
    outcome.remarks[:0] = remarks
    return outcome


def report_of(splits: dict[str, SplitScore]) -> str:
    """The lines that LLaVA's script prints."""
    lines = []
    for split, result in splits.items():
        figures = result.figures
        lines += [
            f"Category: {split}, # samples: {result.replies.total()}",
            "TP\tFP\tTN\tFN\t",
            "\t".join(str(count) for count in result.counts),
            f"Accuracy: {figures['accuracy']}",
            f"Precision: {figures['precision']}",
            f"Recall: {figures['recall']}",
            f"F1 score: {figures['f1']}",
            f"Yes ratio: {figures['yes_ratio']}",
            ", ".join(f"{figure:.3f}" for figure in figures.values()),
            "====================================",
        ]
    return "\n".join(lines) + "\n"


def score(data_dir: Path, answers_file: Path, variant: str = "") -> Score:
    """Score an answers file; see ``score_files``. Counts are parts as they are, figures in percent."""
    variant = BENCHMARK.variant(variant)
    outcome = score_files(data_dir / LABELS, data_dir / QUESTIONS, answers_file, variant)
    parts: dict[str, float] = {}
    for name in ("f1", "accuracy", "precision", "recall", "yes_ratio"):
        by_split = {split: result.figures[name] for split, result in outcome.splits.items()}
        parts[name] = 100 * mean(list(by_split.values()))
        parts.update({f"{split}.{name}": 100 * value for split, value in by_split.items()})
    for split, result in outcome.splits.items():
        names = (f"{split}.{name}" for name in ("tp", "fp", "tn", "fn"))
        parts.update(zip(names, result.counts, strict=True))
    report = report_of(outcome.splits)
    questions, remarks = outcome.questions, outcome.remarks
    return Score("pope", BENCHMARK.metric, parts["f1"], parts, questions, report, variant, remarks)


def check_questions(data_dir: Path) -> None:
    """See ``Benchmark``; images and questions in label files, where present, must be those asked, in order."""
    path = data_dir / QUESTIONS
    files = label_files(data_dir / LABELS)
    labels = {split: numbered_lines(file, {"label": object}) for split, file in files.items()}
    for split, file in files.items():
        for number, row in labels[split]:
            if row["label"] not in ("yes", "no"):
                raise ValueError(f"{file}, line {number}: the label {row['label']!r} is neither yes nor no.")
    places: Counter[str] = Counter()
    asked = numbered_lines(path, {"question_id": int | str, "text": str, "category": str})
    for number, row in asked:
        split = row["category"]
        if split not in files:
            raise ValueError(
                f"{path}, line {number}: {data_dir / LABELS} has no {f'{LABEL_FILE_PREFIX}{split}.json'!r}."
            )
        place, places[split] = places[split], places[split] + 1
        if place >= len(labels[split]):
            raise ValueError(
                f"{path}, line {number}: {files[split]} has only {len(labels[split])} labels; take the labels of "
                "commit e3e3926."
            )
        line, label = labels[split][place]
        same_image = label.get("image", row.get("image")) == row.get("image")
        if not same_image or not row["text"].startswith(str(label.get("text", ""))):
            raise ValueError(
                f"{path}, line {number} asks what {files[split]}, line {line} does not label; take the labels of "
                "commit e3e3926."
            )


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    metric="mean F1 of the splits",
    folder="pope",
    question_file=QUESTIONS,
    image_folder="val2014",
    files=(
        File("coco/coco_pope_adversarial.json", _SOURCE),
        File("coco/coco_pope_popular.json", _SOURCE),
        File("coco/coco_pope_random.json", _SOURCE),
        File("val2014", "https://cocodataset.org (2014 validation images)"),
    ),
    ground_truth=lambda data_dir: sorted((data_dir / LABELS).glob(f"{LABEL_FILE_PREFIX}*.json")),
    score=score,
    variants=tuple(PAIRINGS),
    check_questions=check_questions,
)
