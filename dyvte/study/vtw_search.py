"""VTW's search for its exit layer: how far the next token moves when the image leaves before each layer.

python -m dyvte.study.vtw_search --model-path PATH --data-path FILE --image-folder DIR --output vtw.json
    [--limit 50] [--divergence 0.003] [--first 5]

FILE is instruction data in LLaVA's format (``.json``, as ``dyvte.gates.sample`` draws it), of which the first
questions are asked, or a file of questions (``.jsonl``). Divergences go to the output first, so that another
``--divergence`` needs no second pass; the chosen ``k`` is for ``--method vtw --method-config k=K``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dyvte.cli import run
from dyvte.engine import calibrate
from dyvte.engine.answer import Answerer
from dyvte.engine.options import add_device_arguments, add_template_arguments
from dyvte.engine.questions import Item, check_items, item_of, read_lines
from dyvte.engine.run import prepared_batches
from dyvte.io import check_output, read_json_object, write_json
from dyvte.reduction.vtw import choose_layer, exit_divergences
from dyvte.study.files import has_settings
from dyvte.study.run import downloaded, evenly_spaced, open_with_policy, provenance, settings_digest


def read_questions(data_path: Path) -> Sequence[Item]:
    """Questions of instruction data, or of a file of questions by its ending.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or nothing usable in it.
    """
    if data_path.suffix == ".jsonl":
        return read_lines(str(data_path)).map(lambda row: item_of(row[1], row[0]))
    return calibrate.read_items(str(data_path))


@torch.inference_mode()
def divergences_of(
    answerer: Answerer, items: Sequence[Item], image_folder: str, batch_size: int, layers: Sequence[int]
) -> Tensor:
    """(L, n) divergences of the n questions that have an exit.

    Raises:
        ValueError: none has.
    """
    assert answerer.handle is not None
    parts = []
    with tqdm(total=len(items), desc="vtw search", unit="q") as progress:
        for _, batch in prepared_batches(items, batch_size, answerer.chat, image_folder):
            next_logits = partial(answerer.chat.prefill, answerer.chat.place(batch))
            parts.append(exit_divergences(answerer.handle, next_logits, layers).cpu())
            progress.update(len(batch))
    found = torch.cat(parts, dim=1)
    if not found.shape[1]:
        raise ValueError("no question has an image with text after it, so no exit can be judged")
    return found


def measure_divergences(args: argparse.Namespace) -> dict[str, Any]:
    """Divergences from the output file where this run's settings made it, else from the model.

    Raises:
        FileNotFoundError, ValueError: files are missing, or settings do not fit.
    """
    check_output(args.output, args.data_path, "--output and --data-path")
    args.question_file, args.method, args.gates = str(args.data_path), "none", None
    answerer = downloaded(args)
    settings = settings_digest(args, but=("output", "divergence"))
    if has_settings(args.output, settings):
        return read_json_object(args.output)
    items = evenly_spaced(read_questions(args.data_path), args.limit)
    check_items(items, args.image_folder)
    answerer = answerer or open_with_policy(args)
    layers = list(range(args.first, answerer.chat.decoder_config.num_hidden_layers))
    if args.first < 1 or not layers:
        raise ValueError(f"--first must be a layer from 1 on, and below the model's depth, got {args.first}")
    found = divergences_of(answerer, items, args.image_folder, args.batch_size, layers)
    args.name, args.data_dir = args.data_path.name, args.data_path.parent
    return {
        "layers": layers,
        "mean_divergence": found.mean(1).tolist(),
        "samples": found.shape[1],
        **provenance(args, "dyvte.study.vtw_search", answerer.model),
        "settings_sha256": settings,
    }


def search(args: argparse.Namespace) -> None:
    """Measure, choose VTW's ``k``, write, and print.

    Raises:
        ValueError: no layer is within the threshold; the divergences are written all the same.
    """
    found = measure_divergences(args)
    means = torch.tensor(found["mean_divergence"], dtype=torch.float64)[:, None]
    k = None
    try:
        k = choose_layer(means, found["layers"], args.divergence)
    finally:
        write_json(args.output, {**found, "threshold": args.divergence, "k": k})
    for layer, mean in zip(found["layers"], found["mean_divergence"], strict=True):
        print(f"k={layer:<3d} mean divergence {mean:.3g}{'   <- chosen' if layer == k else ''}")
    print(f"{args.output}: k={k} ({found['samples']} questions, threshold {args.divergence:g})")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.study.vtw_search",
        description="Find the layer before which VTW withdraws the image.",
    )
    add = parser.add_argument
    add("--model-path", required=True)
    add("--model-base")
    add("--data-path", type=Path, required=True, help="instruction data, or questions (.jsonl)")
    add("--image-folder", required=True)
    add("--output", type=Path, required=True, help="JSON file to write")
    add_template_arguments(parser, "vicuna_v1")
    add("--batch-size", type=int, default=1)
    add("--limit", type=int, default=50, help="questions, evenly spaced in the file")
    add("--divergence", type=float, default=0.003, help="largest mean divergence (13B: 0.0005)")
    add("--first", type=int, default=5, help="first k that is tried")
    add_device_arguments(parser)
    run(parser, search, arguments)


if __name__ == "__main__":
    main()
