"""Answer a file of questions in several processes, on one machine or on many, and merge their answers.

    python -m dyvte.engine.shards OUT --chunks N [--shards 0-7,12] -- COMMAND ...
    python -m dyvte.engine.shards OUT --chunks N --shards none

COMMAND is a command line that answers (``python -m llava.eval.model_vqa_loader ...``); every shard gets its place in
the file and writes ``OUT/{N}_{shard}.jsonl``. By default all shards run here, and ``OUT/merge.jsonl`` gets their
answers in the order of the questions. With ``--shards``, other machines run the others, and ``--shards none`` merges
in the end. A shard that died goes on, on any machine, when its command is started again.

When COMMAND has ``--shard-model``, the processes of all shards run at once and share the model, a part of it on the
GPU of each. Where they are on several machines, MASTER_ADDR and MASTER_PORT name the first one and a free port there.

``scripts/v1_5/eval/common.sh`` runs it.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dyvte import cli
from dyvte.engine.marker import Run, difference, marker_of, read_run
from dyvte.io import locked, move_aside, whole_file

logger = logging.getLogger(__name__)

MERGED = "merge.jsonl"
OF_MERGED = ("record.json", "scores.json")
"""Files beside the merged answers that are made from them."""
PROBLEMS_SHOWN = 5
SHARD_MODEL = "--shard-model"
"""The flag of commands whose processes share the model."""
POLL = 0.2
"""Seconds between looks at processes that share a model."""


def parse_shards(text: str, chunks: int) -> list[int]:
    """The shards that a text such as "0-7,12" names; all for "all", and none for "none".

    Raises:
        ValueError: it is no such text, or names a shard that does not exist.
    """
    if text in ("all", "none"):
        return list(range(chunks)) if text == "all" else []
    shards: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise ValueError(f"shards are named as in 0-7,12 (or all, or none), not {text!r}")
        shards.update(range(int(first), int(last or first) + 1))
    if not shards or max(shards) >= chunks:
        raise ValueError(f"shards {text!r} are not among the {chunks} shards 0..{chunks - 1}")
    return sorted(shards)


def shard_file(out: Path, chunks: int, shard: int) -> Path:
    """The answers of one shard."""
    return out / f"{chunks}_{shard}.jsonl"


def run_shards(out: Path, chunks: int, shards: Sequence[int], command: Sequence[str]) -> None:
    """One process for each shard, the GPUs of ``CUDA_VISIBLE_DEVICES`` dealt out in turn; returns when all ended.

    Raises:
        ValueError: one failed; the others went on to their ends, or were ended where they share the model with it.
    """
    shared = group_of(chunks, shards) if SHARD_MODEL in command else {}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for shard in shards:
            place = ["--answers-file", str(shard_file(out, chunks, shard))]
            place += ["--num-chunks", str(chunks), "--chunk-idx", str(shard)]
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus[shard % len(gpus)]}
            if shared:
                environment |= {**shared, "RANK": str(shard), "LOCAL_RANK": "0"}  # it sees one GPU
            running[shard] = subprocess.Popen([*command, *place], env=environment)
        while shared and None in (codes := [process.poll() for process in running.values()]):
            if any(codes):
                break  # the others would wait for it
            time.sleep(POLL)
        failed = [
            str(shard) for shard, process in running.items() if (process.poll() if shared else process.wait())
        ]
    finally:
        for process in running.values():
            process.terminate()
    if failed:
        raise ValueError(
            f"shard {' '.join(failed)} of {chunks} failed (see above); the same command goes on from here"
        )


def group_of(chunks: int, shards: Sequence[int]) -> dict[str, str]:
    """Variables by which the processes of all shards find each other, as torchrun sets them.

    Raises:
        ValueError: other machines run some of the shards, and nothing says where they meet.
    """
    place = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in os.environ}
    if len(place) < 2:
        if len(shards) < chunks:
            raise ValueError(
                f"{SHARD_MODEL} with shards on several machines: set MASTER_ADDR to the address of the one that runs "
                "shard 0, and MASTER_PORT to a free port of it"
            )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return {**place, "WORLD_SIZE": str(chunks)}


def merge(out: Path, chunks: int) -> Path:
    """Join the answers of all shards in the order of the questions. What was merged before, of another run, gets
    another name, and so do the files made from it.

    Raises:
        ValueError: a shard is missing or not finished, or comes from a run with other settings than the first one;
            nothing is written then.
    """
    files = [shard_file(out, chunks, shard) for shard in range(chunks)]
    runs = [read_run(file) if file.is_file() else None for file in files]
    first = next((run for run in runs if run is not None), None)
    problems: list[str] = []
    for shard, (file, run) in enumerate(zip(files, runs, strict=True)):
        if run is None or first is None:
            problems.append(
                f"shard {shard} is missing" if not file.is_file() else f"{marker_of(file)} is missing"
            )
        elif unlike := difference(run.without_shard, first.without_shard):
            problems.append(f"shard {shard} is of another run ({unlike} differ)")
        elif (found := _count_lines(file)) != run.questions:
            problems.append(f"shard {shard} holds {found} of {run.questions} answers")
    if problems or first is None:
        shown = "; ".join(problems[:PROBLEMS_SHOWN]) + ("; ..." if len(problems) > PROBLEMS_SHOWN else "")
        raise ValueError(
            f"{out}: {len(problems)} of {chunks} shards cannot be merged: {shown}; start those shards again"
        )
    merged = out / MERGED
    run = Run(first.without_shard, sum(run.questions for run in runs if run is not None))
    _set_older_aside(merged, run)
    run.write(merged)
    with whole_file(merged) as unfinished, unfinished.open("wb") as target:
        for file in files:
            with file.open("rb") as source:
                shutil.copyfileobj(source, target)
    return merged


def _set_older_aside(merged: Path, run: Run) -> None:
    """Give the results of another run other names."""
    older = read_run(merged)
    if not merged.is_file() or (older is not None and older.settings == run.settings):
        return
    name = older.short_name if older is not None else "unknown"
    for file in [merged, *(merged.with_name(beside) for beside in OF_MERGED)]:
        if file.is_file():
            logger.warning("%s is of another run; it is now %s", file, move_aside(file, name))


def _count_lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(line.endswith(b"\n") for line in lines)


def answer_and_merge(command: Sequence[str], args: argparse.Namespace) -> None:
    """What the command line does; ``command`` is what it has after ``--``."""
    if args.chunks < 1:
        raise ValueError(f"--chunks must be positive, got {args.chunks}")
    shards = parse_shards(args.shards, args.chunks)
    if shards and not command:
        raise ValueError("name the command that answers, after --")
    args.out.mkdir(parents=True, exist_ok=True)
    alone = args.shards in ("all", "none")
    with locked(args.out / (".lock" if alone else f".lock-{args.shards}"), f"at work in {args.out}"):
        run_shards(args.out, args.chunks, shards, command)
        if alone:
            merge(args.out, args.chunks)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.engine.shards",
        description="Answer a file of questions in several processes, and merge their answers.",
    )
    parser.add_argument("out", type=Path, help="folder of the answers")
    parser.add_argument("--chunks", type=int, default=1, help="shards, on all machines together")
    parser.add_argument(
        "--shards", default="all", help="those to run here, such as 0-7,12; none: only merge (default: all)"
    )
    parser.epilog = "After -- follows the command line that answers."
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the shards as well
    words = sys.argv[1:] if argv is None else list(argv)
    end = words.index("--") if "--" in words else len(words)
    cli.run(build_parser(), partial(answer_and_merge, words[end + 1 :]), words[:end])


if __name__ == "__main__":
    main()
