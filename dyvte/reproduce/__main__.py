"""python -m dyvte.reproduce NAME [MODEL ...] [--questions N ...] | all | list"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dyvte.report.paper import known_models
from dyvte.reproduce.experiments import EXPERIMENTS, Experiment
from dyvte.reproduce.runner import FAILURES, Runner, raise_when_stopped
from dyvte.reproduce.settings import Settings, add_flags, read_settings
from dyvte.reproduce.work import ROOT, TINY, name_of

ALWAYS = {"model", "out", "force", "models_dir"}
"""Settings that every experiment has."""


def parse(arguments: Sequence[str] | None) -> tuple[str, Settings]:
    """The experiment's name (or "all") and the settings; ends the process where they do not fit together."""
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.reproduce",
        usage="%(prog)s NAME [MODEL ...] [--SETTING VALUE ...]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Tables and figures of the paper. 'all' makes every one for a model, and one HTML report; 'list' "
        "names them. What is done is kept, an interrupted run goes on. Each flag may be an environment variable "
        "instead (QUESTIONS=100); relative paths are relative to the project's folder.",
    )
    names = (*EXPERIMENTS, "all", "list")
    parser.add_argument("name", choices=names, metavar="NAME", help="table1 ... figure16")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="as --model")
    add_flags(parser)
    flags = vars(parser.parse_intermixed_args(arguments))
    name, models = flags.pop("name"), [*flags.pop("models", []), *flags.pop("model", [])]
    if models:
        flags["model"] = models
    try:
        settings = read_settings(flags, os.environ)
    except ValueError as error:
        parser.error(str(error))
    if name == "list":
        return name, settings
    in_all = [entry for entry in EXPERIMENTS.values() if entry.in_all]
    chosen = in_all if name == "all" else [EXPERIMENTS[name]]
    known = ALWAYS.union(*(entry.kind.settings for entry in chosen))
    if name == "all":  # each experiment has its own benchmarks
        known = known - {"benchmarks"} | {"steps"}
        settings = replace(settings, benchmarks=None)
        steps = [entry.name for entry in chosen]
        for step in set(settings.steps or ()).difference(steps):
            parser.error(f"STEPS: {step} is not one of {' '.join(steps)}")
    for flag in flags.keys() - known:
        parser.error(f"--{flag.replace('_', '-')} is no setting of {name}")
    if len(settings.model or ()) > 1 and (name == "all" or not chosen[0].kind.several):
        parser.error(f"{name} takes one model")
    return name, settings


def models_of(experiment: Experiment | None, settings: Settings) -> list[str]:
    """The models that are named, else those at hand."""
    if settings.model:
        return list(settings.model)
    found = known_models([settings.models_dir]) if experiment and experiment.kind.several else []
    return [TINY, *map(str, found)]


def describe(experiment: Experiment) -> str:
    """Two lines of ``list``."""
    benchmarks = ", ".join(experiment.benchmarks) or "no benchmarks"
    return f"{experiment.name:11} {experiment.title} ({benchmarks})\n{'':11} -> {experiment.kind.makes}"


def main(arguments: Sequence[str] | None = None) -> int:
    name, settings = parse(arguments)
    if name == "list":
        print("\n".join(map(describe, EXPERIMENTS.values())))
        return 0
    os.chdir(ROOT)
    models = models_of(EXPERIMENTS.get(name), settings)
    folders = {"all": f"outputs/all/{name_of(models[0])}", "quickstart": "outputs/quickstart"}
    raise_when_stopped()
    try:
        if settings.gates:
            from dyvte.gates.hub import gates_folder  # only here: it brings torch

            settings = replace(settings, gates=gates_folder(settings.gates))
        runner = Runner(settings, models, settings.out or Path(folders.get(name, "outputs/reproduce")))
        if name != "all":
            runner.run_one(EXPERIMENTS[name])
        elif failed := runner.run_all():
            raise ValueError(f"failed: {' '.join(failed)}; the same command tries these again")
    except FAILURES as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
