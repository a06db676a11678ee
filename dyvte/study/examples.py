"""Some questions answered without and with exit, one at a time, timed (Fig. 7 of the paper).

python -m dyvte.study.examples NAME --data-dir DIR --model-path PATH --gates GATES --output DIR [--limit N]
    [--rounds R] [--batch-size B] [--conv-mode C] ... (see --help)

The questions are evenly spaced in the benchmark's file; none is chosen by its outcome. Each is answered R times in
both ways, in turns, after one untimed answer. Tokens per second are the answer's tokens, its end token included,
divided by the median wall time of the whole generation, from encoded prompt to answer (vision tower, prefill,
decoding). ``OUTPUT/examples.json`` holds everything, images included; ``python -m dyvte.study.plot examples`` makes
the page.
"""

from __future__ import annotations

import argparse
import base64
import io
import statistics
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from dyvte.cli import run
from dyvte.decoding.policy import NoExit, Policy
from dyvte.engine.answer import Answerer
from dyvte.engine.questions import Item, prepare
from dyvte.engine.video import frames_of
from dyvte.io import write_json
from dyvte.study.files import has_settings
from dyvte.study.run import (
    build_parser,
    downloaded,
    method_of,
    open_with_policy,
    provenance,
    read_items,
    settings_digest,
)

STUDY = "examples"
LONGEST_SIDE = 336
"""Pixels that images are shrunk to for the page (a choice); the model sees them as they are."""


def example_of(
    answerer: Answerer, item: Item, image_folder: str, policies: dict[str, Policy], rounds: int
) -> dict[str, Any]:
    """Question, images and the answers under each of ``policies``, ready for JSON."""
    assert answerer.handle is not None
    question = prepare(item, image_folder)
    batch = answerer.batch([question])
    tokens, answers = {}, {name: [] for name in policies}
    for name, policy in policies.items():
        answerer.handle.policy = policy
        tokens[name] = answerer.chat.generate(batch, answerer.generation).shape[1]
    for _, (name, policy) in product(range(rounds), policies.items()):
        answerer.handle.policy = policy
        answers[name] += answerer.complete(batch)
    result: dict[str, Any] = {}
    for name, given in answers.items():
        reports = [answer.report for answer in given if answer.report is not None]
        seconds = statistics.median(report.seconds or 0.0 for report in reports)
        result[name] = {
            "text": given[0].text,
            "exit_layer": reports[0].exit_layer,
            "tokens": tokens[name],
            "seconds": seconds,
            "tokens_per_second": tokens[name] / seconds,
            "tflops": reports[0].tflops,
        }
    return {
        "question_id": item.head["question_id"],
        "question": item.text,
        "images": [encode_image(image) for image in frames_of(question.images)],
        "answers": result,
    }


def encode_image(image: Image.Image) -> str:
    """A small PNG, in base64."""
    small = image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def collect(args: argparse.Namespace) -> Path:
    """Answer the questions, unless the file of the same settings is there; returns the file.

    Raises:
        FileNotFoundError, ValueError: files are missing or settings do not fit.
    """
    if args.rounds < 1:
        raise ValueError(f"--rounds must be positive, got {args.rounds}")
    items, image_folder = read_items(args)
    answerer = downloaded(args)
    path, digest = args.output / f"{STUDY}.json", settings_digest(args)
    if has_settings(path, digest):
        return path
    answerer = answerer or open_with_policy(args)
    if answerer.handle is None or not answerer.exits:
        raise ValueError("Examples compare with an exit: pass --gates, or --method fixed with --exit-layer.")
    policies = {"without": NoExit(), "with": answerer.handle.policy}
    examples = [
        example_of(answerer, item, image_folder, policies, args.rounds)
        for item in tqdm(items, desc=f"{args.name}: examples", unit="q")
    ]
    content = {
        "study": STUDY,
        "definitions": __doc__,
        "num_layers": answerer.chat.decoder_config.num_hidden_layers,
        **method_of(args, policies["with"]),
        **provenance(args, "dyvte.study.examples", answerer.model),
        "batch_size": 1,
        "rounds": args.rounds,
        "settings_sha256": digest,
        "examples": examples,
    }
    write_json(path, content)
    return path


def main(arguments: list[str] | None = None) -> None:
    about = "Answer some questions without and with exit, and time both."
    parser = build_parser(arguments, about, limit=6)
    parser.add_argument("--rounds", type=int, default=5, help="timed answers to each question")
    run(parser, lambda args: print(collect(args)), arguments)


if __name__ == "__main__":
    main()
