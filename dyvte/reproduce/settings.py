"""Settings of the experiments: each is a flag (``--questions 9``) and an environment variable (``QUESTIONS=9``)."""

from __future__ import annotations

import argparse
import re
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


PARSERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "bool": bool,
    "Path": Path,
    "Number": number,
    "str": str,
}


def _setting(help: str, default: Any = None, split: str | None = " ") -> Any:
    """One setting. ``split`` separates the values of a list in the environment variable (None: there is one)."""
    return field(default=default, metadata={"help": help, "split": split})


@dataclass(frozen=True)
class Settings:
    """What a person can choose. None: the value of the experiment or of the model, which the help text names."""

    model: tuple[str, ...] | None = _setting(
        "checkpoint (Tiny-LLaVA; tables also those in MODELS_DIR)", split=None
    )
    out: Path | None = _setting("folder of results (outputs/reproduce; all: outputs/all/<model>)")
    models_dir: Path = _setting("folder of checkpoints of the paper's models", Path("checkpoints"))
    data_root: Path = _setting("folder of the benchmarks' data", Path("playground/data/eval"))
    benchmarks: tuple[str, ...] | None = _setting("instead of the experiment's own")
    questions: int = _setting("of each of Tiny-LLaVA's benchmarks, which are made in OUT (200)", 200)
    force: bool | None = _setting("run again what is done")
    steps: tuple[str, ...] | None = _setting("all: run these experiments only")

    gates: Path | None = _setting("folder of gates (GATES_DIR/<model>-gates, else those in the checkpoint)")
    gates_dir: Path = _setting("folder of folders of gates", Path("checkpoints"))
    threshold: Number | None = _setting("exit above this gate probability (as calibrated, else 0.5)")
    conv_mode: str | None = _setting("conversation template (vicuna_v1; Tiny-LLaVA: vicuna_v1_nosys)")
    batch_size: int | None = _setting("prompts per batch (1; Tiny-LLaVA: 16)")
    verify_every: int | None = _setting("ask each N-th question of a batch alone as well (100; 0: none)")
    variant: str | None = _setting("official variant of the scorer (python -m dyvte.benchmarks list)")
    chunks: int | None = _setting("processes that answer (one for each GPU)")

    limit: int | None = _setting("questions of a benchmark, for attention (100), oracle (all), examples (6)")
    layers: tuple[int, ...] | None = _setting("fixed exit layers of figure 4 (all)")
    thresholds: tuple[Number, ...] = _setting(
        "of the gates in dynamic, beside their own (0.1 0.25 0.75 0.9 0.97)",
        tuple(map(Number, ("0.1", "0.25", "0.75", "0.9", "0.97"))),
    )
    rivals: tuple[str, ...] | None = _setting(
        "other methods with their settings: 'fastv k=2 r=0.5' 'tome r=18' (in RIVALS split by ;)", split=";"
    )
    vtw_k: int | None = _setting("VTW's layer (as published, else searched for with TRAIN_DATA)")
    vtw_divergence: Number = _setting(
        "threshold of this search (0.003; VTW's paper for 13B: 0.0005)", Number("0.003")
    )

    train_data: Path | None = _setting(
        "sample to fit gates to, drawn by dyvte.gates.sample (Tiny-LLaVA: made)"
    )
    train_images: Path | None = _setting("folder of its images (playground/data; Tiny-LLaVA: made)")
    judge_data: Path | None = _setting("another sample of these images, to judge gates on (Tiny-LLaVA: made)")
    scenes: int | None = _setting("training scenes to make for Tiny-LLaVA (8000; quickstart: 4000)")
    fraction: Number | None = _setting("share of them to draw (0.2; quickstart: 1)")
    seed: int | None = _setting("of drawing (0) and of fitting (42; quickstart: 0)")
    version: str | None = _setting("prompt template of fitting (v1; Tiny-LLaVA: vicuna_v1_nosys)")
    dtype: str = _setting("of the model and of stored states: float32 or bfloat16 (float32)", "float32")
    lr: Number | None = _setting("learning rate of gates (4e-5; Tiny-LLaVA: 1e-3)")
    epochs: Number | None = _setting("of fitting (1; Tiny-LLaVA: 4)")
    gate_batch: int | None = _setting("samples per step of fitting (128; Tiny-LLaVA: 32)")
    width: int | None = _setting("of a gate (2048; Tiny-LLaVA: 128)")
    gain: Number | None = _setting("of fresh gates (1; Tiny-LLaVA: 0.1)")
    reference: str = _setting("gate_sizes: the size that sets the budget (full-2048)", "full-2048")
    label_epochs: tuple[int, ...] = _setting("labels: epochs of fitting (1 4)", (1, 4))
    label_seeds: tuple[int, ...] = _setting("labels: seeds of fitting (0 1 2)", (0, 1, 2))

    def given(self, names: tuple[str, ...]) -> dict[str, str]:
        """Those of these settings that are not at their default, as environment variables."""
        chosen = {item: getattr(self, item.name) for item in fields(self) if item.name in names}
        return {
            item.name.upper(): (item.metadata["split"] or "").join(map(str, value))
            if isinstance(value, tuple)
            else str(value)
            for item, value in chosen.items()
            if value != item.default
        }


def _parser_of(item: Field[Any]) -> tuple[Callable[[str], Any], bool]:
    """What reads one value of a setting, and whether there may be several."""
    found = re.search("|".join(PARSERS), str(item.type))
    assert found, f"{item.name} has no type that can be read"
    return PARSERS[found[0]], str(item.type).startswith("tuple")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting. Those that are not given are None in the namespace."""
    for item in fields(Settings):
        flag, help, (parse, many) = (
            f"--{item.name.replace('_', '-')}",
            item.metadata["help"],
            _parser_of(item),
        )
        if parse is bool:
            parser.add_argument(flag, action="store_const", const=True, help=help)
        else:
            nargs = "+" if many else None
            parser.add_argument(flag, type=parse, nargs=nargs, metavar=item.name.upper(), help=help)


def read_settings(flags: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Settings from flags, else from the environment, where an empty variable counts as none.

    Raises:
        ValueError: a variable has no possible value.
    """
    values = {}
    for item in fields(Settings):
        value = getattr(flags, item.name)
        if value is None and (text := environment.get(item.name.upper(), "").strip()):
            value = _read(item, text)
        if value is not None:
            values[item.name] = tuple(value) if isinstance(value, list) else value
    return Settings(**values)


def _read(item: Field[Any], text: str) -> Any:
    (parse, many), split = _parser_of(item), item.metadata["split"]
    words = text.split(split) if many and split else [text]
    try:
        parsed = [parse(word.strip()) for word in words if word.strip()]
    except ValueError:
        raise ValueError(f"{item.name.upper()}={text} is not possible: {item.metadata['help']}") from None
    return parsed if many else parsed[0]
