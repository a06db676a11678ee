"""What experiments are made of, for one model: evaluations, studies, stores of states, gates, and other methods.

Everything is a command in a process of its own. What is done is kept, and what was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TextIO

from dyvte.benchmarks import get_benchmark
from dyvte.benchmarks.check import Finding, check, ready
from dyvte.io import read_json, write_whole
from dyvte.reproduce.settings import Settings
from dyvte.tiny.judge import serve

ROOT = Path(__file__).parents[2]
TINY = "playground/tiny/model"
TINY_JUDGE = "playground/tiny/judge_prompt.txt"
TINY_SETS = ("vqav2", "gqa", "sqa", "textvqa", "pope", "mme", "mmbench", "seed", "mmvet")
FAST_CPU = {
    "HF_HUB_OFFLINE": "1",
    # glibc returns freed memory to the system after each step and faults it in again; keeping it doubles the speed
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}
EVAL_SETTINGS = ("threshold", "batch_size", "conv_mode", "verify_every", "variant", "chunks")
OWN = {
    "METHOD",
    "METHOD_CONFIG",
    "EXIT_LAYER",
    "DATA",
    "SPLIT",
    *(item.name.upper() for item in fields(Settings)),
}
"""Variables that commands get from here or not at all."""


class StepFailed(Exception):
    """A command ended with an error, which it has printed."""


class Launch(Protocol):
    """Runs a command to its end and returns its exit code; output goes to the log, or to the terminal without one."""

    def __call__(self, command: list[str], environment: dict[str, str], log: TextIO | None) -> int: ...


@dataclass
class Work:
    """One model in one output folder.

    Attributes:
        model: folder or hub name.
        out: the output folder.
        log: where output goes; None: the terminal.
        environment: variables that all commands get.
    """

    settings: Settings
    model: str
    out: Path
    launch: Launch
    log: TextIO | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        folder = Path(self.model)
        self.is_tiny = (ROOT / folder).resolve() == (ROOT / TINY).resolve()
        name = name_of(self.model)
        self.results = self.out / "results" / name
        self.numbers = self.out / "study" / name
        self.figures = self.out / "figures" / name
        self.fitted = self.out / "gates" / name  # apart from results, which tables 1 and 2 read
        self.rivaled = self.out / "rivals" / name  # apart, so that seconds are of one series of runs
        if self.is_tiny:
            self.environment = {**FAST_CPU, **self.environment}

    # commands

    def say(self, text: str) -> None:
        """A line in the log, or on the terminal."""
        print(text, file=self.log, flush=True)

    def command(self, *words: object, environment: Mapping[str, object | None] | None = None) -> None:
        """Run a command with these variables; those that are None are left out.

        Raises:
            StepFailed: its exit code is not 0.
        """
        inherited = {name: value for name, value in os.environ.items() if name not in OWN}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(paths), **self.environment}
        given = {name: str(value) for name, value in (environment or {}).items() if value is not None}
        code = self.launch([str(word) for word in words], {**inherited, **own, **given}, self.log)
        if code:
            raise StepFailed(f"{' '.join(map(str, words[:4]))} ... ended with exit code {code}")

    def python(self, module: str, *arguments: object) -> None:
        """``python -m module arguments``."""
        self.command(sys.executable, "-m", module, *arguments)

    def once(self, mark: Path, words: str, action: Callable[[], object], kept: str = "") -> None:
        """Do it unless it was done before with the same words, which the mark then holds."""
        if mark.is_file() and mark.read_text(encoding="utf-8") == f"{words}\n":
            self.say(kept or f"kept: {mark.parent}")
            return
        mark.unlink(missing_ok=True)
        action()
        write_whole(mark, f"{words}\n")

    # the model, its data and its gates

    @property
    def conv_mode(self) -> str:
        return self.settings.conv_mode or ("vicuna_v1_nosys" if self.is_tiny else "vicuna_v1")

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size or (16 if self.is_tiny else 1)

    @property
    def gates(self) -> Path | None:
        """The model's folder of gates; None where the checkpoint holds its own."""
        if self.settings.gates or self.is_tiny:
            return self.settings.gates or Path("playground/tiny/gates")
        folder = self.settings.gates_dir / f"{Path(self.model).name}-gates"
        return folder if folder.is_dir() else None

    def data_of(self, name: str) -> Path:
        """The folder of a benchmark's files."""
        root = self.out / "tiny-eval" if self.is_tiny else self.settings.data_root
        return root / get_benchmark(name).folder

    def with_data(self, names: Iterable[str]) -> Iterator[str]:
        """Those of these benchmarks (or of the chosen ones) whose files are there; says which are left out.
        Tiny-LLaVA's are made.
        """
        for name in self.settings.benchmarks or names:
            if self.is_tiny:
                self.make_tiny_sets()
            findings = findings_of(name, self.data_of(name))
            if ready(list(findings)):
                yield name
                continue
            for finding in findings:
                self.say(f"  {finding.state:8} {finding.path}  {finding.detail}")
            self.say(f"{name}: left out for {self.model}, its data are not ready (see above)")

    def make_tiny_sets(self) -> None:
        """Tiny-LLaVA's benchmarks, unless they are there with as many questions."""
        folder, count = self.out / "tiny-eval", self.settings.questions
        mark = folder / ".questions"
        if not mark.is_file() or mark.read_text(encoding="utf-8").strip() != str(count):
            self.python("dyvte.tiny.sets", "--out", folder, "--questions", count, "--only", *TINY_SETS)
            write_whole(mark, f"{count}\n")
            findings_of.cache_clear()

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
        data: Path | None = None,
    ) -> None:
        """Answers and record in ``folder``, kept where they are of the same model, gates, questions and settings."""
        own, data = self.settings, data or self.data_of(name)
        chosen = {key.upper(): getattr(own, key) for key in EVAL_SETTINGS} | {
            "THRESHOLD": threshold or own.threshold
        }
        state = state_of(Path(self.model), data, gates)
        words = " ".join(f"{value or ''}" for value in (method, config, *chosen.values(), gates, state))
        mark = folder / ".done"
        if not (folder / "record.json").is_file():  # nobody has graded or scored the answers: not done
            mark.unlink(missing_ok=True)
        environment: dict[str, object | None] = {
            **chosen,
            **{"MODEL": self.model, "DATA": data, "METHOD": method, "METHOD_CONFIG": config, "GATES": gates},
            **{"OUT": folder, "CONV_MODE": self.conv_mode, "BATCH_SIZE": self.batch_size},
        }
        if (data / "v2_mscoco_val2014_annotations.json").is_file():
            environment["SPLIT"] = (
                "llava_vqav2_mscoco_val2014"  # the test split has no public answers, so no record
            )
        self.once(mark, words, lambda: self._answer(name, environment))

    def _answer(self, name: str, environment: dict[str, object | None]) -> None:
        """Run a benchmark's script. A stand-in for the judge, which the record names, grades Tiny-LLaVA on MM-Vet."""
        with serve() if self.is_tiny and name == "mmvet" else nullcontext() as address:
            if address:
                environment |= {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": "none", "ROUNDS": 1}
                environment |= {"MMVET_JUDGE_MODEL": "exact-match", "PROMPT_FILE": TINY_JUDGE}
            self.command("bash", f"scripts/v1_5/eval/{name}.sh", environment=environment)

    # studies

    def study(self, module: str, name: str, folder: Path, *flags: object, data: Path | None = None) -> Path:
        """Run ``dyvte.study.MODULE`` on a benchmark; its output folder."""
        single = ("--single-pred-prompt",) if name in ("sqa", "mmbench") else ()
        self.python(
            f"dyvte.study.{module}",
            *(name, "--data-dir", data or self.data_of(name), "--model-path", self.model, "--output", folder),
            *("--conv-mode", self.conv_mode, "--temperature", 0, "--batch-size", self.batch_size),
            *(*single, *flags),
        )
        return folder

    def exit_flags(self) -> list[object]:
        """Flags for exit by gates."""
        gates = ["--gates", self.gates] if self.gates else []
        threshold = ["--threshold", self.settings.threshold] if self.settings.threshold else []
        return ["--method", "dyvte", *gates, *threshold]

    def plot(self, kind: str, figure: str, places: Sequence[Path], *flags: object) -> None:
        """Draw from stored numbers.

        Raises:
            ValueError: there are none.
        """
        if not places:
            raise ValueError(f"{figure}: no benchmark is ready")
        self.python("dyvte.study.plot", kind, *places, *flags, "--out", self.figures / figure)

    def table(self, module: str, name: str, places: Sequence[Path]) -> None:
        """Write and show a table of the paper."""
        self.python(f"dyvte.report.{module}", name, *places, "--out", self.out / "tables")
        self.say(f"written: {self.out}/tables/{name}.md, .tex and .csv")

    # gates fitted to stored states

    def store(self, sample: Path, name: str, *flags: object) -> Path:
        """The store of a sample's states, finished if it is not."""
        images = self.settings.train_images or (
            self.out / "tiny-train/images" if self.is_tiny else Path("playground/data")
        )
        version = self.settings.version or ("vicuna_v1_nosys" if self.is_tiny else "v1")
        self.python(
            "dyvte.gates.store_states",
            *("--model-path", self.model, "--data-path", sample, "--image-folder", images),
            *("--version", version, "--dtype", self.settings.dtype, "--output", self.fitted / name, *flags),
        )
        return self.fitted / name

    def store_to_fit(self) -> Path:
        """The store that gates are fitted to."""
        sample = (
            self._sample("fit") if self.is_tiny else Path("playground/data/llava_v1_5_mix665k_gates.json")
        )
        return self.store(self.settings.train_data or sample, "store", "--attention")

    def store_to_judge(self) -> Path:
        """The store of another sample.

        Raises:
            ValueError: none is named.
        """
        sample = self.settings.judge_data or (self._sample("judge") if self.is_tiny else None)
        if sample is None:
            raise ValueError("set JUDGE_DATA to a sample that no gate is fitted to")
        return self.store(sample, "judge-store")

    def fit_flags(self) -> list[object]:
        """How gates are fitted: as in the paper, but for Tiny-LLaVA."""
        own = self.settings
        lr, epochs, gain, batch = ("1e-3", "4", "0.1", 32) if self.is_tiny else ("4e-5", "1", "1", 128)
        return [
            *("--learning_rate", own.lr or lr, "--num_train_epochs", own.epochs or epochs),
            *("--gain", own.gain or gain, *(("--disable_tqdm", True) if self.is_tiny else ())),
            *("--per_device_train_batch_size", own.gate_batch or batch, "--lr_scheduler_type", "cosine"),
            *("--warmup_ratio", "0.03", "--weight_decay", "0.", "--group_by_modality_length", True),
            *("--logging_steps", 10, "--seed", 42 if own.seed is None else own.seed),
        ]

    @property
    def width(self) -> int:
        return self.settings.width or (128 if self.is_tiny else 2048)

    def fit_grid(self, grid: str, store: Path, folder: str, *flags: object) -> Path:
        """Fit all gates of a grid of ``dyvte.study.gate_grid``; the folder of their folders."""
        output = self.fitted / folder
        self.python(
            "dyvte.study.gate_grid", grid, "--store", store, "--output", output, *self.fit_flags(), *flags
        )
        return output

    def evaluate_grid(self, grid: Path, results: Path, names: Iterable[str]) -> None:
        """Each folder of gates on each benchmark, and the model without exit."""
        for name in self.with_data(names):
            self.evaluation(name, results / name / "none", "none")
            for folder in sorted(path for path in grid.iterdir() if path.is_dir()):
                self.say(f"\n{self.model}, {name}, gates {folder.name}")
                self.evaluation(name, results / name / folder.name, "dyvte", gates=folder)

    def _sample(self, name: str) -> Path:
        """Tiny-LLaVA's sample to fit gates to, or to judge them on. The two share no scene."""
        folder, own = self.out / "tiny-train", self.settings
        scenes, fraction, seed = own.scenes or 8000, own.fraction or "0.2", own.seed or 0
        mark, words = folder / ".made", f"{scenes} {fraction} {seed}\n"
        if mark.is_file() and mark.read_text(encoding="utf-8") == words:
            return folder / f"{name}.json"
        self.python("dyvte.tiny.data", "--out", folder, "--scenes", scenes, "--seed", seed, "--processes", 2)
        records = read_json(folder / "finetune.json")
        cut = len(records) * 3 // 4
        for part, chosen in (("fit", records[:cut]), ("judge", records[cut:])):
            whole = folder / f"{part}-all.json"
            write_whole(whole, json.dumps(chosen))
            output = ("--output", folder / f"{part}.json", "--fraction", fraction, "--seed", seed)
            self.python("dyvte.gates.sample", "--data-path", whole, *output)
        write_whole(mark, words)
        return folder / f"{name}.json"

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
        tome, stability = (
            ("r=4", "start=4 size=0 still=0.95") if self.is_tiny else ("r=18", "start=7 size=0.2")
        )
        return [
            *(f"tome {tome}", "fastv k=2 r=0.5", f"vtw k={self.vtw_layer()}", "random k=2 r=0.5"),
            *("pooling s=2", "pyramiddrop stages=4 ratio=0.5", f"stability {stability}"),
        ]

    def vtw_layer(self) -> int:
        """VTW's k: as given, else as known, else as its search finds it on the training sample.

        Raises:
            ValueError: there is nothing to search on.
        """
        own, known = self.settings, {"llava-v1.5-7b": 15, "llava-1.5-7b-hf": 15}
        layer = own.vtw_k
        if layer is None:
            layer = 9 if self.is_tiny else known.get(Path(self.model).name)
        if layer is not None:
            return layer
        if not own.train_data or not own.train_images:
            raise ValueError(
                f"set VTW_K, or TRAIN_DATA and TRAIN_IMAGES to search VTW's layer for {self.model}"
            )
        found = self.rivaled / "vtw.json"
        self.python(
            "dyvte.study.vtw_search",
            *("--model-path", self.model, "--data-path", own.train_data, "--image-folder", own.train_images),
            *("--output", found, "--conv-mode", self.conv_mode, "--divergence", own.vtw_divergence),
        )
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


class Clock:
    """Time since it was made."""

    def __init__(self) -> None:
        self.begun = time.monotonic()

    @property
    def seconds(self) -> int:
        return int(time.monotonic() - self.begun)

    def __str__(self) -> str:
        return f"{self.seconds // 60}:{self.seconds % 60:02d}"


def state_of(*places: Path | None) -> str:
    """Names, sizes and times of these files and of those in these folders, not below."""
    rows = []
    for place in filter(None, places):
        for file in [place] if place.is_file() else place.iterdir() if place.is_dir() else []:
            if file.is_file():
                rows.append(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}")
    return digest_of(sorted(rows))


def digest_of(lines: Iterable[str]) -> str:
    """A short digest of lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@lru_cache
def findings_of(name: str, folder: Path) -> tuple[Finding, ...]:
    """What ``dyvte.benchmarks.check`` says of a benchmark's files; looked at once in a process."""
    return tuple(check(get_benchmark(name), folder))
