"""The paper's tables and figures, and what goes beyond them: one entry each.

A class is a kind of experiment: what it runs, and which settings it depends on. An entry of ``EXPERIMENTS`` is the
data of one: its name, title and benchmarks.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from dyvte.io import read_json
from dyvte.reproduce.work import FAST_CPU, Clock, Work, state_of

DATA = ("data_root", "questions")
ASKED = (*DATA, "benchmarks", "gates", "gates_dir", "threshold", "conv_mode", "batch_size")
EVALUATED = (*ASKED, "verify_every", "variant", "chunks")
FITTED = (
    *("train_data", "train_images", "scenes", "fraction", "seed", "version", "dtype"),
    *("lr", "epochs", "gate_batch", "width", "gain"),
)
RIVALED = (*EVALUATED, "rivals", "vtw_k", "vtw_divergence", "train_data", "train_images")


@dataclass(frozen=True)
class Experiment:
    """One table, figure or study.

    Attributes:
        name: on the command line, and of the files that it makes.
        benchmarks: which it asks, where their files are there and no others are chosen.
        in_all: whether it is a part of ``all``.
        settings: names of all settings that it depends on (``dyvte.reproduce.settings``).
        makes: pattern of what it leaves below the output folder; ``{name}`` and ``{model}`` stand for theirs.
        several: whether it takes more than one model.
        always: whether it runs also when it is done, because it keeps its parts itself and ends with its results.
    """

    name: str
    title: str
    benchmarks: tuple[str, ...] = ()
    in_all: bool = True
    settings: ClassVar[tuple[str, ...]]
    makes: ClassVar[str]
    several: ClassVar[bool] = False
    always: ClassVar[bool] = False

    def run(self, works: Sequence[Work]) -> None:
        """Make it, for one model unless ``several``.

        Raises:
            StepFailed, ValueError, OSError: it cannot be made.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class PaperTable(Experiment):
    """Scores and TFLOPs without and with DyVTE."""

    settings = EVALUATED
    makes = "tables/{name}.csv"
    several = True

    def run(self, works: Sequence[Work]) -> None:
        for work in works:
            for name in work.with_data(self.benchmarks):
                work.evaluate(name)
        works[0].table("paper_table", self.name, [work.results for work in works])


@dataclass(frozen=True)
class StateTable(Experiment):
    """Gates that look at different states, fitted to one store: ``grid`` of dyvte.study.gate_grid, in ``folder``."""

    settings = (*EVALUATED, *FITTED)
    makes = "tables/{name}.csv"
    several = True
    grid: str = ""
    folder: str = ""

    def run(self, works: Sequence[Work]) -> None:
        for work in works:
            grid = work.fit_grid(self.grid, work.store_to_fit(), self.folder, "--width", work.width)
            work.evaluate_grid(grid, work.fitted / "results", self.benchmarks)
        works[0].table("state_table", self.name, [work.fitted / "results" for work in works])


@dataclass(frozen=True)
class MethodTable(Experiment):
    """Scores and costs of DyVTE and of the methods people would use instead, and a Pareto plot."""

    settings = RIVALED
    makes = "tables/{name}.csv"

    def run(self, works: Sequence[Work]) -> None:
        (work,) = works
        rivals = work.rivals()
        fastv = [line for line in rivals if line.startswith("fastv")] or ["fastv k=2 r=0.5"]
        tiny = ("gqa", "pope", "textvqa", "sqa", "seed", "mmbench")
        places = [
            work.rival(name, line)
            for name in work.with_data(tiny if work.is_tiny else self.benchmarks)
            for line in ("none", *rivals, "dyvte", f"dyvte+{fastv[-1]}")
        ]
        if not places:
            raise ValueError(f"{self.name}: no benchmark is ready")
        work.python("dyvte.report.rivals_table", *places, "--out", work.out / "tables")
        work.python("dyvte.study.pareto", *places, "--out", work.out / "tables" / self.name)
        work.say(f"written: {work.out}/tables/{self.name}.md, .tex, .csv, .png and .pdf")


