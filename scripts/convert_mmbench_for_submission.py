"""Turn MMBench answers into the sheet that the evaluation server takes:

python scripts/convert_mmbench_for_submission.py --annotation-file mmbench_dev_20230712.tsv \
    --result-dir answers/mmbench_dev_20230712 --upload-dir answers_upload/mmbench_dev_20230712 --experiment MODEL

reads ``MODEL.jsonl`` (or ``MODEL/merge.jsonl``) in the result folder and writes ``MODEL.xlsx`` into the other.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from dyvte.benchmarks.files import ANSWER, read_json_lines
from dyvte.benchmarks.mmbench import match_answers
from dyvte.benchmarks.mmbench_questions import read_table
from dyvte.cli import run

NOT_UPLOADED = ["hint", "category", "source", "image", "comment", "l2-category"]
PREDICTION_COLUMN = 6
"""Behind index, question and the four options."""


def upload_sheet(table: pd.DataFrame, texts: dict[int, Any]) -> pd.DataFrame:
    """The table with the raw replies, without images and what the server knows; no answer, an empty cell.

    Control characters, which a sheet cannot hold, are replaced by U+FFFD.
    """
    sheet = table.drop(columns=NOT_UPLOADED, errors="ignore")
    replies = pd.Series([texts.get(index) for index in table["index"]], dtype=object, index=sheet.index)
    sheet.insert(min(PREDICTION_COLUMN, sheet.shape[1]), "prediction", replies)
    return sheet.map(
        lambda cell: ILLEGAL_CHARACTERS_RE.sub("\ufffd", cell) if isinstance(cell, str) else cell
    )


def write_sheet(sheet: pd.DataFrame, path: Path) -> None:
    """Write as xlsx, every text as text: openpyxl would make formulas of replies that begin with "="."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pd.ExcelWriter(path, engine="openpyxl") as writer:
        sheet.to_excel(writer, index=False)
        for row in writer.book.active.iter_rows():
            for cell in row:
                if cell.data_type in ("f", "e"):
                    cell.data_type = "s"


def convert(options: argparse.Namespace) -> None:
    """Read, match, write; say how many answers found no place.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken, or no answer belongs to the table.
    """
    source = options.result_dir / f"{options.experiment}.jsonl"
    merged = options.result_dir / options.experiment / "merge.jsonl"
    if merged.is_file() and not source.is_file():
        source = merged
    table = read_table(options.annotation_file)
    texts, remarks = match_answers(table["index"].tolist(), read_json_lines(source, ANSWER))
    if not texts:
        raise ValueError(f"{source} answers no question of {options.annotation_file}; wrong split?")
    write_sheet(upload_sheet(table, texts), options.upload_dir / f"{options.experiment}.xlsx")
    if remarks:
        first = f"question {remarks[0].question_id}: {remarks[0].what}"
        print(f"{source}: {len(remarks)} remarks, the first on {first}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write MMBench's upload file.")
    parser.add_argument("--annotation-file", type=Path, required=True, help="MMBench's TSV")
    parser.add_argument("--result-dir", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--upload-dir", type=Path, required=True, help="folder of the sheet")
    parser.add_argument("--experiment", required=True, help="name of both files, without suffix")
    run(parser, convert, arguments)


if __name__ == "__main__":
    main()
