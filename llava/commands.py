"""The ``dyvte`` command: one entry point over the modules that ``python -m`` runs.

dyvte ask --model-path MODEL --image-file IMAGE --query "What is this?"
dyvte ask --help
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence

from dyvte import cli

COMMANDS = {
    "ask": ("llava.eval.run_llava", "ask a model one question about images"),
    "chat": ("llava.serve.cli", "talk to a model about an image"),
    "demo": ("llava.serve.demo", "the same in the browser, with and without exit side by side"),
    "serve": ("llava.serve.api", "serve a model to clients of OpenAI's interface"),
    "sample": ("dyvte.gates.sample", "draw a part of a set of instruction data"),
    "train": (
        "llava.train.train_mem",
        "train exit gates, or LLaVA itself (scripts/v1_5 holds the paper's settings)",
    ),
    "store": ("dyvte.gates.store_states", "store states and labels, to fit many gates from them"),
    "fit": ("dyvte.gates.fit", "fit gates to stored states"),
    "calibrate": ("dyvte.engine.calibrate", "choose the exit threshold for a target"),
    "eval": ("dyvte.benchmarks", "list, check, run and score the nine benchmarks"),
    "bench": ("dyvte.bench", "measure prefill, decoding, memory"),
    "study": ("dyvte.reproduce", "make the paper's tables and figures"),
    "table": ("dyvte.report.table", "a table of evaluations"),
    "samples": ("dyvte.report.samples", "a page to look at the answers of two runs one by one"),
    "report": ("dyvte.report.page", "one HTML page of a study"),
    "convert": ("llava.convert", "convert a checkpoint to transformers' layout, or back"),
}
"""Name -> (module, what it is for)."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the module that the first argument names on the other arguments."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="dyvte",
        usage="dyvte COMMAND [ARGUMENT ...]",
        description="Dynamic visual-token exit for multimodal LLMs.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items())
        + "\n\ndyvte COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(given or ["--help"])
    module, _ = COMMANDS[args.command]
    cli.command = f"dyvte {args.command}"
    sys.argv = [cli.command, *args.arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