@dataclass(frozen=True)
class Dynamic(Experiment):
    """Gates against every fixed exit layer, against other methods, and the oracle exit."""

    settings = (*RIVALED, "thresholds")
    makes = "tables/{name}.json"

    def run(self, works: Sequence[Work]) -> None:
        (work,) = works
        rivals, own = work.rivals(), self.threshold_of(work.gates)
        places, oracles = [], []
        for name in work.with_data(self.benchmarks):
            places += [work.rival(name, line) for line in ("none", *rivals, "dyvte")]
            for threshold in work.settings.thresholds:
                if float(threshold) != own:
                    places.append(work.rival(name, "dyvte", threshold, f"dyvte-{threshold}"))
            places.append(self.study_once(work, "fixed_exits", name, work.rivaled / name / "fixed"))
            oracles.append(self.study_once(work, "oracle", name, work.rivaled / name / "oracle"))
        if not places:
            raise ValueError(f"{self.name}: no benchmark is ready")
        work.python("dyvte.study.dynamic", *places, "--oracle", *oracles, "--output", work.out / "tables")

    @staticmethod
    def study_once(work: Work, module: str, name: str, folder: Path) -> Path:
        state = state_of(Path(work.model), work.data_of(name))
        words = f"{work.settings.batch_size or ''} {work.settings.conv_mode or ''} {state}"
        work.once(folder / ".done", words, lambda: work.study(module, name, folder))
        return folder

    @staticmethod
    def threshold_of(gates: Path | None) -> float:
        """The one that the gates were calibrated to."""
        file = gates / "gates.json" if gates else None
        return float((read_json(file).get("threshold") if file and file.is_file() else None) or 0.5)


@dataclass(frozen=True)
class Labels(Experiment):
    """Labels of all layers against labels of one random layer a step, at the same number of forward passes."""

    settings = (*FITTED, "judge_data", "label_epochs", "label_seeds")
    makes = "tables/{name}/supervision_modes.json"

    def run(self, works: Sequence[Work]) -> None:
        (work,) = works
        judge, store = (
            work.store_to_judge(),
            work.store_to_fit(),
        )  # it says first if there is none to judge on
        # epochs and seed are this study's own; the last of a flag's values counts
        work.python(
            "dyvte.study.supervision_modes",
            *("--store", store, "--held-out", judge, "--model-path", work.model),
            *("--output", work.out / "tables" / self.name, "--epochs", *work.settings.label_epochs),
            *("--seeds", *work.settings.label_seeds, *work.fit_flags(), "--width", work.width),
        )


@dataclass(frozen=True)
class GateSizes(Experiment):
    """How small gates can be at the same decisions, on a sample that they were not fitted to."""

    settings = (*EVALUATED, *FITTED, "judge_data", "reference")
    makes = "tables/{name}.json"

    def run(self, works: Sequence[Work]) -> None:
        (work,) = works
        judge, store = (
            work.store_to_judge(),
            work.store_to_fit(),
        )  # it says first if there is none to judge on
        grid, results = work.fit_grid("sizes", store, "sizes"), work.fitted / "size-results"
        work.evaluate_grid(grid, results, self.benchmarks)
        records = ("--records", results) if results.is_dir() else ()
        work.python(
            "dyvte.study.gate_sizes",
            *("--store", judge, "--gates", grid, "--model-path", work.model),
            *("--reference", work.settings.reference, *records, "--output", work.out / "tables"),
        )


@dataclass(frozen=True)
class AttentionFigure(Experiment):
    """Attention mass by layer; with ``plot`` "entropy", its entropies without and with exit."""

    settings = (*ASKED, "limit")
    makes = "figures/{model}/{name}.png"
    plot: str = "attention"

    def run(self, works: Sequence[Work]) -> None:
        (work,) = works
        methods = ("none", "dyvte") if self.plot == "entropy" else ("none",)
        places = [
            self.measure(work, name, method) for name in work.with_data(self.benchmarks) for method in methods
        ]
        work.plot(self.plot, self.name, places)

    @staticmethod
    def measure(work: Work, name: str, method: str) -> Path:
        flags = work.exit_flags() if method == "dyvte" else ("--method", "none")
        limit = work.settings.limit or 100
        return work.study("attention", name, work.numbers / name / method, "--limit", limit, *flags)


@dataclass(frozen=True)
class FixedExitFigure(Experiment):
    """Score against the layer at which all questions exit, with DyVTE and the oracle exit."""

    settings = (*EVALUATED, "layers", "limit")
    makes = "figures/{model}/{name}.png"

    def run(self, works: Sequence[Work]) -> None:
        (work,) = works
        layers = ("--layers", *work.settings.layers) if work.settings.layers else ()
        limit = ("--limit", work.settings.limit) if work.settings.limit else ()
        places, oracles = [], []
        for name in work.with_data(self.benchmarks):
            places.append(work.study("fixed_exits", name, work.evaluate(name), *layers))
            oracles.append(work.study("oracle", name, work.numbers / name / "oracle", *limit))
        work.plot("manual", self.name, places, "--oracle", *oracles)


