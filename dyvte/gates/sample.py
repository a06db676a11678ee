"""Draw the sample that gates are trained on from instruction data in LLaVA's format.

    python -m dyvte.gates.sample --data-path llava_v1_5_mix665k.json --output gates.json --fraction 0.01

It draws samples with one image and cuts them to their first question and answer, because later turns often refer to
earlier ones. The fraction counts against the whole file (the paper draws 1% of LLaVA-1.5's 665k). A report of the
samples left out, and why, is printed and written beside the output.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dyvte.cli import run
from dyvte.engine.images import path_inside
from dyvte.engine.instructions import image_paths, read_records
from dyvte.engine.questions import IMAGE_TOKEN, check_text
from dyvte.io import check_output, whole_file, write_json


def first_turn(record: object, image_folder: Path | None = None) -> tuple[dict | None, str]:
    """The record cut to its first question and answer; or None, and why it cannot be used."""
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        return None, "missing fields"
    if not record.get("image"):
        return None, "text only"
    try:
        images = image_paths(record)
    except ValueError:
        return None, "missing fields"
    if len(images) > 1:
        return None, "several images"
    turns = record["conversations"][:2]
    if any(not isinstance(turn, dict) or not isinstance(turn.get("value"), str) for turn in turns):
        return None, "missing fields"
    if [turn.get("from") for turn in turns] != ["human", "gpt"]:
        return None, "does not begin with a question and an answer"
    if turns[0]["value"].count(IMAGE_TOKEN) != 1:
        return None, "first question does not hold the image"
    if not turns[1]["value"].strip():
        return None, "empty answer"
    try:
        path = path_inside(image_folder or Path(), images[0])
        if image_folder is not None and not path.is_file():
            return None, "image file missing"
    except (ValueError, OSError):
        return None, "image outside the image folder"
    try:
        check_text(turns[0]["value"] + turns[1]["value"], "value")
    except ValueError:
        return None, "half of a character in the text"
    return {**record, "image": images[0], "conversations": turns}, ""


def draw(
    records: Sequence[Any], fraction: float, seed: int, image_folder: Path | None = None
) -> tuple[list[int], dict[str, Any]]:
    """The places of the drawn records, in the order of the file, and the report.

    Raises:
        ValueError: when the fraction is not in (0, 1], or no sample can be used.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"--fraction must lie in (0, 1], got {fraction}")
    usable: list[int] = []
    left_out: Counter[str] = Counter()
    later_turns = 0
    for place, record in enumerate(records):
        cut, reason = first_turn(record, image_folder)
        if cut is None:
            left_out[reason] += 1
        else:
            usable.append(place)
            later_turns += len(record["conversations"]) > 2
    if not usable:
        raise ValueError(f"no sample has one image, a question and an answer; left out: {dict(left_out)}")
    wanted = max(1, round(fraction * len(records)))
    count = min(wanted, len(usable))
    chosen = sorted(random.Random(seed).sample(range(len(usable)), count))
    report = {
        "fraction": fraction,
        "seed": seed,
        "read": len(records),
        "usable": len(usable),
        "usable_cut_to_first_turn": later_turns,
        "wanted": wanted,
        "drawn": count,
        "left_out": dict(left_out.most_common()),
    }
    return [usable[index] for index in chosen], report


def sample(args: argparse.Namespace) -> None:
    """Draw, write the samples and the report, and print the report."""
    output = Path(args.output)
    report_path = output.with_suffix(".report.json")
    for written in (output, report_path):
        check_output(written, args.data_path, "--output and --data-path")
    folder = None if args.image_folder is None else Path(args.image_folder)
    records = read_records(args.data_path)
    places, report = draw(records, args.fraction, args.seed, folder)
    report = {"data_path": args.data_path, **report}
    with whole_file(output) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for number, place in enumerate(places):
            sample, _ = first_turn(records[place])
            text = json.dumps([sample], indent=1, ensure_ascii=False)
            file.write((",\n" if number else "[\n") + text.removeprefix("[\n").removesuffix("\n]"))
        file.write("\n]\n")
    write_json(report_path, report, indent=2)
    print(json.dumps(report, indent=2))
    print(f"wrote {output} and {report_path}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.gates.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-path", required=True, help="instruction data: a JSON list in LLaVA's format")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--fraction", type=float, default=0.01, help="share of the file (default 0.01)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-folder", help="leave out samples whose image file is not in this folder")
    run(parser, sample, argv)


if __name__ == "__main__":
    main()
