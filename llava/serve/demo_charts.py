"""What the demo shows of a turn's two prefills: a bar for each layer, and a table of costs.

:mod:`llava.serve.demo_page` draws it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dyvte.decoding.report import PrefillReport
from dyvte.report.titles import flops_unit
from llava.serve.demo_session import Turn

KEEP, EXIT, NOT_ASKED = "image stays", "image leaves", "not asked"
TEXT, VISUAL = "text", "visual"


@dataclass(frozen=True)
class Bar:
    """One bar, or a part of a stacked one.

    Attributes:
        layer: zero-based, as a label: numbers would make the axis continuous.
        part: decides the color.
    """

    layer: str
    value: float
    part: str


def gate_bars(report: PrefillReport) -> list[Bar]:
    """The gate's exit probability after each layer, 0 where none was asked; nothing where the method has no gates."""
    given, bars = report.exit_probabilities, []
    for layer in range(report.num_layers if given else 0):
        p = given[layer] if layer < len(given) else None
        part = NOT_ASKED if p is None else EXIT if layer == report.exit_layer else KEEP
        bars.append(Bar(str(layer), round(p or 0.0, 4), part))
    return bars


def token_bars(report: PrefillReport) -> list[Bar]:
    """Tokens that each layer computed: visual ones on top of those of text."""
    text = report.prompt_tokens - report.visual_tokens
    bars: list[Bar] = []
    for layer, tokens in enumerate(report.tokens_per_layer):
        bars += [Bar(str(layer), tokens - text, VISUAL), Bar(str(layer), text, TEXT)]
    return bars


def costs(turn: Turn, title: str) -> str:
    """Both answers' costs side by side as a Markdown table, those of a method called ``title`` last; empty until
    both are there.
    """
    plain, exiting = turn.plain.report, turn.exiting.report
    if plain is None or exiting is None:
        return ""
    factor, flops = flops_unit((plain.tflops, exiting.tflops))
    held = [report.kv_bytes or 0 for report in (plain, exiting)]
    scale, unit = _bytes_unit(held[0])
    rows = [
        _row("Prefill, " + flops, factor * plain.tflops, factor * exiting.tflops),
        _row("KV cache after prefill, " + unit, *(count / scale for count in held)),
        _row("Whole answer, seconds", plain.seconds or 0.0, exiting.seconds or 0.0),
    ]
    last = exiting.num_layers - 1
    text = exiting.prompt_tokens - exiting.visual_tokens
    left = exiting.tokens_per_layer[-1] - text
    where = (
        f"The image leaves after **layer {exiting.exit_layer}** of 0 to {last}"
        if exiting.exit_layer is not None
        else "The image stays to the last layer"
        if left == exiting.visual_tokens
        else f"**{left} of {exiting.visual_tokens} visual tokens** reach the last layer"
    )
    same = "the same answer" if turn.plain.text == turn.exiting.text else "a different answer"
    table = [f"| | Without exit | {title} | Saved |", "| :-- | --: | --: | --: |", *rows]
    parts = [f"{where}: {same}.", "\n".join(table)]
    if plain.prompt_tokens != exiting.prompt_tokens:
        parts.append(
            f"Earlier answers differ, so the prompts do: {plain.prompt_tokens} and {exiting.prompt_tokens} tokens."
        )
    return "\n\n".join(parts)


def _row(name: str, plain: float, exiting: float) -> str:
    saved = f"{100 * (1 - exiting / plain):.0f}%" if plain else ""
    return f"| {name} | {_number(plain)} | {_number(exiting)} | {saved} |"


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:#.3g}".rstrip(".")


def _bytes_unit(count: int) -> tuple[int, str]:
    """(bytes, name) of the unit in which a count of bytes is easy to read."""
    units = ((1 << 30, "GiB"), (1 << 20, "MiB"))
    return next((unit for unit in units if count >= unit[0]), (1024, "KiB"))
