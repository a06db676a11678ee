"""The paper's tables and figures, and what goes beyond them: one row of ``EXPERIMENTS`` each.

A function is a kind of experiment: what it runs, and, in ``@kind``, which settings it depends on and what it leaves.

Called by :mod:`dyvte.reproduce` and :mod:`dyvte.reproduce.runner`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from dyvte.io import read_json
from dyvte.report.paper import COLUMNS
from dyvte.reproduce.work import FAST_CPU, TINY_SETS, Work, since, state_of

DATA = ("data_root", "questions")
ASKED = (*DATA, "benchmarks", "gates", "gates_dir", "threshold", "conv_mode", "batch_size", "dtype")
EVALUATED = (*ASKED, "verify_every", "variant", "chunks")
FITTED = (
    *("train_data", "train_images", "scenes", "fraction", "seed", "version", "dtype"),
    *("lr", "epochs", "gate_batch", "width", "gain"),
)
RIVALED = (*EVALUATED, "rivals", "vtw_k", "vtw_divergence", "train_data", "train_images")


@dataclass(frozen=True)
class Kind:
    """What experiments of one kind have in common.

    Attributes:
        run: makes an experiment, for one model unless ``several``; raises StepFailed, ValueError or OSError where it
            cannot be made.
        settings: names of all settings that it depends on (``dyvte.reproduce.settings``).
        makes: pattern of what it leaves below the output folder; ``{name}`` and ``{model}`` stand for theirs.
        several: whether it takes more than one model.
        always: whether it runs also when it is done, because it keeps its parts itself and ends with its results.
    """

    run: Callable[..., None] = field(repr=False)
    settings: tuple[str, ...]
    makes: str
    several: bool = False
    always: bool = False


@dataclass(frozen=True)
class Experiment:
    """One table, figure or study.

    Attributes:
        name: on the command line, and of the files that it makes.
        benchmarks: which it asks, where their files are there and no others are chosen.
        option: of its kind: a grid of gates, or what is drawn.
        in_all: whether it is a part of ``all``.
    """

    name: str
    title: str
    kind: Kind
    benchmarks: tuple[str, ...] = ()
    option: str = ""
    in_all: bool = True

    def run(self, *works: Work) -> None:
        """Make it, for the model of each of these."""
        self.kind.run(self, *works)


def kind(*settings: str, makes: str, several: bool = False, always: bool = False):
    """Make a kind of experiment of the function that runs it."""
    return lambda run: Kind(run, settings, makes, several, always)


@kind(*EVALUATED, makes="tables/{name}.csv", several=True)
def paper_table(entry: Experiment, *works: Work) -> None:
    """Scores and TFLOPs without and with DyVTE."""
    for work in works:
        for name in work.with_data(entry.benchmarks, needed=False):
            work.evaluate(name)
    works[0].table("paper_table", entry.name, *(work.results for work in works))


@kind(*EVALUATED, *FITTED, makes="tables/{name}.csv", several=True)
def state_table(entry: Experiment, *works: Work) -> None:
    """Gates that look at different states, fitted to one store."""
    for work in works:
        results = work.fitted / "results"
        work.fit_grid(entry.option, entry.benchmarks, results, width=work.settings.width)
    works[0].table("state_table", entry.name, *(work.fitted / "results" for work in works))


@kind(*RIVALED, makes="tables/{name}.csv")
def method_table(entry: Experiment, work: Work) -> None:
    """Scores and costs of DyVTE and of the methods people would use instead, and a Pareto plot."""
    rivals = work.rivals()
    fastv = [line for line in rivals if line.startswith("fastv")] or ["fastv k=2 r=0.5"]
    tiny = ("gqa", "pope", "textvqa", "sqa", "seed", "mmbench")
    places = [
        work.rival(name, line)
        for name in work.with_data(tiny if work.made else entry.benchmarks)
        for line in ("none", *rivals, "dyvte", f"dyvte+{fastv[-1]}")
    ]
    work.python("dyvte.report.rivals_table", *places, out=work.out / "tables")
    work.python("dyvte.study.pareto", *places, out=work.out / "tables" / entry.name)
    work.say(f"written: {work.out}/tables/{entry.name}.md, .tex, .csv, .png and .pdf")


@kind(*RIVALED, "thresholds", makes="tables/{name}.json")
def dynamic_exits(entry: Experiment, work: Work) -> None:
    """Gates against every fixed exit layer, against other methods, and the oracle exit."""

    def study_once(module: str, name: str, folder: Path) -> Path:
        state = state_of(Path(work.model), work.data_of(name))
        words = f"{work.settings.batch_size} {work.settings.conv_mode} {state}"
        work.once(folder / ".done", words, lambda: work.study(module, name, folder), f"kept: {folder}")
        return folder

    rivals, places, oracles = work.rivals(), [], []
    file = work.gates / "gates.json" if work.gates else None
    calibrated = float((read_json(file).get("threshold") if file and file.is_file() else None) or 0.5)
    for name in work.with_data(entry.benchmarks):
        places += [work.rival(name, line) for line in ("none", *rivals, "dyvte")]
        for threshold in work.settings.thresholds:
            if float(threshold) != calibrated:
                places.append(work.rival(name, "dyvte", threshold, f"dyvte-{threshold}"))
        places.append(study_once("fixed_exits", name, work.rivaled / name / "fixed"))
        oracles.append(study_once("oracle", name, work.rivaled / name / "oracle"))
    work.python("dyvte.study.dynamic", *places, oracle=tuple(oracles), output=work.out / "tables")


@kind(*FITTED, "judge_data", "label_epochs", "label_seeds", makes="tables/{name}/supervision_modes.json")
def label_modes(entry: Experiment, work: Work) -> None:
    """Labels of all layers against labels of one random layer a step, at the same number of forward passes."""
    own, judge = work.settings, work.store("judge")  # first, because it says if there is none to judge on
    stores = {"store": work.store("fit"), "held_out": judge, "model_path": work.model}
    asked = {"epochs": own.label_epochs, "seeds": own.label_seeds, "width": own.width}
    # epochs and seed of fitting are this study's own; the last of a flag's values counts
    flags = {**stores, **asked, "output": work.out / "tables" / entry.name}
    work.python("dyvte.study.supervision_modes", *work.fit_flags(), **flags)


@kind(*EVALUATED, *FITTED, "judge_data", "reference", makes="tables/{name}.json")
def size_table(entry: Experiment, work: Work) -> None:
    """How small gates can be at the same decisions, on a sample that they were not fitted to."""
    judge = work.store("judge")  # first, because it says if there is none to judge on
    results = work.fitted / "size-results"
    grid = work.fit_grid("sizes", entry.benchmarks, results)
    records = results if results.is_dir() else None
    asked = {"store": judge, "gates": grid, "records": records, "reference": work.settings.reference}
    work.python("dyvte.study.gate_sizes", model_path=work.model, **asked, output=work.out / "tables")


@kind(*ASKED, "limit", makes="figures/{model}/{name}.png")
def attention_figure(entry: Experiment, work: Work) -> None:
    """Attention mass by layer (option "attention"), or its entropies without and with exit ("entropy")."""
    methods = {"none": {"method": "none"}, "dyvte": work.exit_flags()}
    limit, chosen = work.settings.limit or 100, ["none"] if entry.option == "attention" else methods
    places = [
        work.study("attention", name, work.numbers / name / method, limit=limit, **methods[method])
        for name in work.with_data(entry.benchmarks)
        for method in chosen
    ]
    work.plot(entry.option, entry.name, *places)


@kind(*EVALUATED, "layers", "limit", makes="figures/{model}/{name}.png")
def fixed_exit_figure(entry: Experiment, work: Work) -> None:
    """Score against the layer at which all questions exit, with DyVTE and the oracle exit."""
    own, places, oracles = work.settings, [], []
    for name in work.with_data(entry.benchmarks):
        places.append(work.study("fixed_exits", name, work.evaluate(name), layers=own.layers))
        oracles.append(work.study("oracle", name, work.numbers / name / "oracle", limit=own.limit))
    work.plot("manual", entry.name, *places, oracle=tuple(oracles))


@kind(*EVALUATED, makes="figures/{model}/{name}.png")
def exit_figure(entry: Experiment, work: Work) -> None:
    """After which layer the visual tokens exit."""
    places = [work.evaluate(name) / "dyvte" for name in work.with_data(entry.benchmarks)]
    work.python("dyvte.report.figures", "exits", *places, out=work.figures / entry.name)


@kind(*ASKED, "limit", makes="figures/{model}/{name}-*.html")
def examples(entry: Experiment, work: Work) -> None:
    """Questions with their answers and tokens per second, without and with exit: one page for each benchmark."""
    flags = {"limit": work.settings.limit or 6, **work.exit_flags()}
    for name in work.with_data(entry.benchmarks):
        folder = work.study("examples", name, work.numbers / name / "examples", **flags)
        work.plot("examples", f"{entry.name}-{name}", folder)


@kind(*EVALUATED, makes="tables/exits.png", always=True)
def tiny_llava(entry: Experiment, work: Work) -> None:
    """Tiny-LLaVA on all nine benchmarks: Tables 1 and 2, and where questions exit."""
    for name in work.with_data(entry.benchmarks):
        work.evaluate(name)
    for table in ("table1", "table2"):
        work.table("paper_table", table, work.results)
    work.python("dyvte.report.figures", "exits", work.results, out=work.out / "tables/exits.png")


@kind(*EVALUATED, *("scenes", "fraction", "seed", "width", "gain"), makes="summary/*", always=True)
def whole_method(entry: Experiment, work: Work) -> None:
    """The whole method on the shipped Tiny-LLaVA: data, gates, evaluation, and every fixed exit layer."""
    work = replace(work, chosen=work.chosen.filled(work.made or "tiny"), environment=FAST_CPU)
    own, begun, out = work.settings, time.monotonic(), work.out
    work.data_root, work.gates, work.results = out / "eval", out / "gates", out / "results"
    scenes, fraction, seed = own.scenes or 4000, own.fraction or "1", own.seed or 0
    benchmarks = own.benchmarks or entry.benchmarks
    if not (Path(work.model) / "config.json").is_file():
        raise ValueError(f"no checkpoint in {work.model}")

    def step(text: str) -> None:
        work.say(f"\n[{since(begun)}] {text}")

    def once(mark: str, module: str, **flags: object) -> None:
        keep(mark, f"{module} {flags}", lambda: work.python(module, **flags))

    def keep(mark: str, words: str, action: Callable[[], None]) -> None:
        work.once(out / ".done" / mark, words, action, "kept from an earlier run")

    def train_gates() -> None:
        fresh, trained = out / "gates-fresh", out / "gates"
        for folder in (fresh, trained):
            shutil.rmtree(folder, ignore_errors=True)
        sizes = {"width": own.width, "gain": own.gain, "seed": seed}
        work.python("init_weight", model_path=work.model, output=fresh, **sizes)
        work.command(
            *("bash", "scripts/v1_5/finetune_visual_gate.sh", "--disable_tqdm", "False"),
            **{"MODEL": work.model, "GATES": fresh, "DATA": out / "gates.json", "OUTPUT": trained},
            **{"IMAGES": out / "train/images", "VERSION": own.conv_mode, "SEED": seed, "LR": "1e-3"},
            **{"NPROC": 1, "BF16": False, "WORKERS": 0, "GLOBAL_BATCH": 32, "BATCH": 32, "EPOCHS": 1},
        )

    step("Data: scenes with instructions, and evaluation sets of writers never trained on")
    once("train", "dyvte.tiny.data", out=out / "train", scenes=scenes, processes=2)
    once("eval", "dyvte.tiny.sets", out=work.data_root, questions=own.questions, only=benchmarks)
    drawn = {"output": out / "gates.json", "fraction": fraction, "seed": seed}
    once("sample", "dyvte.gates.sample", data_path=out / "train/finetune.json", **drawn)

    step("Exit gates: fresh ones, then trained while the model stays frozen")
    words = f"{work.model} {state_of(Path(work.model))} {scenes} {fraction} {own.width} {own.gain} {seed}"
    keep("gates", words, train_gates)

    for name in benchmarks:
        step(f"{name}: baseline, then DyVTE")
        work.evaluate(name)

    step("The same questions with one exit layer for all, for every layer")
    for name in benchmarks:
        work.study("fixed_exits", name, work.results / name)

    step("Results")
    facts = {"seed": seed, "scenes": scenes, "fraction": fraction, "gate_width": own.width}
    setting = tuple(f"{key}={value}" for key, value in {**facts, "seconds": since(begun).seconds}.items())
    work.python("dyvte.report.summary", work.results, out=out / "summary", setting=setting)


_QA = ("gqa", "sqa", "textvqa")
_STATES = ("gqa", "textvqa", "mmvet", "sqa")
_ROWS = (
    Experiment("table1", "DyVTE on benchmarks for multimodal LLMs", paper_table, tuple(COLUMNS["table1"])),
    Experiment("table2", "DyVTE on conventional benchmarks", paper_table, tuple(COLUMNS["table2"])),
    Experiment("table3", "gates that look at one or two states", state_table, _STATES, "pairs"),
    Experiment("table4", "DyVTE and other methods", method_table, ("sqa", "mmvet", "seed", "mmbench")),
    Experiment("table5", "gates that look at any of four states", state_table, _STATES, "states"),
    Experiment("table6", "gates that look at attention", state_table, _STATES, "attention"),
    Experiment("dynamic", "what does dynamic buy?", dynamic_exits, ("gqa", "pope", "textvqa", "sqa", "seed")),
    Experiment("labels", "labels of all layers, or of one random layer", label_modes),
    Experiment("gate_sizes", "how small can gates be?", size_table, ("gqa", "textvqa", "pope")),
    Experiment("figure3", "attention mass by layer, three stages", attention_figure, _QA, "attention"),
    Experiment("figure4", "score against the exit layer of all questions", fixed_exit_figure, _QA),
    Experiment("figure5", "entropy without and with exit", attention_figure, ("gqa",), "entropy"),
    Experiment("figure6", "after which layer the visual tokens exit", exit_figure, (*_QA, "pope")),
    Experiment("figure7", "answers, tokens per second without and with exit", examples, ("gqa", "textvqa")),
    Experiment("figure8", "as figure 3, on VQAv2", attention_figure, ("vqav2",), "attention"),
    # the next two are columns of figure 3
    Experiment(
        "figure9", "as figure 3, on TextVQA", attention_figure, ("textvqa",), "attention", in_all=False
    ),
    Experiment(
        "figure10", "as figure 3, on ScienceQA", attention_figure, ("sqa",), "attention", in_all=False
    ),
    Experiment("figure11", "as figure 3, on POPE", attention_figure, ("pope",), "attention"),
    Experiment("figure12", "as figure 3, on MMBench", attention_figure, ("mmbench",), "attention"),
    Experiment("figure13", "as figure 5, on VQAv2", attention_figure, ("vqav2",), "entropy"),
    Experiment("figure14", "as figure 5, on TextVQA", attention_figure, ("textvqa",), "entropy"),
    Experiment("figure15", "as figure 5, on ScienceQA", attention_figure, ("sqa",), "entropy"),
    Experiment("figure16", "as figure 5, on POPE", attention_figure, ("pope",), "entropy"),
    Experiment("tiny", "Tiny-LLaVA on all nine benchmarks, on a CPU", tiny_llava, TINY_SETS, in_all=False),
    Experiment(
        "quickstart", "the whole method, on a CPU", whole_method, ("gqa", "pope", "textvqa"), in_all=False
    ),
)
EXPERIMENTS = {entry.name: entry for entry in _ROWS}
