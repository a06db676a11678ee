"""MM-Vet's grade files, in the form of its own evaluator, and the figures computed from them.

``<model>_<judge>-grade-<R>runs.json`` maps a sample to its R grades:
``{"v1_0": {"model": [...], "content": [...], "score": [...]}}``. Beside it, ``...runs.source.json`` says which
answers were graded, so that grades of other answers are not taken for theirs.

:mod:`dyvte.benchmarks.judge` writes and :mod:`dyvte.benchmarks.mmvet` reads them. Names, form and rounding must stay
those of the official evaluator, whose files are read as well.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dyvte.benchmarks.files import read_annotations
from dyvte.cli import needs
from dyvte.io import write_whole

DECIMALS = 1
TOTAL = "total"
_GRADE = {"model": [str | None], "content": list, "score": [int | float]}

Grades = dict[str, dict[str, list[Any]]]


@dataclass(frozen=True)
class Totals:
    """Percent of the attainable score in each round; the last entry of each table is ``TOTAL``.

    Attributes:
        capabilities: (rounds,) each, the most frequent capability first; a sample counts for each of its own.
        combinations: (rounds,) each, by the exact set of capabilities that samples need, the most frequent first.
    """

    capabilities: dict[str, np.ndarray]
    combinations: dict[str, np.ndarray]

    @property
    def rounds(self) -> np.ndarray:
        return self.capabilities[TOTAL]

    @property
    def rows(self) -> list[dict[str, str]]:
        """The two official tables, one row each: rounded means, standard deviation of the total, and its rounds."""
        total = {"std": _rounded(self.rounds.std()), "runs": str(np.round(self.rounds, DECIMALS).tolist())}
        tables = (self.capabilities, self.combinations)
        return [{name: _rounded(each.mean()) for name, each in table.items()} | total for table in tables]

    def report(self, name: str) -> str:
        """The two official tables as text, their columns aligned; ``name`` is the graded model's."""
        lines = []
        for row in self.rows:
            widths = [max(map(len, cell)) for cell in row.items()]
            for start, cells in ((" " * len(name), row.keys()), (name, row.values())):
                lines.append("  ".join([start, *map(str.rjust, cells, widths)]))
        return "\n".join(lines)


def _rounded(value: np.floating) -> str:
    return str(float(np.round(value, DECIMALS)))


def aggregate(capabilities: dict[str, list[str]], grades: Grades, rounds: int) -> Totals:
    """Totals of the first ``rounds`` grades of each sample in ``capabilities`` (what it needs), added in the order of
    the grade file as officially. Grades of other samples are ignored.
    """
    single = _percent({key: [*dict.fromkeys(needed)] for key, needed in capabilities.items()}, grades, rounds)
    order = list(single)
    exact = {key: ["_".join(sorted(set(needed), key=order.index))] for key, needed in capabilities.items()}
    return Totals(single, _percent(exact, grades, rounds))


def _percent(groups: dict[str, list[str]], grades: Grades, rounds: int) -> dict[str, np.ndarray]:
    """By group, most frequent first, and at the end for all samples: 100 x mean score in each round."""
    sizes = Counter(name for names in groups.values() for name in names)
    order = [*(name for name, _ in sizes.most_common()), TOTAL]
    sizes[TOTAL] = len(groups)
    sums = {name: np.zeros(rounds) for name in order}
    for key, grade in grades.items():
        for name in (*groups[key], TOTAL) if key in groups else ():
            sums[name] += grade["score"][:rounds]
    return {name: values / sizes[name] * 100 for name, values in sums.items()}


def csv_text(name: str, row: dict[str, str]) -> str:
    """One of these tables as the official evaluator's csv file."""
    return needs("pandas", "eval").DataFrame([row], index=[name]).to_csv()


def grade_path(folder: Path, name: str, judge: str, rounds: int) -> Path:
    """The grade file. Characters that file names cannot have, such as the slash of hub names, become "_"."""
    name, judge = (re.sub(r"[^\w.+-]", "_", part) for part in (name, judge))
    return folder / f"{name}_{judge}-grade-{rounds}runs.json"


def csv_paths(grades: Path) -> tuple[Path, Path]:
    """The files beside the grades with the official tables by capability and by combination."""
    head, tail = grades.stem.rsplit("-grade-", 1)
    single, exact = (f"{head}-{kind}-score-{tail}.csv" for kind in ("cap", "cap-int"))
    return grades.with_name(single), grades.with_name(exact)


def source_path(grades: Path) -> Path:
    """The file beside the grades that says of which answers they are."""
    return grades.with_suffix(".source.json")


def rounds_of(grades: Path) -> int:
    """How many rounds a grade file is for, by its name; ValueError for another name."""
    found = re.search(r"-grade-(\d+)runs\.json$", grades.name)
    if not found or int(found.group(1)) < 1:
        raise ValueError(f"{grades} is not named <model>_<judge>-grade-<rounds>runs.json.")
    return int(found.group(1))


def parse_score(content: Any) -> float | None:
    """The number between 0 and 1 before the first blank of a judge's reply; None where there is none."""
    try:
        value = float(content.split(" ")[0].strip())
    except (AttributeError, ValueError):
        return None
    return value if 0.0 <= value <= 1.0 else None


def read_grades(path: Path) -> Grades:
    """The grades of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no grade file, or a score is not a number between 0 and 1.
    """
    grades = read_annotations(path, {str: _GRADE}, "delete it and grade again")
    for key, grade in grades.items():
        if len({*map(len, grade.values())}) > 1:
            raise ValueError(f"{path}: {key!r} does not have as many models as contents and scores.")
        for value in grade["score"]:
            if not 0 <= value <= 1:
                raise ValueError(f"{path}: {key} has the score {value!r}, which is not between 0 and 1.")
    return grades


def write_grades(path: Path, grades: Grades) -> None:
    write_whole(path, json.dumps(grades, indent=4))


def find_grades(folder: Path, fingerprint: str) -> Path | None:
    """The grade file with most rounds of the answers with this digest, else of those that do not name their answers.

    Raises:
        ValueError: all are of other answers, or there are several with as many rounds (of several judges).
    """
    files = sorted(folder.glob("*-grade-*runs.json"))
    if not files:
        return None
    sources = {file: _source_of(file) for file in files}
    fitting = [file for file, source in sources.items() if source and source["answers_sha256"] == fingerprint]
    fitting = fitting or [file for file, source in sources.items() if source is None]
    if not fitting:
        raise ValueError(
            f"{files[0]} holds grades of other answers: grade again, or give it its answers back."
        )
    most = max(map(rounds_of, fitting))
    fitting = [file for file in fitting if rounds_of(file) == most]
    if len(fitting) > 1:
        names = ", ".join(file.name for file in fitting)
        raise ValueError(f"{folder} holds several grade files ({names}): move away all but one.")
    return fitting[0]


def graded_model(grades: Path) -> str:
    """The graded model's name; without a source file the part of the name that holds model and judge."""
    source = _source_of(grades)
    return source["model"] if source else grades.name.rsplit("-grade-", 1)[0]


def _source_of(grades: Path) -> dict[str, str] | None:
    path = source_path(grades)
    if not path.is_file():
        return None
    return read_annotations(path, {"answers_sha256": str, "model": str}, "delete it with its grades")
