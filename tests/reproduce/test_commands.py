"""What experiments run: commands that their modules understand, as the paper's tables and figures need them."""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path

import pytest

from dyvte.benchmarks.check import ready
from dyvte.io import write_json
from dyvte.report.page import FIGURES
from dyvte.reproduce import work as work_module
from dyvte.reproduce.__main__ import parse
from dyvte.reproduce.experiments import EXPERIMENTS
from dyvte.reproduce.settings import Settings
from dyvte.reproduce.work import ROOT, SMALL, TINY, Work
from dyvte.tiny.sets.gqa import write_gqa

LLAVA = "checkpoints/llava-v1.5-7b"


class Commands:
    """Stands for commands: keeps them, and makes the files that an experiment looks at between two of them."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.environments: list[dict[str, str]] = []

    def __call__(self, command, environment, log) -> int:
        self.lines.append(command)
        self.environments.append(environment)
        flags = dict(zip(command, command[1:], strict=False))
        if command[0] == "bash" and environment.get("OUT"):
            write_json(Path(environment["OUT"]) / "record.json", {})
        for module, place, content in (
            ("dyvte.tiny.data", Path(flags.get("--out", "")) / "finetune.json", [1, 2, 3, 4]),
            ("dyvte.study.gate_grid", Path(flags.get("--output", "")) / "some/gates.json", {}),
            ("dyvte.study.vtw_search", flags.get("--output", ""), {"k": 7}),
        ):
            if module in command:
                write_json(place, content)
        return 0

    def plain(self) -> list[str]:
        """The command lines after the interpreter."""
        return [" ".join(line[2:] if line[0] == sys.executable else line) for line in self.lines]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run an experiment with commands that do nothing, on benchmarks that are ready."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(work_module, "findings_of", lru_cache(lambda name, folder: ()))

    def run_it(name: str, model: str = TINY, settings: Settings | None = None) -> Commands:
        commands = Commands()
        EXPERIMENTS[name].run(Work(settings or Settings(), model, tmp_path / "my out", commands))
        return commands

    run_it.out = str(tmp_path / "my out")
    return run_it


class Parsed(Exception):
    """A module has parsed its command line, so it need not run."""


@pytest.fixture
def understand(monkeypatch):
    """Let a module parse its command line, and no more."""
    original = argparse.ArgumentParser.parse_known_args

    def parse_known_args(self, args=None, namespace=None, **more):
        found, rest = original(self, args, namespace, **more)
        if self.add_help:  # not one that looks for a single word
            raise Parsed(rest)
        return found, rest

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)

    def parse_it(command: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", [command[1], *command[3:]])
        with pytest.raises(Parsed) as parsed:
            if command[1] == "-m":
                main = "dyvte.tiny.sets.__main__" if command[2] == "dyvte.tiny.sets" else command[2]
                importlib.import_module(main).main()
            else:
                monkeypatch.setattr(sys, "argv", command[1:])
                runpy.run_path(command[1], run_name="__main__")
        (rest,) = parsed.value.args
        if command[2] in ("dyvte.study.gate_grid", "dyvte.study.supervision_modes"):
            fit = ["--store", "x", "--output_dir", "x", *rest]
            return parse_it([command[0], "-m", "dyvte.gates.fit", *fit])
        assert rest == []

    return parse_it


FULL_LINE = (
    "all --limit 3 --layers 1 2 --threshold 0.7 --gates g --seed 3 --lr 1e-4 --epochs 2 --gate-batch 4 --width 8 "
    "--gain 0.5 --label-epochs 1 --label-seeds 4 5 --dtype bfloat16 --version v0 --train-data t.json "
    "--train-images images --judge-data j.json --thresholds 0.3 --batch-size 2 --conv-mode vicuna_v1"
)
FULL = parse(FULL_LINE.split())[1]


@pytest.mark.parametrize(
    "model, settings",
    [
        (TINY, Settings()),
        (SMALL, Settings()),
        (LLAVA, Settings(judge_data=Path("judge.json"))),
        ("a/model", replace(FULL, benchmarks=("mmbench",))),
    ],
)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_modules_understand_their_commands(run, understand, name, model, settings):
    commands = run(name, model if name != "quickstart" else TINY, settings)
    assert commands.lines
    for command in {tuple(line[1:3]): line for line in commands.lines}.values():  # one of each module
        if command[0] == "bash":
            assert (ROOT / command[1]).is_file()
        else:
            understand(command)


def test_a_paper_table(run):
    commands = run("table2", LLAVA)
    evaluations = [f"bash scripts/v1_5/eval/{name}.sh" for name in ("gqa", "vqav2", "textvqa", "sqa")]
    table = (
        f"dyvte.report.paper_table table2 {run.out}/results/checkpoints-llava-v1.5-7b --out {run.out}/tables"
    )
    assert commands.plain() == [line for line in evaluations for _ in range(2)] + [table]
    wanted = {"MODEL": LLAVA, "METHOD": "none", "DATA": "playground/data/eval/gqa"}
    wanted |= {"OUT": f"{run.out}/results/checkpoints-llava-v1.5-7b/gqa/none", "PYTHON": sys.executable}
    assert wanted.items() <= commands.environments[0].items() and "GATES" not in commands.environments[0]
    assert run("table2", LLAVA).plain() == [table], "evaluations that are done are kept"


def test_an_attention_figure(run):
    folder = f"{run.out}/study/tiny-model/gqa"
    asked = (
        f"dyvte.study.attention gqa --data-dir {run.out}/tiny-eval/gqa --model-path {TINY} --output {folder}"
    )
    how = "--conv-mode vicuna_v1_nosys --temperature 0 --batch-size 16 --limit 100 --method"
    assert run("figure5").plain()[1:] == [
        f"{asked}/none {how} none",
        f"{asked}/dyvte {how} dyvte --gates playground/tiny/gates",
        f"dyvte.study.plot entropy {folder}/none {folder}/dyvte --out {run.out}/figures/tiny-model/figure5",
    ]


def test_thresholds_beside_the_gates_own(run, tmp_path):
    write_json(tmp_path / "gates/gates.json", {"threshold": 0.9})
    settings = Settings(gates=tmp_path / "gates", benchmarks=("gqa",), rivals=("tome r=4",))
    commands = run("dynamic", settings=settings)
    asked = [
        (Path(own["OUT"]).name, own["METHOD"], own["METHOD_CONFIG"], own.get("THRESHOLD"), own.get("GATES"))
        for line, own in zip(commands.lines, commands.environments, strict=True)
        if line[0] == "bash"
    ]
    gates = str(tmp_path / "gates")
    assert asked[:3] == [
        ("none", "none", "", None, None),
        ("tome-r-4", "tome", "r=4", None, None),
        ("dyvte", "dyvte", "", None, gates),
    ]
    assert asked[3:] == [
        (f"dyvte-{value}", "dyvte", "", value, gates) for value in ("0.1", "0.25", "0.75", "0.97")
    ]
    folder = f"{run.out}/rivals/tiny-model/gqa"
    assert commands.plain()[-1].endswith(f"{folder}/fixed --oracle {folder}/oracle --output {run.out}/tables")


def test_vtw_layer_is_searched_where_none_is_known(run):
    settings = Settings(train_data=Path("t.json"), train_images=Path("images"), benchmarks=("gqa",))
    commands = run("table4", "a/model", settings)
    assert commands.plain()[0].startswith("dyvte.study.vtw_search --model-path a/model --data-path t.json")
    assert any(own.get("METHOD_CONFIG") == "k=7" for own in commands.environments)
    with pytest.raises(ValueError, match="set VTW_K, or TRAIN_DATA"):
        run("table4", "a/model")
    assert Work(Settings(vtw_k=0), "a/model", Path("out"), commands).vtw_layer() == 0


def test_settings_of_this_process_reach_commands_only_from_here(run, monkeypatch):
    """A METHOD or an OUT in the environment is somebody else's."""
    for name in ("METHOD", "EXIT_LAYER", "THRESHOLD", "SPLIT"):
        monkeypatch.setenv(name, "7")
    environment = run("table2", LLAVA).environments[0]
    assert environment["METHOD"] == "none" and not {"EXIT_LAYER", "THRESHOLD", "SPLIT"} & set(environment)


