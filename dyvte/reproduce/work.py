"""What experiments are made of, for one model: evaluations, studies, stores of states, gates, and other methods.

Everything is a command in a process of its own. What is done is kept, and what was interrupted goes on.

Called by :mod:`dyvte.reproduce`, :mod:`dyvte.reproduce.experiments` and :mod:`dyvte.reproduce.runner`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import cached_property, lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from dyvte.benchmarks import get_benchmark
from dyvte.benchmarks.check import Finding, check, ready
from dyvte.io import read_json, write_whole
from dyvte.reproduce.settings import Settings
from dyvte.tiny.judge import serve

ROOT = Path(__file__).parents[2]
TINY = "playground/tiny/model"
SMALL = "playground/small/model"
TINY_JUDGE = "playground/tiny/judge_prompt.txt"
TINY_SETS = ("vqav2", "gqa", "sqa", "textvqa", "pope", "mme", "mmbench", "seed", "mmvet")
FAST_CPU = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # glibc returns freed memory to the system after each step and faults it in again; keeping it doubles the speed
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}
EVAL_SETTINGS = ("threshold", "batch_size", "conv_mode", "verify_every", "variant", "chunks")
OWN = {"METHOD", "METHOD_CONFIG", "EXIT_LAYER", "DATA", "SPLIT"} | {
    item.name.upper() for item in fields(Settings)
}
"""Variables that commands get from here or not at all."""


class StepFailed(Exception):
    """A command ended with an error, which it has printed."""


Launch = Callable[[list[str], dict[str, str], TextIO | None], int]
"""Runs a command (words, environment, log) and returns its exit code; without a log, output goes to the terminal."""


@dataclass
class Work:
    """One model in one output folder.

    Attributes:
        chosen: what a person chose; ``settings`` has the model's values for what was not chosen.
        model: folder or hub name.
        out: the output folder.
        log: where output goes; None: the terminal.
        environment: variables that all commands get.
    """

    chosen: Settings
    model: str
    out: Path
    launch: Launch
    log: TextIO | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        place = (ROOT / self.model).resolve()
        made = {"tiny": TINY, "small": SMALL}
        self.made = next((name for name, model in made.items() if place == (ROOT / model).resolve()), "")
        self.settings = self.chosen.filled(self.made)
        name = name_of(self.model)
        self.results = self.out / "results" / name
        self.numbers = self.out / "study" / name
        self.figures = self.out / "figures" / name
        self.fitted = self.out / "gates" / name  # apart from results, which tables 1 and 2 read
        self.rivaled = self.out / "rivals" / name  # apart, so that seconds are of one series of runs
        if self.made:
            self.environment = {**FAST_CPU, **self.environment}

    # commands

    def say(self, text: str) -> None:
        """A line in the log, or on the terminal."""
        print(text, file=self.log, flush=True)

    def command(self, *words: object, **environment: object) -> None:
        """Run a command with these environment variables; those that are None are left out.

        Raises:
            StepFailed: its exit code is not 0.
        """
        inherited = {name: value for name, value in os.environ.items() if name not in OWN}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(paths), **self.environment}
        given = {name: str(value) for name, value in environment.items() if value is not None}
        code = self.launch([str(word) for word in words], {**inherited, **own, **given}, self.log)
        if code:
            raise StepFailed(f"{' '.join(map(str, words[:4]))} ... ended with exit code {code}")

    def python(self, module: str, *words: object, **flags: object) -> None:
        """``python -m module words --flags``; a flag with None is left out, one with a tuple has all its values."""
        for name, value in flags.items():
            if value is not None:
                words += (f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else [value]))
        self.command(sys.executable, "-m", module, *words)

    def once(self, mark: Path, words: object, action: Callable[[], object], kept: str = "") -> None:
        """Do it, or say ``kept`` if it was done before with the same words, which the mark then holds."""
        if mark.is_file() and mark.read_text(encoding="utf-8") == f"{words}\n":
            if kept:
                self.say(kept)
            return
        mark.unlink(missing_ok=True)
        action()
        write_whole(mark, f"{words}\n")

    # the model, its data and its gates

    @cached_property
    def gates(self) -> Path | None:
        """The model's folder of gates; None where the checkpoint holds its own."""
        if self.settings.gates or self.made:
            return self.settings.gates or Path(f"playground/{self.made}/gates")
        folder = self.settings.gates_dir / f"{Path(self.model).name}-gates"
        return folder if folder.is_dir() else None

    @cached_property
    def data_root(self) -> Path:
        """The folder of the benchmarks' folders."""
        return self.out / f"{self.made}-eval" if self.made else self.settings.data_root

    def data_of(self, name: str) -> Path:
        """The folder of a benchmark's files."""
        return self.data_root / get_benchmark(name).folder

    def with_data(self, names: Iterable[str], needed: bool = True) -> Iterator[str]:
        """Those of these benchmarks (or of the chosen ones) whose files are there; says which are left out.
        Tiny-LLaVA's and Small-LLaVA's are made.

        Raises:
            ValueError: one is needed, and none is there.
        """
        count, found = self.settings.questions, False
        if self.made:
            make = partial(
                self.python, "dyvte.tiny.sets", out=self.data_root, questions=count, only=TINY_SETS
            )
            self.once(self.data_root / ".questions", count, make)
            findings_of.cache_clear()
        for name in self.settings.benchmarks or names:
            findings = findings_of(name, self.data_of(name))
            if ready(list(findings)):
                found = True
                yield name
                continue
            for finding in findings:
                self.say(f"  {finding.state:8} {finding.path}  {finding.detail}")
            self.say(f"{name}: left out for {self.model}, its data are not ready (see above)")
        if needed and not found:
            raise ValueError("no benchmark is ready")

    # evaluations

    def evaluate(self, name: str) -> Path:
        """Answers and records without and with DyVTE; the folder of both."""
        self.say(f"\n{self.model} on {name}")
        folder = self.results / name
        self.evaluation(name, folder / "none", "none")
        self.evaluation(name, folder / "dyvte", "dyvte", gates=self.gates)
        return folder

    def evaluation(
        self,
        name: str,
        folder: Path,
        method: str,
        config: str = "",
        gates: Path | None = None,
        threshold: str | None = None,
    ) -> None:
        """Answers and record in ``folder``, kept where they are of the same model, gates, questions and settings."""
        data, own = self.data_of(name), self.settings
        asked = {key.upper(): getattr(own, key) for key in EVAL_SETTINGS} | {
            **{"METHOD": method, "METHOD_CONFIG": config, "GATES": gates},
            "THRESHOLD": threshold or own.threshold,
        }
        state = state_of(Path(self.model), data, gates)
        words = " ".join(f"{value or ''}" for value in (*asked.values(), state, *filter(None, [own.dtype])))
        if not (folder / "record.json").is_file():  # nobody has graded or scored the answers: not done
            (folder / ".done").unlink(missing_ok=True)
        if (data / "v2_mscoco_val2014_annotations.json").is_file():  # the test split has no public answers
            asked["SPLIT"] = "llava_vqav2_mscoco_val2014"
        asked |= {"MODEL": self.model, "DATA": data, "OUT": folder}
        self.once(folder / ".done", words, lambda: self._answer(name, asked), f"kept: {folder}")

    def _answer(self, name: str, asked: dict[str, Any]) -> None:
        """Run a benchmark's script. A stand-in for the judge, which the record names, grades MM-Vet's
        answers about made scenes."""
        with serve() if self.made and name == "mmvet" else nullcontext() as address:
            if address:
                asked |= {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": "none", "ROUNDS": 1}
                asked |= {"MMVET_JUDGE_MODEL": "exact-match", "PROMPT_FILE": TINY_JUDGE}
            dtype = self.settings.dtype
            self.command(
                "bash", f"scripts/v1_5/eval/{name}.sh", *(["--dtype", dtype] if dtype else []), **asked
            )

    # studies

    def study(self, module: str, name: str, folder: Path, **flags: object) -> Path:
        """Run ``dyvte.study.MODULE`` on a benchmark; its output folder."""
        own, data = self.settings, self.data_of(name)
        asked = {**self.template, "temperature": 0, "batch_size": own.batch_size, "dtype": own.dtype}
        asked |= {"single_pred_prompt": () if name in ("sqa", "mmbench") else None, **flags}
        self.python(
            f"dyvte.study.{module}", name, data_dir=data, model_path=self.model, output=folder, **asked
        )
        return folder

    @property
    def template(self) -> dict[str, object]:
        """Flags for the prompt template; models of other families than LLaVA bring their own."""
        chosen = self.settings.conv_mode
        return {"conv_mode": chosen} if chosen else {"default_conv_mode": "vicuna_v1"}

    def exit_flags(self) -> dict[str, object]:
        """Flags for exit by gates."""
        return {"method": "dyvte", "gates": self.gates, "threshold": self.settings.threshold}

    def plot(self, kind: str, figure: str, *places: Path, **flags: object) -> None:
        """Draw from stored numbers."""
        self.python("dyvte.study.plot", kind, *places, **flags, out=self.figures / figure)

    def table(self, module: str, name: str, *places: Path) -> None:
        """Write and show a table of the paper."""
        self.python(f"dyvte.report.{module}", name, *places, out=self.out / "tables")
        self.say(f"written: {self.out}/tables/{name}.md, .tex and .csv")

    # gates fitted to stored states

    def store(self, part: str) -> Path:
        """The store of states of the sample that gates are fitted to ("fit") or judged on ("judge").

        Raises:
            ValueError: no sample is named.
        """
        own, folder = self.settings, self.out / f"{self.made}-train"
        sample = own.train_data if part == "fit" else own.judge_data
        if self.made and not sample:
            sample = self._draw(folder) / f"{part}.json"
        if not sample:
            raise ValueError("set JUDGE_DATA to a sample that no gate is fitted to")
        output = self.fitted / ("store" if part == "fit" else "judge-store")
        kept = {"version": own.version, "dtype": own.dtype, "attention": () if part == "fit" else None}
        images = own.train_images or folder / "images"
        asked = {"model_path": self.model, "data_path": sample, "image_folder": images, "output": output}
        self.python("dyvte.gates.store_states", **asked, **kept)
        return output

    def _draw(self, folder: Path) -> Path:
        """Draw samples of the data made for this model to fit gates to and to judge them on, which share no scene."""
        own, spoken = self.settings, ["--spoken"] if self.made == "small" else []
        scenes, fraction, seed = own.scenes or 8000, own.fraction or "0.2", own.seed or 0

        def draw() -> None:
            self.python("dyvte.tiny.data", *spoken, out=folder, scenes=scenes, seed=seed, processes=2)
            records = read_json(folder / "finetune.json")
            cut = len(records) * 3 // 4
            for part, chosen in (("fit", records[:cut]), ("judge", records[cut:])):
                whole = folder / f"{part}-all.json"
                write_whole(whole, json.dumps(chosen))
                drawn = {"output": folder / f"{part}.json", "fraction": fraction, "seed": seed}
                self.python("dyvte.gates.sample", data_path=whole, **drawn)

        self.once(folder / ".made", f"{scenes} {fraction} {seed}", draw)
        return folder

    def fit_flags(self) -> list[object]:
        """How gates are fitted: as in the paper, but for Tiny-LLaVA."""
        own = self.settings
        return [
            *("--learning_rate", own.lr, "--num_train_epochs", own.epochs, "--gain", own.gain),
            *("--per_device_train_batch_size", own.gate_batch, "--lr_scheduler_type", "cosine"),
            *("--warmup_ratio", "0.03", "--weight_decay", "0.", "--group_by_modality_length", True),
            *("--logging_steps", 10, "--seed", 42 if own.seed is None else own.seed),
            *(("--disable_tqdm", True) if self.made else ()),
        ]

    def fit_grid(self, grid: str, names: Iterable[str], results: Path, **flags: object) -> Path:
        """Fit all gates of a grid of ``dyvte.study.gate_grid`` and evaluate each, and the model without exit; the
        folder of their folders.
        """
        output = self.fitted / ("states" if grid == "pairs" else grid)  # pairs are some of the states
        asked = {"store": self.store("fit"), "output": output, **flags}
        self.python("dyvte.study.gate_grid", grid, *self.fit_flags(), **asked)
        for name in self.with_data(names, needed=False):
            self.evaluation(name, results / name / "none", "none")
            for folder in sorted(path for path in output.iterdir() if path.is_dir()):
                self.say(f"\n{self.model}, {name}, gates {folder.name}")
                self.evaluation(name, results / name / folder.name, "dyvte", gates=folder)
        return output

    # methods beside DyVTE

    def rivals(self) -> list[str]:
        """Methods with their settings, after the baseline and before DyVTE.

        LLaVA-1.5: FastV, PyramidDrop, StabilityExit (VisiPruner) and, for 7B, VTW have the values of their papers.
        ToMe's r gives the cost that Table 4 prints (5.5 TFLOPs). Random dropping drops as much as FastV.
        Tiny-LLaVA (20 layers, 81 visual tokens): the same shares of layers and tokens. The search on training data
        found VTW's layer. StabilityExit is an exit alone (size 0), because its size depends on the model; 0.95 is
        the lowest `still` that changed none of 64 training answers (0.9 changed one).
        """
        if self.settings.rivals:
            return list(self.settings.rivals)
        tome, stability = ("4", "start=4 size=0 still=0.95") if self.made else ("18", "start=7 size=0.2")
        return [
            *(f"tome r={tome}", "fastv k=2 r=0.5", f"vtw k={self.vtw_layer()}", "random k=2 r=0.5"),
            *("pooling s=2", "pyramiddrop stages=4 ratio=0.5", f"stability {stability}"),
        ]

    def vtw_layer(self) -> int:
        """VTW's k: as given, else as known, else as its search finds it on the training sample.

        Raises:
            ValueError: there is nothing to search on.
        """
        own, known = self.settings, {"llava-v1.5-7b": 15, "llava-1.5-7b-hf": 15}
        layer = known.get(Path(self.model).name) if own.vtw_k is None else own.vtw_k
        if layer is not None:
            return layer
        if not self.chosen.train_data or not self.chosen.train_images:
            raise ValueError(f"set VTW_K, or TRAIN_DATA and TRAIN_IMAGES to search a layer for {self.model}")
        found = self.rivaled / "vtw.json"
        sample = {"data_path": own.train_data, "image_folder": own.train_images, "output": found}
        how = {**self.template, "divergence": own.vtw_divergence, "dtype": own.dtype}
        self.python("dyvte.study.vtw_search", model_path=self.model, **sample, **how)
        return int(read_json(found)["k"])

    def rival(self, name: str, line: str, threshold: str | None = None, folder: str | None = None) -> Path:
        """One evaluation of a method with its settings (``fastv k=2 r=0.5``); its record.

        Raises:
            ValueError: the benchmark gave no score.
        """
        method, _, config = line.partition(" ")
        place = self.rivaled / name / (folder or line.replace(" ", "-").replace("=", "-"))
        self.say(f"\n{self.model} on {name}: {method} {config}")
        gates = self.gates if "dyvte" in method.split("+") else None
        self.evaluation(name, place, method, config, gates, threshold)
        if not (place / "record.json").is_file():
            raise ValueError(f"{name} has no score for {method}: see above")
        return place / "record.json"


def name_of(model: str) -> str:
    """The model's name in folders: those of the last two parts of its path."""
    return f"{Path(model).parent.name or '.'}-{Path(model).name}"


def since(begun: float) -> timedelta:
    """Whole seconds since a time of ``time.monotonic``."""
    return timedelta(seconds=int(time.monotonic() - begun))


def state_of(*places: Path | None) -> str:
    """Names, sizes and times of these files and of those in these folders, not below; a README is no input."""
    found = [[place] if place.is_file() else place.glob("*") for place in places if place]
    files = [(path, path.stat()) for path in chain(*found) if path.is_file() and path.name != "README.md"]
    rows = (f"{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in files)
    return digest_of(sorted(rows))


def digest_of(lines: Iterable[str]) -> str:
    """A short digest of lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@lru_cache
def findings_of(name: str, folder: Path) -> tuple[Finding, ...]:
    """What ``dyvte.benchmarks.check`` says of a benchmark's files; looked at once in a process."""
    return tuple(check(get_benchmark(name), folder))
