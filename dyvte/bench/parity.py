"""Does a device answer as a CPU does? A file of questions, answered in float32 on a CPU, then in several ways there.

    python -m dyvte.bench.parity --model-path playground/tiny/model --gates playground/tiny/gates \
        --question-file tests/gpu/questions/questions.jsonl --image-folder tests/gpu/questions/images

In float32 every answer and every exit has to be the same, or the command ends with exit code 1; in bfloat16 they are
counted.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dyvte.bench.report import provenance
from dyvte.cli import run
from dyvte.engine.model import model_name_of
from dyvte.engine.options import open_answerer
from dyvte.engine.questions import JSON_LINES, check_items
from dyvte.engine.run import prepared_batches
from dyvte.gates.hub import gates_folder
from dyvte.io import write_json
from dyvte.report.tables import to_markdown

EXACT = "float32"
Outcome = tuple[str, "int | None"]
"""An answer, and the layer after which its image left."""


@dataclass(frozen=True)
class Agreement:
    """How many of the questions come out as on a CPU in float32.

    Attributes:
        different: ids of the questions whose answers or exits differ.
    """

    dtype: str
    graphs: bool
    questions: int
    answers: int
    exits: int
    different: list[str]

    @property
    def broken(self) -> bool:
        """Whether something differs that must not."""
        return self.dtype == EXACT and bool(self.different)


def answer_all(args: argparse.Namespace, device: str, dtype: str, graphs: bool) -> dict[str, Outcome]:
    """What each question comes out as, by its id."""
    flags = copy.copy(args)
    flags.device, flags.dtype, flags.cuda_graphs = device, dtype, graphs
    items = JSON_LINES.read(args)
    check_items(items, args.image_folder)
    answerer = open_answerer(flags, None)
    found: dict[str, Outcome] = {}
    for asked, batch in prepared_batches(items, args.batch_size, answerer.chat, args.image_folder):
        for item, answer in zip(asked, answerer.complete(batch), strict=True):
            exit_layer = None if answer.report is None else answer.report.exit_layer
            found[str(item.head["question_id"])] = answer.text, exit_layer
    return found


def compare(expected: dict[str, Outcome], found: dict[str, Outcome], dtype: str, graphs: bool) -> Agreement:
    """How many outcomes are as expected."""
    pairs = [(expected[name], found[name]) for name in expected]
    return Agreement(
        dtype,
        graphs,
        questions=len(pairs),
        answers=sum(one[0] == other[0] for one, other in pairs),
        exits=sum(one[1] == other[1] for one, other in pairs),
        different=[name for name in expected if expected[name] != found[name]],
    )


def check(args: argparse.Namespace) -> None:
    """Answer in all ways, print the table and write the JSON file; exit code 1 where float32 differs."""
    torch.backends.cudnn.allow_tf32 = False  # the default for convolutions, which rounds the pixels' features
    expected = answer_all(args, "cpu", EXACT, graphs=False)
    ways = [(dtype, graphs) for dtype in (EXACT, "bfloat16") for graphs in (False, True)]
    if torch.device(args.device).type == "cpu":
        ways = [(dtype, graphs) for dtype, graphs in ways if not graphs]
    results = [compare(expected, answer_all(args, args.device, *way), *way) for way in ways]
    if args.json:
        name = model_name_of(args.model_path)
        what = f"{len(expected)} questions to {name}, batches of {args.batch_size}, beside a CPU in {EXACT}"
        settings = {"command": "parity", "device": args.device, "what": what}
        content = {"settings": settings, **provenance(), "results": [asdict(result) for result in results]}
        write_json(args.json, content)
    rows = [["Precision", "CUDA graphs", "Equal answers", "Equal exits", "Different"]]
    for one in results:
        some = ", ".join(one.different[:5]) + (", ..." if len(one.different) > 5 else "")
        equal = [f"{count} of {one.questions}" for count in (one.answers, one.exits)]
        rows.append([one.dtype, "yes" if one.graphs else "no", *equal, some])
    print(to_markdown(rows))
    if broken := [one for one in results if one.broken]:
        sys.exit(f"in {EXACT} {len(broken[0].different)} of {len(expected)} questions come out differently")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.bench.parity", description="Does a device answer as a CPU does?"
    )
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--gates", type=gates_folder, help="folder, or org/name[@revision] on the hub")
    parser.add_argument("--question-file", required=True)
    parser.add_argument("--image-folder", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--json", type=Path, help="write counts and provenance here")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    run(build_parser(), check, argv)


if __name__ == "__main__":
    main()
