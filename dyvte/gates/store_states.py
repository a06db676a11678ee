"""Store the states that gates look at, and what exits would do, in one pass of the frozen model.

    python -m dyvte.gates.store_states --model-path MODEL --data-path gates.json --image-folder DIR --output STORE

Gates are then fitted with ``dyvte.gates.fit`` without the model. An interrupted pass goes on with the shards
that are missing; a store of another model, other data or other settings is refused. ``--attention`` also stores
attention statistics (Table 6 of the paper). Records are read whole, so give it what ``dyvte.gates.sample`` draws.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from dyvte.engine.run import run
from dyvte.gates.states import ATTENTION_STATES, STATES
from dyvte.gates.store import StoreWriter
from dyvte.gates.supervision import supervise
from dyvte.gates.training import usable_samples
from dyvte.provenance import checkpoint_digest, sha256_of
from llava.constants import IGNORE_INDEX
from llava.train import prepare
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.dataset import SupervisedDataset, find_template, image_paths, make_supervised_data_module


def data_digest(data_path: str | Path, records: list[dict], image_folder: str) -> str:
    """SHA-256 over an instruction file and the sizes of the images that it names."""
    path = Path(data_path)
    digest = hashlib.sha256(sha256_of([path], path.parent)[path.name].encode())
    for record in records:
        for image in image_paths(record):
            file = Path(image_folder) / image
            digest.update(f"{image} {file.stat().st_size if file.is_file() else 'missing'}\n".encode())
    return digest.hexdigest()


def identity_of(
    args: argparse.Namespace, base, dataset: SupervisedDataset, image_folder: str
) -> dict[str, Any]:
    """What the store's content depends on."""
    config = base.config
    return {
        "model": checkpoint_digest(args.model_path, getattr(config, "mm_vision_tower", None)),
        "data": data_digest(args.data_path, dataset.records, image_folder),
        "settings": {
            "version": args.version,
            "image_aspect_ratio": dataset.data_args.image_aspect_ratio,
            "model_max_length": args.model_max_length,
        },
        "states": [*STATES, *(ATTENTION_STATES if args.attention else ())],
        "dtype": str(base.dtype).removeprefix("torch."),
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "samples": len(dataset),
    }


@torch.no_grad()
def measure(base, batch: dict, samples: Sequence[int], states: Sequence[str]) -> dict[str, Tensor]:
    """A batch's part of a shard, on the CPU.

    Args:
        base: the frozen model.
        batch: what the collator made of the samples with these numbers.
        states: which states to store.
    """
    device, dtype = base.device, base.dtype
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    images = inputs.get("images")
    if images is not None:
        images = (
            images.to(dtype) if torch.is_tensor(images) else [image.to(device, dtype) for image in images]
        )
    spliced = base.splice_images(
        inputs["input_ids"], inputs["attention_mask"], inputs["labels"], images, inputs.get("image_sizes")
    )
    found = supervise(
        base,
        spliced.inputs_embeds,
        spliced.labels,
        spliced.visual_mask,
        spliced.attention_mask,
        states=states,
    )
    rows = list(found.samples)
    before_answer = ((spliced.labels != IGNORE_INDEX).cumsum(1) == 0) & spliced.attention_mask
    # (L, n, K * D) -> K times (n, L, D)
    parts = found.states.unflatten(-1, (len(states), -1)).transpose(0, 1).unbind(2)
    tensors = {
        "index": torch.tensor([samples[row] for row in rows], dtype=torch.long),
        **dict(zip(states, parts, strict=True)),
        "agreement": found.agreement.T.float(),
        "loss_with_exit": found.loss_with_exit.T,
        "loss_without_exit": found.loss_without_exit,
        "prompt_tokens": before_answer.sum(1)[rows],
        "visual_tokens": spliced.visual_mask.sum(1)[rows],
    }
    return {name: value.cpu() for name, value in tensors.items()}


def write_shard(
    writer: StoreWriter,
    number: int,
    part: range,
    base,
    dataset: SupervisedDataset,
    collator,
    args: argparse.Namespace,
    progress: tqdm,
) -> None:
    """Run the model over a shard's samples and write the shard."""
    loader = DataLoader(Subset(dataset, part), args.batch_size, collate_fn=collator, num_workers=args.workers)
    counted, pieces, start = [], [], part.start
    for batch in loader:
        size = len(batch["input_ids"])
        one = [{name: batch[name][row : row + 1] for name in ("input_ids", "labels")} for row in range(size)]
        counted += [bool(usable_samples(row)) for row in one]
        pieces.append(measure(base, batch, range(start, start + size), writer.manifest["states"]))
        start += size
        progress.update(size)
    lengths = [dataset.modality_lengths[sample] for sample in part]
    joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    ranged = {"modality_lengths": torch.tensor(lengths), "counted": torch.tensor(counted)}
    writer.write(number, {**joined, **ranged})


def store(args: argparse.Namespace) -> None:
    """Write what the store lacks."""
    training = TrainingArguments(
        output_dir=str(args.output),
        bf16=args.dtype == "bfloat16",
        fp16=False,
        use_cpu=args.device == "cpu",
        model_max_length=args.model_max_length,
        report_to="none",
    )
    model_args = ModelArguments(model_name_or_path=args.model_path, version=args.version)
    data_args = DataArguments(data_path=args.data_path, image_folder=args.image_folder)
    base, tower = prepare.load_frozen_llava(model_args, data_args, training, args.attn_implementation)
    tokenizer = prepare.load_tokenizer(base, model_args, training)
    data = make_supervised_data_module(
        tokenizer, data_args, find_template(args.version), tower, base.config, blank_image=False
    )
    dataset = data["train_dataset"]
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.output / ".lock", timeout=0):
            writer = StoreWriter(
                args.output, identity_of(args, base, dataset, args.image_folder), args.shard_size
            )
            missing = writer.missing()
            todo = sum(len(part) for _, part in missing)
            with tqdm(
                total=len(dataset), initial=len(dataset) - todo, desc="states", unit="sample"
            ) as progress:
                for number, part in missing:
                    write_shard(writer, number, part, base, dataset, data["data_collator"], args, progress)
    except Timeout:
        raise ValueError(f"another run is writing {args.output}; wait for it, or stop it") from None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.gates.store_states", description="Store states and what exits would do."
    )
    parser.add_argument("--model-path", required=True, help="folder or hub name of a finished LLaVA model")
    parser.add_argument("--data-path", required=True, help="what dyvte.gates.sample draws")
    parser.add_argument("--image-folder", required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the store")
    parser.add_argument("--version", default="v1", help="prompt template")
    parser.add_argument("--model-max-length", type=int, default=2048)
    parser.add_argument("--attention", action="store_true", help="store attention statistics as well")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--shard-size", type=int, default=256, help="samples per file")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cuda: where there is one")
    parser.add_argument("--attn-implementation", help="sdpa, flash_attention_2 or eager")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    run(build_parser(), store, argv)


if __name__ == "__main__":
    main()
