"""Store the states that gates read, and the effect of every exit, in one pass of the frozen model.

    python -m dyvte.gates.store_states --model-path MODEL --data-path gates.json --image-folder DIR --output STORE

``dyvte.gates.fit`` then fits gates without the model. An interrupted pass resumes with the missing shards; a store of
another model, other data or other settings is refused. Several processes write one store together, under torchrun or
started one by one on any machines: each takes a shard that nobody has. ``--attention`` also stores attention
statistics (Table 6 of the paper). Each record is read with all its turns, so use what ``dyvte.gates.sample`` draws.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from dyvte.cli import run
from dyvte.decoding.sharding import close_group_at_exit, in_step
from dyvte.engine.instructions import check_records, data_digest, read_records
from dyvte.engine.model import ChatModel, DefaultTemplate, ModelOptions, TrainingSet
from dyvte.engine.openers import open_model
from dyvte.engine.options import flags_of
from dyvte.gates.origin import short_name
from dyvte.gates.states import ATTENTION_STATES, STATES
from dyvte.gates.store import Manifest, StoreWriter
from dyvte.gates.supervision import IGNORE_INDEX, supervise

logger = logging.getLogger(__name__)


def manifest_of(args: argparse.Namespace, chat: ChatModel, dataset: TrainingSet) -> Manifest:
    """What the content of the store depends on."""
    config: Any = chat.model.config
    made = None if chat.handle is None else chat.handle.run
    assert made is not None and made.model_sha256 is not None, "open_model gives both"
    if made.processor is not None:  # what prompts and pixels depend on beside the weights
        prompts = {"version": made.template, "processor": dict(made.processor)}
    else:
        aspect = getattr(config, "image_aspect_ratio", None) or "square"
        prompts = {"version": args.version, "image_aspect_ratio": aspect}
    return Manifest(
        model=made.model_sha256,
        data=data_digest(args.data_path, dataset.records, args.image_folder),
        settings={**prompts, "model_max_length": args.model_max_length},
        states=[*STATES, *(ATTENTION_STATES if args.attention else ())],
        dtype=str(chat.model.dtype).removeprefix("torch."),
        num_layers=chat.decoder_config.num_hidden_layers,
        hidden_size=chat.decoder_config.hidden_size,
        samples=len(dataset),
        shard_size=args.shard_size,
        base_model=short_name(args.model_path),
        model_family=config.model_type,
    )


@torch.no_grad()
def measure(chat: ChatModel, batch: dict, samples: Sequence[int], states: Sequence[str]) -> dict[str, Tensor]:
    """A batch's part of a shard, on the CPU.

    Args:
        batch: what the collator made of the samples with these numbers.
        states: which states to store.
    """
    embedded = chat.embed_samples(batch)
    found = supervise(chat.model, **vars(embedded), states=states)
    rows = list(found.samples)
    real = embedded.attention_mask.bool()
    before_answer = ((embedded.labels != IGNORE_INDEX).cumsum(1) == 0) & real
    # (L, n, K * D) -> K times (n, L, D)
    parts = found.states.unflatten(-1, (len(states), -1)).transpose(0, 1).unbind(2)
    tensors = {
        "index": torch.tensor([samples[row] for row in rows], dtype=torch.long),
        **dict(zip(states, parts, strict=True)),
        "agreement": found.agreement.T.float(),
        "loss_with_exit": found.loss_with_exit.T,
        "loss_without_exit": found.loss_without_exit,
        "prompt_tokens": before_answer.sum(1)[rows],
        "visual_tokens": embedded.visual_mask.sum(1)[rows],
    }
    return {name: value.cpu() for name, value in tensors.items()}


def shard_of(
    chat: ChatModel, batches: DataLoader, samples: range, states: Sequence[str], progress: tqdm
) -> dict[str, Tensor]:
    """Run the model over a shard's samples, all but their ``modality_lengths``."""
    pieces, start = [], samples.start
    for batch in batches:
        size = len(batch["input_ids"])
        pieces.append(measure(chat, batch, range(start, start + size), states))
        start += size
        progress.update(size)
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def store(args: argparse.Namespace) -> None:
    """Write what the store lacks, and no other process is writing."""
    check_records(read_records(args.data_path), args.data_path, args.image_folder)  # before a model is loaded
    process = PartialState(cpu=args.device == "cpu")
    close_group_at_exit()
    options = replace(flags_of(ModelOptions, args), template=args.version)
    if process.num_processes > 1 and not args.shard_model:
        options = replace(options, device=str(process.device))  # a GPU of its own
    chat = open_model(options)
    if chat.handle is None:
        raise ValueError(f"{args.model_path} takes no images: gates need a model with a vision tower")
    dataset, collator = chat.training_data(args.data_path, args.image_folder, args.model_max_length)
    manifest = manifest_of(args, chat, dataset)
    writer = StoreWriter(args.output, manifest)
    lengths = torch.tensor(dataset.modality_lengths)
    bar = tqdm(total=len(dataset), desc="states", unit="sample", disable=process.process_index > 0)
    with in_step(chat.model), bar as progress:
        for number, part in writer.claims():
            missing = sum(len(part) for _, part in writer.missing())
            progress.update(len(dataset) - missing - progress.n)  # what all processes have written
            rows: Any = Subset(dataset, part)  # type: ignore[arg-type] - a Dataset by its methods
            batches = DataLoader(rows, args.batch_size, collate_fn=collator, num_workers=args.workers)
            tensors = shard_of(chat, batches, part, manifest.states, progress)
            writer.write(number, {**tensors, "modality_lengths": lengths[part.start : part.stop]})
    if absent := len(writer.missing()):
        logger.warning("%d shards are being written by other processes", absent)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.gates.store_states", description="Store states and the effect of every exit."
    )
    parser.add_argument("--model-path", required=True, help="folder or hub name of a finished model")
    parser.add_argument("--data-path", required=True, help="what dyvte.gates.sample draws")
    parser.add_argument("--image-folder", required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the store")
    parser.add_argument(
        "--version", default=DefaultTemplate("v1"), help="prompt template of LLaVA's checkpoints"
    )
    parser.add_argument("--model-max-length", type=int, default=2048)
    parser.add_argument("--attention", action="store_true", help="store attention statistics as well")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--shard-size", type=int, default=256, help="samples per file")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cuda: where there is one")
    parser.add_argument("--attn-implementation", help="sdpa, flash_attention_2 or eager")
    parser.add_argument(
        "--shard-model",
        action="store_true",
        help="under torchrun: the processes share the decoder's layers, for a model larger than one GPU",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    run(build_parser(), store, argv)


if __name__ == "__main__":
    main()