@dataclass(frozen=True)
class ExitFigure(Experiment):
    """After which layer the visual tokens exit."""

    settings = EVALUATED
    makes = "figures/{model}/{name}.png"

    def run(self, works: Sequence[Work]) -> None:
        (work,) = works
        places = [work.evaluate(name) / "dyvte" for name in work.with_data(self.benchmarks)]
        if not places:
            raise ValueError(f"{self.name}: no benchmark is ready")
        work.python("dyvte.report.figures", "exits", *places, "--out", work.figures / self.name)


@dataclass(frozen=True)
class Examples(Experiment):
    """Questions with their answers and tokens per second, without and with exit: one page for each benchmark."""

    settings = (*ASKED, "limit")
    makes = "figures/{model}/{name}-*.html"

    def run(self, works: Sequence[Work]) -> None:
        (work,) = works
        for name in work.with_data(self.benchmarks):
            limit = ("--limit", work.settings.limit or 6)
            folder = work.study(
                "examples", name, work.numbers / name / "examples", *limit, *work.exit_flags()
            )
            work.plot("examples", f"{self.name}-{name}", [folder])


@dataclass(frozen=True)
class Tiny(Experiment):
    """Tiny-LLaVA on all nine benchmarks: Tables 1 and 2, and where questions exit."""

    settings = EVALUATED
    makes = "tables/exits.png"
    always = True

    def run(self, works: Sequence[Work]) -> None:
        (work,), clock = works, Clock()
        for name in work.with_data(self.benchmarks):
            work.evaluate(name)
        for table in ("table1", "table2"):
            work.table("paper_table", table, [work.results])
        work.python("dyvte.report.figures", "exits", work.results, "--out", work.out / "tables/exits.png")
        work.say(f"done in {clock}")


@dataclass(frozen=True)
class Quickstart(Experiment):
    """The whole method on the shipped Tiny-LLaVA: data, gates, evaluation, and every fixed exit layer."""

    settings = (*EVALUATED, "scenes", "fraction", "seed")
    makes = "summary/*"
    always = True
    width: int = 128
    """Of a gate; the paper's 2048 is for models that are 4096 wide."""
    gain: str = "0.1"
    """Of fresh gates; Tiny-LLaVA's states are large, and with the paper's 1 its gates stay overconfident."""

    def run(self, works: Sequence[Work]) -> None:
        own, clock, out = works[0].settings, Clock(), works[0].out
        work = replace(
            works[0],
            settings=replace(own, conv_mode=own.conv_mode or "vicuna_v1_nosys", batch_size=16),
            environment={**FAST_CPU, "TOKENIZERS_PARALLELISM": "false"},
        )
        scenes, fraction, seed = own.scenes or 4000, own.fraction or "1", own.seed or 0
        benchmarks = own.benchmarks or self.benchmarks
        if not (Path(work.model) / "config.json").is_file():
            raise ValueError(f"no checkpoint in {work.model}")

        def step(text: str) -> None:
            work.say(f"\n[{clock}] {text}")

        def once(mark: str, module: str, *arguments: object) -> None:
            words = " ".join(map(str, (module, *arguments)))
            keep(mark, words, lambda: work.python(module, *arguments))

        def keep(mark: str, words: str, action: Callable[[], object]) -> None:
            work.once(out / ".done" / mark, words, action, "kept from an earlier run")

        step("Data: scenes with instructions, and evaluation sets of writers never trained on")
        once("train", "dyvte.tiny.data", "--out", out / "train", "--scenes", scenes, "--processes", 2)
        sets = ("--questions", own.questions, "--only", *benchmarks)
        once("eval", "dyvte.tiny.sets", "--out", out / "eval", *sets)
        drawn = ("--fraction", fraction, "--seed", seed)
        data = ("--data-path", out / "train/finetune.json", "--output", out / "gates.json")
        once("sample", "dyvte.gates.sample", *data, *drawn)

        step("Exit gates: fresh ones, then trained while the model stays frozen")
        state = state_of(Path(work.model))
        words = f"{work.model} {state} {scenes} {fraction} {self.width} {self.gain} {seed}"
        keep("gates", words, lambda: self.train_gates(work, seed))

        for name in benchmarks:
            step(f"{name}: baseline, then DyVTE")
            files, results = out / "eval" / name, out / "results" / name
            work.evaluation(name, results / "none", "none", data=files)
            work.evaluation(name, results / "dyvte", "dyvte", gates=out / "gates", data=files)

        step("The same questions with one exit layer for all, for every layer")
        for name in benchmarks:
            work.study("fixed_exits", name, out / "results" / name, data=out / "eval" / name)

        step("Results")
        facts = {"seed": seed, "scenes": scenes, "fraction": fraction, "gate_width": self.width}
        setting = [f"{key}={value}" for key, value in {**facts, "seconds": clock.seconds}.items()]
        work.python("dyvte.report.summary", out / "results", "--out", out / "summary", "--setting", *setting)
        step("Done")

    def train_gates(self, work: Work, seed: int) -> None:
        fresh, trained = work.out / "gates-fresh", work.out / "gates"
        for folder in (fresh, trained):
            shutil.rmtree(folder, ignore_errors=True)
        sizes = ("--width", self.width, "--gain", self.gain, "--seed", seed)
        work.command(
            *(sys.executable, "init_weight.py", "--model-path", work.model, "--output", fresh, *sizes)
        )
        environment = {
            **{"MODEL": work.model, "GATES": fresh, "DATA": work.out / "gates.json", "OUTPUT": trained},
            **{"IMAGES": work.out / "train/images", "VERSION": work.conv_mode, "SEED": seed, "LR": "1e-3"},
            **{"NPROC": 1, "BF16": False, "WORKERS": 0, "GLOBAL_BATCH": 32, "BATCH": 32, "EPOCHS": 1},
        }
        script = "scripts/v1_5/finetune_visual_gate.sh"
        work.command("bash", script, "--disable_tqdm", "False", environment=environment)


