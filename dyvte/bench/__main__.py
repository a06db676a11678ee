"""python -m dyvte.bench prefill|decode|generate|ttft|throughput|labels|memory: see docs/performance.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from dyvte import cli
from dyvte.bench import decode, generate, labels, memory, prefill, throughput, ttft
from dyvte.bench.report import as_json, plot, table
from dyvte.bench.settings import DTYPES, Measurements, Settings
from dyvte.bench.shapes import SHAPES, VISUAL_TOKENS
from dyvte.bench.variants import MIXED, NAMES
from dyvte.decoding.attention.plan import KERNELS
from dyvte.engine.run import default_workers, worker_count
from dyvte.io import write_json
from dyvte.report.plotting import save

COMMANDS: dict[str, Callable[[Settings, Any, int, Measurements], None]] = {
    "prefill": prefill.run,
    "decode": decode.run,
    "generate": generate.run,
    "ttft": ttft.run,
    "throughput": throughput.run,
    "labels": labels.run,
    "memory": memory.run,
}


def exit_layer(text: str) -> int | str:
    """A layer, or "mixed"."""
    return MIXED if text == MIXED else int(text)


def visual_tokens(text: str) -> int:
    """A number, or one of the prompts that have a name."""
    return VISUAL_TOKENS[text] if text in VISUAL_TOKENS else int(text)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.bench",
        description="Speed and memory of exits on real layer shapes, variants interleaved in one run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("command", choices=COMMANDS)
    add("--model", choices=SHAPES, default="7b", help="whose layer shapes; weights are random")
    add("--layers", type=int, help="decoder layers, to fit small machines; None: all")
    add("--dtype", choices=DTYPES, default="bf16", help="of weights, states and cache")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ...")
    add("--batch", type=int, nargs="+", default=[1], help="batch sizes, each a measurement of its own")
    add(
        "--exit-layers",
        type=exit_layer,
        nargs="+",
        default=[],
        help="zero-based layers, and 'mixed'; []: the middle",
    )
    add(
        "--variants",
        "--contenders",
        nargs="+",
        choices=NAMES,
        help="None: all with the baseline's attention kernel",
    )
    add("--prompt-tokens", type=int, default=60, help="text tokens of a prompt")
    add(
        "--visual-tokens",
        type=visual_tokens,
        default=VISUAL_TOKENS["llava-1.5"],
        help=f"visual tokens of a prompt: a number, or {', '.join(VISUAL_TOKENS)}",
    )
    add(
        "--answer-tokens",
        type=int,
        default=16,
        help="tokens to decode, or of the answers that labels compare",
    )
    add(
        "--attn",
        default="sdpa",
        choices=(*KERNELS, "auto"),
        help="attention kernel; auto: the fastest that fits",
    )
    add("--gate-width", type=int, default=2048, help="hidden units of each gate")
    add("--threads", type=int, help="CPU threads; None: torch's choice")
    add("--rounds", type=int, default=7, help="measurements of each variant")
    add("--warmup", type=int, default=1, help="rounds before them that do not count")
    add(
        "--allow-unequal-kernels",
        action="store_true",
        help="compare different attention kernels all the same",
    )
    add("--images", help="folder of images for throughput; None: photos made for it")
    add("--questions", type=int, default=128, help="questions that throughput asks, one image each")
    add(
        "--workers",
        type=worker_count,
        nargs="+",
        default=[default_workers()],
        help="threads that read images in throughput, each number a measurement of its own",
    )
    add("--json", type=Path, help="write all measurements here")
    add("--plot", type=Path, help="write a plot here (PNG, PDF or SVG)")
    return parser


def run_command(options: argparse.Namespace) -> None:
    """Measure every batch size, print the table, and write JSON and plot where they are asked for."""
    names = {field.name for field in fields(Settings)} - {"progress"}
    if options.plot:
        cli.needs("matplotlib", "study")  # before hours of measuring
    settings = Settings(**{name: getattr(options, name) for name in names}, progress=True)
    if settings.attn == "auto":
        settings = replace(settings, attn=settings.usual_kernel())
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model, measured = settings.make_model(), Measurements()
    with torch.no_grad():
        for batch in settings.batch:
            COMMANDS[settings.command](settings, model, batch, measured)
    if options.json:
        write_json(options.json, as_json(settings, measured))
    print(table(measured))
    if options.plot:
        save(plot(settings, measured), options.plot)


def main(arguments: list[str] | None = None) -> None:
    cli.run(make_parser(), run_command, arguments)


if __name__ == "__main__":
    main()
