"""What the exit did, for the terminal chat: a bar of exit probability for each layer where rich is installed."""

from __future__ import annotations

import importlib.util
import math

from dyvte.engine.answer import Answer, describe_exit

BAR_WIDTH = 30


def show_exit(answer: Answer) -> None:
    """Print it: with rich (``pip install 'dyvte[demo]'``) gates are drawn, else told in plain words."""
    told = describe_exit(answer)
    asked = any(not math.isnan(chance) for chance in answer.exit_probabilities)
    if not asked or importlib.util.find_spec("rich") is None:
        print(told)
        return
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table("layer", "tokens", "exit probability", "", box=None, pad_edge=False)
    tokens = answer.metadata["tokens_per_layer"]
    for layer, (count, chance) in enumerate(zip(tokens, answer.exit_probabilities, strict=True)):
        if math.isnan(chance):
            table.add_row(str(layer), str(count))
        else:
            bar = ProgressBar(total=1.0, completed=chance, width=BAR_WIDTH)
            table.add_row(str(layer), str(count), bar, f"{chance:.3f}")
    where, *_, cost = told.splitlines()
    print(where)
    Console().print(table)
    print(cost)