def test_mmvet_of_tiny_llava_has_a_judge(run):
    commands = run("table1", settings=Settings(benchmarks=("mmvet",)))
    assert commands.environments[1]["OPENAI_BASE_URL"].startswith("http://127.0.0.1:")
    assert "OPENAI_BASE_URL" in os.environ or "OPENAI_BASE_URL" not in commands.environments[-1]


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("model", [TINY, "a/model"])
def test_an_experiment_names_all_settings_that_it_reads(run, name, model):
    """Else a change of one would not make it run again."""
    read: set[str] = set()

    class Recording(Settings):
        def __getattribute__(self, attribute: str):
            read.add(attribute)
            return super().__getattribute__(attribute)

        def filled(self, made: str) -> Settings:
            return self  # nothing is missing

    given = {item.name: getattr(FULL, item.name) for item in fields(Settings)}
    run(name, model if name != "quickstart" else TINY, Recording(**given))
    read &= set(given)
    assert "model" not in read and read <= set(EXPERIMENTS[name].kind.settings)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_the_report_names_the_benchmarks_of_the_figures(figure):
    assert EXPERIMENTS[figure.name].benchmarks == figure.benchmarks


def test_small_llava_has_tiny_llavas_scenes_in_fuller_language_and_its_own_template(run):
    lines = run("labels", SMALL).plain()
    made = [line for line in lines if line.startswith("dyvte.tiny.data")]
    assert len(made) == 1 and f"--spoken --out {run.out}/small-train" in made[0]
    stores = [line for line in lines if line.startswith("dyvte.gates.store_states")]
    assert len(stores) == 2 and all("--version chatml_direct --dtype bfloat16" in line for line in stores)
    commands = run("table1", SMALL, Settings(benchmarks=("gqa",)))
    with_exit = commands.environments[-2]
    assert with_exit["GATES"] == "playground/small/gates" and with_exit["CONV_MODE"] == "chatml_direct"
    assert with_exit["DATA"] == f"{run.out}/small-eval/gqa" and with_exit["BATCH_SIZE"] == "16"


