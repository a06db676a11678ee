"""python -m dyvte.reproduce NAME [MODEL ...] [--questions N ...] | all | list"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from dyvte.report.paper import known_models
from dyvte.reproduce.experiments import EXPERIMENTS, Experiment
from dyvte.reproduce.runner import STOPPED, Runner
from dyvte.reproduce.settings import Settings, add_flags, read_settings
from dyvte.reproduce.work import ROOT, TINY, name_of

ALWAYS = ("model", "out", "force", "models_dir")
"""Settings that every experiment has."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.reproduce",
        usage="%(prog)s NAME [MODEL ...] [--SETTING VALUE ...]",
        allow_abbrev=False,
        description="Tables and figures of the paper. 'all' makes every one for a model, and one HTML report; 'list' "
        "names them. What is done is kept, an interrupted run goes on. Each flag may be an environment variable "
        "instead (QUESTIONS=100); relative paths are relative to the project's folder.",
    )
    parser.add_argument(
        "name", choices=(*EXPERIMENTS, "all", "list"), metavar="NAME", help="table1 ... figure16"
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="as --model")
    add_flags(parser)
    return parser


def parse(arguments: Sequence[str] | None) -> tuple[str, Settings]:
    """The experiment's name (or "all") and the settings; ends the process where they do not fit together."""
    parser = build_parser()
    flags = parser.parse_intermixed_args(arguments)
    flags.model = [*flags.models, *(flags.model or [])] or None
    try:
        settings = read_settings(flags, os.environ)
    except ValueError as error:
        parser.error(str(error))
    if flags.name == "list":
        return flags.name, settings
    chosen = [entry for entry in EXPERIMENTS.values() if entry.in_all]
    entries = chosen if flags.name == "all" else [EXPERIMENTS[flags.name]]
    known = {*ALWAYS, *(setting for entry in entries for setting in entry.settings)}
    if flags.name == "all":
        known = known - {"benchmarks"} | {"steps"}  # each experiment has its own benchmarks
    for item in fields(Settings):
        if getattr(flags, item.name) is not None and item.name not in known:
            parser.error(f"--{item.name.replace('_', '-')} is no setting of {flags.name}")
    if len(settings.model or ()) > 1 and not (flags.name != "all" and entries[0].several):
        parser.error(f"{flags.name} takes one model")
    for step in settings.steps or ():
        if flags.name == "all" and EXPERIMENTS.get(step) not in chosen:
            parser.error(f"STEPS: {step} is not one of {' '.join(entry.name for entry in chosen)}")
    if flags.name == "all":
        settings = replace(settings, benchmarks=None)
    return flags.name, settings


def models_of(experiment: Experiment | None, settings: Settings) -> list[str]:
    """The models that are named, else those at hand."""
    if settings.model:
        return list(settings.model)
    found = known_models([settings.models_dir]) if experiment and experiment.several else []
    return [TINY, *map(str, found)]


def describe(experiment: Experiment) -> str:
    """Two lines of ``list``."""
    benchmarks = ", ".join(experiment.benchmarks) or "no benchmarks"
    return f"{experiment.name:11} {experiment.title} ({benchmarks})\n{'':11} -> {experiment.makes}"


def main(arguments: Sequence[str] | None = None) -> int:
    name, settings = parse(arguments)
    if name == "list":
        print("\n".join(map(describe, EXPERIMENTS.values())))
        return 0
    os.chdir(ROOT)
    models = models_of(EXPERIMENTS.get(name), settings)
    folders = {"all": Path("outputs/all"), "quickstart": Path("outputs/quickstart")}
    out = settings.out or folders.get(name, Path("outputs/reproduce"))
    try:
        if name == "all":
            out = settings.out or out / name_of(models[0])
        runner = Runner(settings, models, out)
        return runner.run_all() if name == "all" else runner.run_one(EXPERIMENTS[name])
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
