"""What the exit did, for the terminal chat: a bar of exit probability for each layer where rich is installed."""

from __future__ import annotations

import importlib.util

from dyvte.cli import extra
from dyvte.decoding.report import PrefillReport
from dyvte.engine.answer import describe_exit

BAR_WIDTH = 30


def show_exit(report: PrefillReport) -> None:
    """Print it: with rich (``pip install 'dyvte[demo]'``) gates are drawn, else described in words."""
    described = describe_exit(report)
    if not report.exit_probabilities or importlib.util.find_spec("rich") is None:
        print(described)
        return
    with extra("demo"):
        from rich.console import Console
        from rich.progress_bar import ProgressBar
        from rich.table import Table

    table = Table("layer", "tokens", "exit probability", "", box=None, pad_edge=False)
    for layer, tokens in enumerate(report.tokens_per_layer):
        p = report.exit_probabilities[layer] if layer < len(report.exit_probabilities) else None
        if p is None:
            table.add_row(str(layer), str(tokens))
        else:
            bar = ProgressBar(total=1.0, completed=p, width=BAR_WIDTH)
            table.add_row(str(layer), str(tokens), bar, f"{p:.3f}")
    where, *_, cost = described.splitlines()
    print(where)
    Console().print(table)
    print(cost)
