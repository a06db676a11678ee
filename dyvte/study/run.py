"""How a study runs a model on a benchmark's questions: command line, batches with resuming, provenance.

Called throughout :mod:`dyvte.study`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dyvte.benchmarks import BENCHMARKS, get_benchmark
from dyvte.decoding.attach import handle_of
from dyvte.decoding.policy import FixedExit, NoExit, Policy
from dyvte.engine.answer import Answerer
from dyvte.engine.answers_file import describe_run, has_checkpoints
from dyvte.engine.marker import digest_of
from dyvte.engine.model import Batch
from dyvte.engine.options import open_answerer
from dyvte.engine.questions import Item, check_items
from dyvte.engine.run import prepared_batches, question_parser
from dyvte.gates.exit import LearnedExit
from dyvte.gates.hub import hub_name
from dyvte.provenance import sha256_of
from dyvte.report.record import Scoring
from dyvte.study.files import StudyWriter


def build_parser(
    arguments: Sequence[str] | None, description: str, limit: int | None = None, limited: bool = True
) -> argparse.ArgumentParser:
    """A parser with the benchmark's name, its folder, ``--output``, and the flags of its question format.

    Args:
        arguments: the command line, which names the benchmark; that of the process by default.
        limit: default of ``--limit``, a flag where the study is ``limited``.
    """
    words = sys.argv[1:] if arguments is None else arguments
    name = next((word for word in words if word in BENCHMARKS), "gqa")  # --help works without one
    parser = question_parser(get_benchmark(name).questions, description)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--data-dir", type=Path, required=True, help="the benchmark's folder")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    if limited:
        about = "take N questions, evenly spaced in the file (default: %(default)s)"
        parser.add_argument("--limit", type=int, default=limit, metavar="N", help=about)
    return parser


def read_items(args: argparse.Namespace) -> tuple[Sequence[Item], str]:
    """The questions that ``args`` ask for, all usable, and the folder of their images. Sets ``args.question_file``.

    Raises:
        FileNotFoundError, ValueError: the benchmark's files are missing or broken, or the limit is not positive.
    """
    benchmark = get_benchmark(args.name)
    args.question_file = str(args.data_dir / benchmark.question_file)
    items = evenly_spaced(benchmark.questions.read(args), getattr(args, "limit", None))
    folder = str(args.data_dir / benchmark.image_folder)
    check_items(items, folder)
    return items, folder


def evenly_spaced(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """``limit`` of the items, evenly spaced; all of them without a limit, or when there are fewer.

    Raises:
        ValueError: the limit is not positive.
    """
    if limit is None:
        return items
    if limit < 1:
        raise ValueError(f"--limit must be positive, got {limit}")
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def settings_of(args: argparse.Namespace, but: Sequence[str] = ("output",), **changed: Any) -> dict[str, str]:
    """All that the results depend on, wherever they are written.

    Args:
        but: flags that they do not depend on.
        changed: settings in place of the flags'.
    """
    shared = {key: value for key, value in vars(args).items() if key not in but}
    return describe_run(argparse.Namespace(**{**shared, **changed}))


def settings_digest(args: argparse.Namespace, but: Sequence[str] = ("output",)) -> str:
    """One digest of :func:`settings_of`."""
    return digest_of(settings_of(args, but))


def open_with_policy(args: argparse.Namespace) -> Answerer:
    """The model that ``args`` ask for.

    Raises:
        FileNotFoundError, ValueError: files are missing, settings do not fit, or the model takes no images.
    """
    answerer = open_answerer(args, args.conv_mode)
    if answerer.handle is None:
        raise ValueError(f"this study needs a model with images: {args.model_path} is a language model")
    return answerer


def downloaded(args: argparse.Namespace) -> Answerer | None:
    """The model, where it has to be downloaded first: its settings are known once it is there. Else None."""
    return None if has_checkpoints(args) else open_with_policy(args)


def run_study(
    args: argparse.Namespace,
    study: str,
    prepare: Callable[[Answerer], dict[str, Any]],
    rows_of: Callable[[Answerer, Batch], dict[str, NDArray]],
) -> None:
    """Compute the rows of the questions that earlier runs have not written, and write arrays and manifest.

    Args:
        study: name of the study's module and files.
        prepare: sets the policy of the loaded model; returns the study's part of the manifest.
        rows_of: arrays with one row for each question of a batch.

    Raises:
        FileNotFoundError, ValueError: files are missing or settings do not fit.
    """
    items, image_folder = read_items(args)
    answerer = downloaded(args)
    writer = StudyWriter(args.output, study, settings_digest(args))
    if writer.complete:
        return
    answerer = answerer or open_with_policy(args)
    manifest = prepare(answerer)
    left = items[writer.kept :]
    with tqdm(total=len(items), initial=writer.kept, desc=f"{args.name}: {study}", unit="q") as progress:
        for asked, batch in prepared_batches(
            left, args.batch_size, answerer.chat, image_folder, args.workers
        ):
            names = np.array([str(item.head["question_id"]) for item in asked])
            writer.append({"question_id": names, **rows_of(answerer, batch)})
            progress.update(len(asked))
    manifest = {"study": study, **manifest, "num_layers": answerer.chat.decoder_config.num_hidden_layers}
    writer.finish({**manifest, **provenance(args, f"dyvte.study.{study}", answerer.model)})


def method_of(args: argparse.Namespace, policy: Policy) -> dict[str, str]:
    """The method that runs, in the words of result records."""
    if isinstance(policy, NoExit):
        return {"method": "none"}
    if isinstance(policy, FixedExit):
        return {"method": "fixed", "exit_layer": str(policy.layer)}
    if isinstance(policy, LearnedExit):
        gates = (hub_name(args.gates) or str(args.gates)) if args.gates else args.model_path
        return {"method": "dyvte", "gates": gates, "threshold": f"{policy.threshold:g}"}
    return {"method": args.method, "method_config": " ".join(args.method_config or [])}


def provenance(args: argparse.Namespace, module: str, model) -> dict[str, Any]:
    """Where a study's numbers come from: the loaded model, benchmark, data, code and machine."""
    handle = handle_of(model)
    return {
        "model": args.model_path,
        "benchmark": args.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "conv_mode": (handle.run.template if handle is not None else None) or args.conv_mode,
        "batch_size": args.batch_size,
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        **asdict(Scoring.here()),
        "data_sha256": sha256_of([Path(args.question_file)], args.data_dir),
    }