_QA = ("gqa", "sqa", "textvqa")
_STATES = ("gqa", "textvqa", "mmvet", "sqa")
EXPERIMENTS: dict[str, Experiment] = {
    entry.name: entry
    for entry in (
        PaperTable(
            "table1", "DyVTE on benchmarks for multimodal LLMs", ("seed", "mme", "mmbench", "pope", "mmvet")
        ),
        PaperTable("table2", "DyVTE on conventional benchmarks", ("gqa", "vqav2", "textvqa", "sqa")),
        StateTable("table3", "gates that look at one or two states", _STATES, grid="pairs", folder="states"),
        MethodTable("table4", "DyVTE and other methods", ("sqa", "mmvet", "seed", "mmbench")),
        StateTable(
            "table5", "gates that look at any of four states", _STATES, grid="states", folder="states"
        ),
        StateTable("table6", "gates that look at attention", _STATES, grid="attention", folder="attention"),
        Dynamic("dynamic", "what does dynamic buy?", ("gqa", "pope", "textvqa", "sqa", "seed")),
        Labels("labels", "labels of all layers, or of one random layer"),
        GateSizes("gate_sizes", "how small can gates be?", ("gqa", "textvqa", "pope")),
        AttentionFigure("figure3", "attention mass by layer, and the three stages", _QA),
        FixedExitFigure("figure4", "score against the exit layer of all questions", _QA),
        AttentionFigure("figure5", "entropy of attention without and with exit", ("gqa",), plot="entropy"),
        ExitFigure("figure6", "after which layer the visual tokens exit", (*_QA, "pope")),
        Examples("figure7", "answers and tokens per second without and with exit", ("gqa", "textvqa")),
        AttentionFigure("figure8", "as figure 3, on VQAv2", ("vqav2",)),
        AttentionFigure(
            "figure9", "as figure 3, on TextVQA", ("textvqa",), in_all=False
        ),  # a column of figure 3
        AttentionFigure(
            "figure10", "as figure 3, on ScienceQA", ("sqa",), in_all=False
        ),  # a column of figure 3
        AttentionFigure("figure11", "as figure 3, on POPE", ("pope",)),
        AttentionFigure("figure12", "as figure 3, on MMBench", ("mmbench",)),
        AttentionFigure("figure13", "as figure 5, on VQAv2", ("vqav2",), plot="entropy"),
        AttentionFigure("figure14", "as figure 5, on TextVQA", ("textvqa",), plot="entropy"),
        AttentionFigure("figure15", "as figure 5, on ScienceQA", ("sqa",), plot="entropy"),
        AttentionFigure("figure16", "as figure 5, on POPE", ("pope",), plot="entropy"),
        Tiny(
            "tiny",
            "Tiny-LLaVA on all nine benchmarks, on a CPU",
            ("gqa", "vqav2", "textvqa", "sqa", "seed", "mme", "mmbench", "pope", "mmvet"),
            in_all=False,
        ),
        Quickstart(
            "quickstart", "the whole method on Tiny-LLaVA, on a CPU", ("gqa", "pope", "textvqa"), in_all=False
        ),
    )
}
