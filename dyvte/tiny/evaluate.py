"""How well Tiny-LLaVA answers, by question kind: with the image, blind, and with a fixed exit at every layer.

Blind is the same prompt without the image and its placeholder. An answer counts when it equals the right one, upper
and lower case alike. Writes OUT.json and OUT.md.

    python -m dyvte.tiny.evaluate --model-path DIR --data DIR/eval/heldout --out FILE_WITHOUT_SUFFIX
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dyvte import FixedExit, NoExit
from dyvte.cli import run
from dyvte.engine.answer import Answerer
from dyvte.engine.model import Generation, ModelOptions
from dyvte.engine.openers import open_model
from dyvte.engine.options import add_device_arguments, add_template_arguments, flags_of
from dyvte.engine.questions import item_of, read_lines
from dyvte.engine.run import prepared_batches
from dyvte.io import write_json, write_whole

WITH_IMAGE, BLIND = "image", "blind"


def accuracy_by_kind(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> dict[str, float]:
    """Percent right of each kind, and the mean over kinds as "mean"."""
    right: dict[str, list[bool]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        right[row["kind"]].append(answer.strip().lower() == row["answer"].lower())
    values = {kind: 100 * sum(marks) / len(marks) for kind, marks in right.items()}
    return {**values, "mean": sum(values.values()) / len(values)}


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Ask every question in every way.

    Returns:
        "questions" (their number), "layers" (the model's), and "accuracy": for each way of asking ("image", "blind",
        or an exit layer as text) what ``accuracy_by_kind`` gives.
    """
    rows = [row for _, row in read_lines(str(args.data / "questions.jsonl"))]
    rows.sort(key=lambda row: (len(row["text"]), row["question_id"]))
    chat = open_model(replace(flags_of(ModelOptions, args), template=args.conv_mode))
    assert chat.handle is not None
    depth = chat.decoder_config.num_hidden_layers
    ways = [WITH_IMAGE, BLIND, *(range(depth) if args.layers is None else args.layers)]
    accuracy, items = {}, [item_of(row) for row in rows]
    answerer = Answerer(chat, Generation(max_new_tokens=8))
    with chat.handle, tqdm(total=len(ways) * len(rows), unit="q") as bar:
        for way in ways:
            bar.set_description(f"exit {way}" if isinstance(way, int) else way)
            chat.handle.policy = FixedExit(way) if isinstance(way, int) else NoExit()
            asked, answers = [replace(item, images=()) for item in items] if way == BLIND else items, []
            for _, batch in prepared_batches(asked, args.batch_size, chat, str(args.data / "images")):
                answers += [answer.text for answer in answerer.complete(batch)]
                bar.update(len(batch))
            accuracy[str(way)] = accuracy_by_kind(rows, answers)
    return {"questions": len(rows), "layers": depth, "accuracy": accuracy}


def as_markdown(result: dict[str, Any]) -> str:
    """One row per kind; columns are the ways of asking."""
    accuracy = result["accuracy"]
    ways = list(accuracy)
    rows = [["kind", *(f"exit {way}" if way.isdigit() else way for way in ways)]]
    rows += [[kind, *(f"{accuracy[way][kind]:.1f}" for way in ways)] for kind in accuracy[WITH_IMAGE]]
    head, *body = (f"| {' | '.join(row)} |\n" for row in rows)
    return "".join([head, "|---|" + "---:|" * len(ways) + "\n", *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of questions.jsonl and images")
    parser.add_argument("--out", type=Path, required=True, help="where to write, without .json or .md")
    add_template_arguments(parser, "vicuna_v1_nosys")
    add_device_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--layers", type=int, nargs="*", help="exit layers to try (default: all)")

    def action(args: argparse.Namespace) -> None:
        result = evaluate(args)
        write_json(args.out.with_suffix(".json"), result, indent=2)
        write_whole(args.out.with_suffix(".md"), as_markdown(result))
        print(as_markdown(result))

    run(parser, action)


if __name__ == "__main__":
    main()
