"""All results of ``scripts/bench.sh`` on one page.

    python -m dyvte.bench.summary docs/benchmarks/cpu

Writes ``README.md`` into the folder. For each ``NAME.json`` that ``python -m dyvte.bench`` wrote, the page has the
settings and the machine, the table in ``NAME.md``, and ``NAME.png`` where there is one; in front, the steps of
``scripts/gpu_check.sh`` where it ran.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dyvte.cli import run
from dyvte.io import read_json_object, write_whole


def page_of(folder: Path) -> str:
    """The page as Markdown.

    Raises:
        FileNotFoundError: the folder holds no results, or a result lacks its table.
    """
    found = sorted(folder.glob("*.json"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no results: scripts/bench.sh measures them")
    head = f"# Measured on {folder.name}\n\nWritten by `scripts/bench.sh`; docs/performance.md says how to read it.\n"
    parts, check = [head], folder / "check.md"
    if check.is_file():
        parts.append(check.read_text(encoding="utf-8").strip() + "\n")
    for path in found:
        table, plot = path.with_suffix(".md"), path.with_suffix(".png")
        if not table.is_file():
            raise FileNotFoundError(f"{table} is missing: remove {path.name} and run scripts/bench.sh again")
        parts.append(f"## {path.stem}\n\n{_caption(read_json_object(path))}\n")
        parts.append(table.read_text(encoding="utf-8").strip() + "\n")
        if plot.is_file():
            parts.append(f"![{path.stem}]({plot.name})\n")
    return "\n".join(parts)


def _caption(result: dict) -> str:
    """What ran on what, in a sentence or two."""
    settings, machine, versions = result["settings"], result["hardware"], result["versions"]
    device = ", ".join(machine["gpus"]) if settings["device"] != "cpu" else machine["cpu"]
    facts = [
        f"`{settings['command']}`",
        f"{settings['what'] if settings['command'] == 'parity' else _shape(result)}; {device}",
        f"{machine['threads']} CPU threads",
        *(f"{name} {versions[name]}" for name in ("torch", "transformers")),
        f"commit {(result['commit'] or 'unknown')[:10]}",
    ]
    return ", ".join(facts) + "."


def _shape(result: dict) -> str:
    """What was measured of which model."""
    settings = result["settings"]
    layers = "all layers" if settings["layers"] is None else f"{settings['layers']} layers"
    kernels = ", ".join(dict.fromkeys(entry["kernel"] for entry in result["results"]))
    facts = [
        f"{layers} of the {settings['model']} shape",
        settings["dtype"],
        f"attention {kernels}",
        f"{settings['prompt_tokens']} text and {settings['visual_tokens']} visual tokens",
        f"{settings['rounds']} rounds",
    ]
    return ", ".join(facts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.bench.summary", description="All results of scripts/bench.sh on one page."
    )
    parser.add_argument("folder", type=Path)
    run(parser, lambda args: write_whole(args.folder / "README.md", page_of(args.folder)), argv)


if __name__ == "__main__":
    main()
