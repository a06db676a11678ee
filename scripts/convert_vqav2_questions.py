"""Turn VQAv2's official questions into a question file for llava.eval.model_vqa_loader:

python scripts/convert_vqav2_questions.py --src v2_OpenEnded_mscoco_val2014_questions.json \
    --dst playground/data/eval/vqav2/llava_vqav2_mscoco_val2014.jsonl

The images are those of COCO, by their official names: ``COCO_val2014_000000000042.jpg``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dyvte.benchmarks.files import read_annotations
from dyvte.cli import run
from dyvte.io import write_whole

PROMPT = "Answer the question using a single word or phrase."
IMAGES_OF = {"test-dev2015": "test2015"}


def convert(options: argparse.Namespace) -> None:
    """Write the question file, in the official order.

    Raises:
        FileNotFoundError: there are no official questions.
        ValueError: they are not in the official form; the message names the entry.
    """
    asked = {"question_id": object, "image_id": int, "question": object}
    shape = {"data_subtype": str, "questions": [asked]}
    content = read_annotations(options.src, shape, "take it from visualqa.org/download.html")
    split = IMAGES_OF.get(content["data_subtype"], content["data_subtype"])
    rows = [
        {
            "question_id": question["question_id"],
            "image": f"COCO_{split}_{question['image_id']:012d}.jpg",
            "text": f"{question['question']}\n{PROMPT}",
            "category": "default",
        }
        for question in content["questions"]
    ]
    write_whole(options.dst, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} questions: {options.dst}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write VQAv2 questions as LLaVA asks them.")
    parser.add_argument("--src", type=Path, required=True, help="official questions (JSON)")
    parser.add_argument("--dst", type=Path, required=True, help="question file to write (JSON lines)")
    run(parser, convert, arguments)


if __name__ == "__main__":
    main()
