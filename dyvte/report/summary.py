"""Everything a run of experiments ends with: table, figures, verdict, and one results file.

python -m dyvte.report.summary RECORDS... --out DIR [--setting KEY=VALUE ...]

Writes ``table.{md,tex,csv}``, ``exits.png``, ``tradeoff.png`` and ``results.json`` (the verdict, the settings
given here, and all records with their provenance), and prints the table, the verdict and where the files are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dyvte.report.compare import runs_of, sentence_of, verdict
from dyvte.report.figures import exit_histograms, save, tradeoff
from dyvte.report.record import ResultRecord, read_records
from dyvte.report.table import rows_of, to_csv, to_latex, to_markdown


def summarise(records: Sequence[ResultRecord], out: Path, settings: dict[str, str]) -> str:
    """Write all files into ``out`` and return the text to show.

    Raises:
        ValueError: the records do not hold the baseline and DyVTE on the same benchmarks.
    """
    runs = runs_of(records)
    result = verdict(runs)
    out.mkdir(parents=True, exist_ok=True)
    table = to_markdown(rows_of(runs))
    (out / "table.md").write_text(to_markdown(rows_of(runs, with_fixed=True)), encoding="utf-8")
    (out / "table.tex").write_text(to_latex(rows_of(runs)), encoding="utf-8")
    (out / "table.csv").write_text(to_csv(runs, with_fixed=True), encoding="utf-8")
    save(exit_histograms(records), out / "exits.png")
    save(tradeoff(records), out / "tradeoff.png")
    content = {
        "verdict": {**asdict(result), "reached": result.reached},
        "settings": settings,
        "records": [asdict(record) for record in records],
    }
    (out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    places = [
        ("table with every fixed exit layer", "table.md"),
        ("where samples exit", "exits.png"),
        ("score against cost", "tradeoff.png"),
        ("results and provenance", "results.json"),
    ]
    files = "\n".join(f"  {what}: {out / name}" for what, name in places)
    return f"{table}\n{sentence_of(result)}\n\n{files}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.report.summary", description="Sum up result records."
    )
    parser.add_argument(
        "records", nargs="+", type=Path, help="record files, or folders that hold record.json files"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--setting", nargs="*", default=[], metavar="KEY=VALUE", help="kept in results.json")
    options = parser.parse_args(arguments)

    settings = dict(entry.split("=", 1) for entry in options.setting)
    try:
        print(summarise(read_records(options.records), options.out, settings))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
