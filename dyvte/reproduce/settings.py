"""Settings of the experiments: each is a flag (``--questions 9``) and an environment variable (``QUESTIONS=9``).

Called by :mod:`dyvte.reproduce`, :mod:`dyvte.reproduce.runner` and :mod:`dyvte.reproduce.work`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

DRAWN = Path("playground/data/llava_v1_5_mix665k_gates.json")
THRESHOLDS = ("0.1", "0.25", "0.75", "0.9", "0.97")


def number(text: str) -> str:
    """A number as it was written, because folders and records keep its text. Raises ValueError for other text."""
    float(text)
    return text


def _setting(help: str, parse: Callable[[str], Any] = str, default: Any = None, **more: Any) -> Any:
    """One setting. ``split`` separates the values in the environment variable (none: there is one value); ``usual``
    and ``tiny`` are what None stands for, the latter for Tiny-LLaVA; Small-LLaVA has Tiny-LLaVA's but for ``small``.
    """
    how = {"parse": parse, "split": None, "usual": None, "tiny": None, "small": None, **more}
    if None not in (how["usual"], how["tiny"]):
        help += f" ({how['usual']}; Tiny-LLaVA: {how['tiny']})"
    return field(default=default, metadata={"help": help, **how})


@dataclass(frozen=True)
class Settings:
    """What a person can choose. None: the value of the experiment or of the model, which the help text names."""

    model: tuple[str, ...] | None = _setting("checkpoint (Tiny-LLaVA; tables: MODELS_DIR's too)", split="\n")
    out: Path | None = _setting("folder of results (outputs/reproduce; all: outputs/all/<model>)", Path)
    models_dir: Path = _setting("folder of checkpoints of the paper's models", Path, Path("checkpoints"))
    data_root: Path = _setting("folder of the benchmarks' data", Path, Path("playground/data/eval"))
    benchmarks: tuple[str, ...] | None = _setting("instead of the experiment's own", split=" ")
    questions: int = _setting("of each of Tiny-LLaVA's benchmarks, which are made in OUT (200)", int, 200)
    force: bool | None = _setting("run again what is done", bool)
    steps: tuple[str, ...] | None = _setting("all: run these experiments only", split=" ")

    gates: Path | None = _setting(
        "folder of gates, or org/name[@revision] on the hub (GATES_DIR/<model>-gates, else those in the model)",
        Path,
    )
    gates_dir: Path = _setting("folder of folders of gates", Path, Path("checkpoints"))
    threshold: str | None = _setting("exit above this gate probability (as calibrated, else 0.5)", number)
    conv_mode: str | None = _setting(
        "conversation template of LLaVA's models", tiny="vicuna_v1_nosys", small="chatml_direct"
    )
    batch_size: int | None = _setting("prompts per batch", int, usual=1, tiny=16)
    verify_every: int | None = _setting("ask each N-th question of a batch alone as well (100; 0: none)", int)
    variant: str | None = _setting("official variant of the scorer (python -m dyvte.benchmarks list)")
    chunks: int | None = _setting("processes that answer (one for each GPU)", int)
    dtype: str | None = _setting(
        "of the model and of stored states: float32, float16 or bfloat16 (float16 on a GPU, else float32; states "
        "float32; Small-LLaVA: bfloat16)",
        small="bfloat16",
    )

    limit: int | None = _setting("questions, for attention (100), oracle exits (all) and examples (6)", int)
    layers: tuple[int, ...] | None = _setting("fixed exit layers of figure 4 (all)", int, split=" ")
    thresholds: tuple[str, ...] = _setting(
        f"of the gates in dynamic, beside their own ({' '.join(THRESHOLDS)})", number, THRESHOLDS, split=" "
    )
    rivals: tuple[str, ...] | None = _setting(
        "other methods with their settings: 'fastv k=2 r=0.5' 'tome r=18' (in RIVALS split by ;)", split=";"
    )
    vtw_k: int | None = _setting(
        "VTW's layer (as published, else searched for with TRAIN_DATA)", int, tiny=9, small=15
    )
    vtw_divergence: str = _setting("threshold of this search (0.003; for 13B, 0.0005)", number, "0.003")

    train_data: Path | None = _setting(
        "sample to fit gates to (one that dyvte.gates.sample has drawn; Tiny-LLaVA: made)", Path, usual=DRAWN
    )
    train_images: Path | None = _setting(
        "folder of its images (playground/data; Tiny-LLaVA: made)", Path, usual=Path("playground/data")
    )
    judge_data: Path | None = _setting("another sample, to judge gates on (Tiny-LLaVA: made)", Path)
    scenes: int | None = _setting("training scenes to make for Tiny-LLaVA (8000; quickstart: 4000)", int)
    fraction: str | None = _setting("share of them to draw (0.2; quickstart: 1)", number)
    seed: int | None = _setting("of drawing (0) and of fitting (42; quickstart: 0)", int)
    version: str | None = _setting(
        "prompt template of LLaVA's models in fitting", tiny="vicuna_v1_nosys", small="chatml_direct"
    )
    lr: str | None = _setting("learning rate of gates", number, usual="4e-5", tiny="1e-3")
    epochs: str | None = _setting("of fitting", number, usual="1", tiny="4")
    gate_batch: int | None = _setting("samples per step of fitting", int, usual=128, tiny=32)
    width: int | None = _setting("of a gate", int, usual=2048, tiny=128)
    gain: str | None = _setting("of fresh gates", number, usual="1", tiny="0.1")
    reference: str = _setting("gate_sizes: the size that sets the budget (full-2048)", str, "full-2048")
    label_epochs: tuple[int, ...] = _setting("labels: epochs of fitting (1 4)", int, (1, 4), split=" ")
    label_seeds: tuple[int, ...] = _setting("labels: seeds of fitting (0 1 2)", int, (0, 1, 2), split=" ")

    def given(self, names: Iterable[str]) -> dict[str, str]:
        """Those of these settings that are not at their default, as environment variables."""
        split = {item: item.metadata["split"] for item in fields(self) if item.name in names}
        values = {item: getattr(self, item.name) for item in split}
        return {
            item.name.upper(): split[item].join(map(str, value)) if split[item] else str(value)
            for item, value in values.items()
            if value != item.default
        }

    def filled(self, made: str) -> Settings:
        """With values for those that depend on the model: "tiny" (or one like it), "small", or "" for others."""
        missing = [item for item in fields(self) if getattr(self, item.name) is None]
        order = {"tiny": ("tiny",), "small": ("small", "tiny"), "": ("usual",)}[made]
        values = {
            item.name: next((v for key in order if (v := item.metadata[key]) is not None), None)
            for item in missing
        }
        return replace(self, **values)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting."""
    for item in fields(Settings):
        flag, how = f"--{item.name.replace('_', '-')}", item.metadata
        kind: dict[str, Any] = {"type": how["parse"], "nargs": "+" if how["split"] else None}
        kind = {"action": "store_true"} if how["parse"] is bool else {**kind, "metavar": item.name.upper()}
        parser.add_argument(flag, help=how["help"], **kind)


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Settings from the flags that were given, else from the environment, where an empty variable counts as none.

    Raises:
        ValueError: a variable has no possible value.
    """
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in flags.items()}
    for item in fields(Settings):
        name, (parse, split) = item.name, (item.metadata["parse"], item.metadata["split"])
        if name not in flags and (text := environment.get(name.upper(), "").strip()):
            words = text.split(split) if split else [text]
            try:
                parsed = tuple(parse(word.strip()) for word in words if word.strip())
            except ValueError:
                raise ValueError(f"{name.upper()}={text} is not possible: {item.metadata['help']}") from None
            values[name] = parsed if split else parsed[0]
    return Settings(**values)