@pytest.mark.parametrize("name", ["table1", "figure3", "figure4", "dynamic"])
def test_every_command_that_opens_the_model_gets_its_dtype(run, name):
    for model, chosen, dtype in (
        (SMALL, None, "bfloat16"),
        (SMALL, "float32", "float32"),
        (TINY, None, None),
        (LLAVA, "float16", "float16"),
    ):
        for line in run(name, model, Settings(dtype=chosen, vtw_k=15)).lines:
            if line[0] == "bash" or "--model-path" in line:
                given = line[line.index("--dtype") + 1] if "--dtype" in line else None
                assert given == dtype, line


def test_tiny_llavas_benchmarks_are_made(tmp_path):
    """Also where somebody has looked for them before."""

    def write_sets(command, environment, log) -> int:
        write_gqa(tmp_path / "tiny-eval/gqa", 2)
        return 0

    work = Work(Settings(), TINY, tmp_path, write_sets)
    assert not ready(list(work_module.findings_of("gqa", work.data_of("gqa"))))
    assert list(work.with_data(["gqa"])) == ["gqa"]


class TestKeptEvaluations:
    @pytest.fixture
    def place(self, tmp_path):
        """A folder with blanks in its name."""
        return tmp_path / "a  place"

    @pytest.fixture
    def evaluate(self, place):
        places = {name: place / name for name in ("model", "gqa", "gates")}
        for folder in places.values():
            folder.mkdir(parents=True)
            (folder / "file").write_text("1")

        def evaluate(config: str = "", graded: bool = True, **settings) -> bool:
            """Whether it ran."""
            commands = Commands() if graded else (lambda *_: commands_without.append(1) or 0)
            commands_without: list[int] = []
            own = Settings(data_root=place, gates=places["gates"], **settings)
            work = Work(own, str(places["model"]), place, commands)
            work.evaluation("gqa", place / "out", "dyvte", config, places["gates"])
            return bool(commands.lines if graded else commands_without)

        return evaluate

    def test_until_something_changes(self, evaluate, place):
        assert [evaluate(), evaluate(), evaluate("k=3"), evaluate()] == [True, False, True, True]
        for setting in ("threshold", "batch_size", "conv_mode", "verify_every", "variant", "chunks"):
            assert [evaluate(**{setting: 7}), evaluate(**{setting: 7}), evaluate()] == [True, False, True], (
                setting
            )
        for name in ("model", "gqa", "gates"):
            (place / name / "file").write_text("other")
            assert [evaluate(), evaluate()] == [True, False], name

    def test_answers_without_a_record_are_not_done(self, evaluate, place):
        """Nobody has graded them yet, or the record was removed."""
        assert [evaluate(graded=False), evaluate(graded=False), evaluate(), evaluate()] == [
            True,
            True,
            True,
            False,
        ]
        (place / "out/record.json").unlink()
        assert evaluate()
