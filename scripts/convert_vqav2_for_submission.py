"""Turn merged VQAv2 answers into the upload file of EvalAI's challenge 830 (phase test-dev):

python scripts/convert_vqav2_for_submission.py --dir playground/data/eval/vqav2 --ckpt llava-v1.5-7b \
    --split llava_vqav2_mscoco_test-dev2015

reads ``answers/<split>/<ckpt>/merge.jsonl`` and writes ``answers_upload/<split>/<ckpt>.json`` below ``--dir``, with
one entry for each question of test2015: its answer is empty where there is none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dyvte.benchmarks.files import ID, read_json_lines, split_error
from dyvte.benchmarks.vqa_text import normalise
from dyvte.benchmarks.vqav2 import TEST_QUESTIONS
from dyvte.cli import run
from dyvte.io import write_whole


def read_texts(path: Path) -> tuple[dict[Any, str], int]:
    """(text by question id, number of lines that are not JSON) of an answers file; the last answer counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is JSON, but no answer.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; answer the questions first.")
    texts, broken = {}, 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                answer = json.loads(line)
            except ValueError:
                broken += 1
                continue
            try:
                text = answer["text"]
                texts[answer["question_id"]] = text if isinstance(text, str) else ""
            except (KeyError, TypeError):
                raise ValueError(f"{path}, line {number} has no question_id and text.") from None
    return texts, broken


def convert(options: argparse.Namespace) -> None:
    """Write the upload file, with an empty answer where there is none."""
    source = options.src or options.dir / "answers" / options.split / options.ckpt / "merge.jsonl"
    target = options.dst or options.dir / "answers_upload" / options.split / f"{options.ckpt}.json"
    frame = options.dir / TEST_QUESTIONS
    texts, broken = read_texts(source)
    names = [row["question_id"] for row in read_json_lines(frame, {"question_id": ID})]
    print(f"total results: {len(texts)}, total split: {len(names)}, error_line: {broken}")
    if texts.keys().isdisjoint(names):
        raise split_error(source, frame)
    upload = [{"question_id": name, "answer": normalise(texts.get(name, ""))} for name in names]
    write_whole(target, json.dumps(upload))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the upload file of VQAv2's test-dev.")
    parser.add_argument("--dir", type=Path, default=Path("playground/data/eval/vqav2"))
    parser.add_argument("--ckpt", required=True, help="name of the answers' folder")
    parser.add_argument("--split", required=True, help="name of the question file, without its ending")
    parser.add_argument("--src", type=Path, help="answers that lie elsewhere")
    parser.add_argument("--dst", type=Path, help="where to write instead")
    run(parser, convert, arguments)


if __name__ == "__main__":
    main()
