"""Settings of the experiments: each is a flag (``--questions 9``) and an environment variable (``QUESTIONS=9``)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NewType

Number = NewType("Number", str)
"""A number as it was written: commands, folders and records keep its text."""


def number(text: str) -> Number:
    """The text itself. Raises ValueError where it is no number."""
    float(text)
    return Number(text)


def positive(text: str) -> int:
    """An integer above 0. Raises ValueError for anything else."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _setting(help: str, parse: Callable[[str], Any], default: Any = None, split: str | None = None) -> Any:
    """One setting. ``split`` separates the values of a list in an environment variable; "\\n": there is one value."""
    return field(default=default, metadata={"help": help, "parse": parse, "split": split})


@dataclass(frozen=True)
class Settings:
    """What a person can choose. None: the experiment's or the model's own value, which the help text names.

    Relative paths are relative to the project's folder.
    """

    model: tuple[str, ...] | None = _setting(
        "checkpoint (the shipped Tiny-LLaVA; tables 1-3, 5, 6: also the paper's models in MODELS_DIR)",
        str,
        split="\n",
    )
    out: Path | None = _setting(
        "folder of results (outputs/reproduce; all: outputs/all/<model>; quickstart: outputs/quickstart)",
        Path,
    )
    models_dir: Path = _setting(
        "where checkpoints of the paper's models are looked for", Path, Path("checkpoints")
    )
    data_root: Path = _setting("the benchmarks' data", Path, Path("playground/data/eval"))
    benchmarks: tuple[str, ...] | None = _setting("instead of the experiment's own", str, split=" ")
    questions: int = _setting("of each of Tiny-LLaVA's benchmarks, which are made in OUT", positive, 200)
    force: bool | None = _setting("run again what is done", bool)
    steps: tuple[str, ...] | None = _setting("all: run these experiments only", str, split=" ")

    gates: Path | None = _setting(
        "folder of gates (Tiny-LLaVA: playground/tiny/gates; others: GATES_DIR/<model>-gates, else the checkpoint's)",
        Path,
    )
    gates_dir: Path = _setting("where gates of a checkpoint are looked for", Path, Path("checkpoints"))
    threshold: Number | None = _setting("exit above this gate probability (as calibrated, else 0.5)", number)
    conv_mode: str | None = _setting("conversation template (vicuna_v1; Tiny-LLaVA: vicuna_v1_nosys)", str)
    batch_size: int | None = _setting("prompts per batch (1; Tiny-LLaVA: 16)", positive)
    verify_every: int | None = _setting(
        "each N-th question of a batch is asked alone, too (100; 0: none)", int
    )
    variant: str | None = _setting("official variant of the scorer (python -m dyvte.benchmarks list)", str)
    chunks: int | None = _setting("processes that answer (one for each of CUDA_VISIBLE_DEVICES)", positive)

    limit: int | None = _setting(
        "questions of each benchmark for attention (100), the oracle exit (all) and the examples (6)",
        positive,
    )
    layers: tuple[int, ...] | None = _setting("fixed exit layers of figure 4 (all)", int, split=" ")
    thresholds: tuple[Number, ...] = _setting(
        "of the gates in dynamic, beside their own (0.1 0.25 0.75 0.9 0.97)",
        number,
        tuple(map(Number, ("0.1", "0.25", "0.75", "0.9", "0.97"))),
        split=" ",
    )
    rivals: tuple[str, ...] | None = _setting(
        "other methods with their settings ('fastv k=2 r=0.5' 'tome r=18'; in RIVALS split by ';')",
        str,
        split=";",
    )
    vtw_k: int | None = _setting("VTW's layer (as published or shipped, else searched with TRAIN_DATA)", int)
    vtw_divergence: Number = _setting(
        "threshold of the search (0.003; VTW's paper: 0.0005 for 13B)", number, "0.003"
    )

    train_data: Path | None = _setting(
        "what dyvte.gates.sample drew, to fit gates to (Tiny-LLaVA: made in OUT/tiny-train)", Path
    )
    train_images: Path | None = _setting("folder of its images", Path)
    judge_data: Path | None = _setting(
        "another sample in TRAIN_IMAGES, that no gate is fitted to (Tiny-LLaVA: made in OUT/tiny-train)", Path
    )
    scenes: int | None = _setting("Tiny-LLaVA's training scenes (8000; quickstart: 4000)", positive)
    fraction: Number | None = _setting("share of them that is drawn (0.2; quickstart: 1)", number)
    seed: int | None = _setting("of the sample (0) and of fitting (42; quickstart: 0)", int)
    version: str | None = _setting("prompt template of fitting (v1; Tiny-LLaVA: vicuna_v1_nosys)", str)
    dtype: str = _setting("float32 or bfloat16, of the stored states (float32)", str, "float32")
    lr: Number | None = _setting("learning rate of gates (4e-5; Tiny-LLaVA: 1e-3)", number)
    epochs: Number | None = _setting("of fitting (1; Tiny-LLaVA: 4)", number)
    gate_batch: int | None = _setting("samples per step of fitting (128; Tiny-LLaVA: 32)", positive)
    width: int | None = _setting("of a gate (2048; Tiny-LLaVA: 128)", positive)
    gain: Number | None = _setting("of fresh gates (1; Tiny-LLaVA: 0.1)", number)
    reference: str = _setting("gate_sizes: the size that sets the budget (full-2048)", str, "full-2048")
    label_epochs: tuple[int, ...] = _setting("labels: epochs of fitting (1 4)", positive, (1, 4), split=" ")
    label_seeds: tuple[int, ...] = _setting("labels: seeds of fitting (0 1 2)", int, (0, 1, 2), split=" ")

    def given(self, names: tuple[str, ...]) -> dict[str, str]:
        """Text of those of these settings that are not at their default, by variable name."""
        chosen = [item for item in fields(self) if item.name in names]
        values = {item: getattr(self, item.name) for item in chosen}
        return {
            item.name.upper(): (item.metadata["split"] or "").join(map(str, value))
            if isinstance(value, tuple)
            else str(value)
            for item, value in values.items()
            if value != item.default
        }


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting. Those that are not given are None in the namespace."""
    for item in fields(Settings):
        flag, info = f"--{item.name.replace('_', '-')}", item.metadata
        if info["parse"] is bool:
            parser.add_argument(flag, action="store_const", const=True, help=info["help"])
        else:
            many = "+" if info["split"] else None
            parser.add_argument(
                flag, type=info["parse"], nargs=many, metavar=item.name.upper(), help=info["help"]
            )


def read_settings(flags: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Settings from flags, else from the environment, where an empty variable counts as none.

    Raises:
        ValueError: a variable has no possible value.
    """
    values = {}
    for item in fields(Settings):
        value = getattr(flags, item.name)
        if value is None and (text := environment.get(item.name.upper(), "").strip()):
            value = _parse(item, text)
        if value is not None:
            values[item.name] = tuple(value) if isinstance(value, list) else value
    return Settings(**values)


def _parse(item: Field[Any], text: str) -> Any:
    parse, split = item.metadata["parse"], item.metadata["split"]
    words = text.split(None if split == " " else split) if split else [text]
    try:
        parsed = [parse(word.strip()) for word in words if word.strip()]
    except ValueError:
        raise ValueError(f"{item.name.upper()}={text} is not possible: {item.metadata['help']}") from None
    return parsed if split else parsed[0]
