"""The runner: what is kept, what runs again, what an interruption and a failure leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dyvte.reproduce import runner as runner_module
from dyvte.reproduce.__main__ import models_of, parse
from dyvte.reproduce.experiments import Experiment, kind
from dyvte.reproduce.runner import FAILURES, Runner
from dyvte.reproduce.settings import Settings
from dyvte.reproduce.work import ROOT, Work

STEPS = ("table1", "figure6", "table2")


@kind("questions", "gates", "benchmarks", "data_root", makes="made/{name}")
def fake(entry: Experiment, *works: Work) -> None:
    """Runs one command, which makes the product."""
    for work in works:
        work.command("make", entry.name, work.out / "made" / entry.name)


FIGURE6 = Experiment("figure6", "figure6", fake, ("gqa",))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder, with blanks in its name, for a model, gates and results."""
    folder = tmp_path / "a place"
    for name in ("checkpoint", "gates"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("1")
    entries = {name: Experiment(name, name, fake) for name in STEPS}
    monkeypatch.setattr(runner_module, "EXPERIMENTS", entries)
    return folder


class Commands:
    """Stands for commands: notes what was run, makes products, and fails for some."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing: set[str] = set()

    def __call__(self, command, environment, log) -> int:
        if command[0] != "make":  # the report
            Path(command[-1]).write_text("page")
            return 0
        _, name, product = command
        self.ran.append(name)
        if name in self.failing:
            print(f"no luck with {name}", file=log, flush=True)
            return 3
        Path(product).parent.mkdir(parents=True, exist_ok=True)
        Path(product).write_text("made")
        return 0

    def taken(self) -> list[str]:
        """What ran since the last call."""
        ran, self.ran = self.ran, []
        return ran


@pytest.fixture
def commands():
    return Commands()


def a_runner(place: Path, commands: Commands, **settings) -> Runner:
    given = replace(Settings(gates=place / "gates", data_root=place / "data"), **settings)
    return Runner(given, [str(place / "checkpoint")], place / "out", commands)


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_what_is_done_is_kept(place, commands, capsys):
    assert a_runner(place, commands).run_all() == []
    assert commands.taken() == list(STEPS)
    out = capsys.readouterr().out
    assert (
        "[ 2/3]" in out
        and out.count("done in 0:0") == 3
        and "all: 3 steps in 0:0" in out
        and (place / "out/report.html").is_file()
    )
    assert (place / "out/steps/inputs").read_text().startswith(f"MODEL={place / 'checkpoint'}\nDATA_ROOT=")
    before = state(place / "out/steps")
    assert a_runner(place, commands).run_all() == []
    assert capsys.readouterr().out.count("  kept, ") == 3 and commands.taken() == []
    assert state(place / "out/steps") == before


@pytest.mark.parametrize(
    "change, settings, again",
    [
        (lambda place: (place / "out/made/table1").unlink(), {}, ["table1"]),
        (lambda place: (place / "out/steps/table2.done").unlink(), {}, ["table2"]),
        (lambda place: (place / "gates/more").write_text("x"), {}, list(STEPS)),
        (lambda place: (place / "checkpoint/file").write_text("other"), {}, list(STEPS)),
        (lambda place: None, {"questions": 7}, list(STEPS)),
        (lambda place: None, {"layers": (3,)}, []),  # no setting of these
        (lambda place: None, {"force": True}, list(STEPS)),
        (lambda place: None, {"steps": ("table2", "table1")}, []),
        (lambda place: runner_module.EXPERIMENTS.update(figure6=FIGURE6), {}, ["figure6"]),
    ],
)  # fmt: skip
def test_what_changed_runs_again(place, commands, change, settings, again):
    assert a_runner(place, commands).run_all() == []
    commands.taken()
    change(place)
    assert a_runner(place, commands, **settings).run_all() == []
    assert commands.taken() == again


def test_changed_gates_are_noticed_whatever_their_folder_is_called(place, commands, monkeypatch):
    """Settings from the environment, with blanks in every path."""
    for name, value in {"MODEL": "checkpoint", "GATES": "gates", "DATA_ROOT": "data", "OUT": "out"}.items():
        monkeypatch.setenv(name, str(place / value))

    def run() -> list[str]:
        settings = parse(["all"])[1]
        assert settings.out is not None
        assert Runner(settings, models_of(None, settings), settings.out, commands).run_all() == []
        return commands.taken()

    assert [run(), run()] == [list(STEPS), []]
    (place / "gates/file").write_text("other")
    assert [run(), run()] == [list(STEPS), []]


def test_scripts_hand_on_values_as_they_are(place):
    python = place / "a python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@" "$GATES" "$PWD"\n')
    python.chmod(0o755)
    line = ["bash", str(ROOT / "scripts/reproduce/table1.sh"), "my model", "--out", "my  out"]
    environment = {**os.environ, "PYTHON": str(python), "GATES": "my gates *"}
    done = subprocess.run(line, env=environment, cwd=place, capture_output=True, text=True, check=True)
    wanted = ["-m", "dyvte.reproduce", "table1", "my model", "--out", "my  out", "my gates *", str(ROOT)]
    assert done.stdout.split("|")[:-1] == wanted


def test_new_data_and_new_code_run_again(place, commands, monkeypatch):
    entry = FIGURE6
    monkeypatch.setattr(runner_module, "findings_of", lambda name, folder: ())
    (place / "data/gqa").mkdir(parents=True)
    keys = [a_runner(place, commands).key_of(entry)]
    (place / "data/gqa/questions.jsonl").write_text("1")
    keys.append(a_runner(place, commands).key_of(entry))
    monkeypatch.setattr(runner_module.inspect, "getsource", lambda _: "other")
    keys.append(a_runner(place, commands).key_of(entry))
    assert len(set(keys)) == 3


def test_chosen_steps_run_in_their_order(place, commands):
    assert a_runner(place, commands, steps=("table2", "table1")).run_all() == []
    assert commands.taken() == ["table2", "table1"]


def test_a_failed_step_is_named_and_the_others_run(place, commands, capsys):
    commands.failing = {"figure6"}
    assert a_runner(place, commands).run_all() == ["figure6"] and commands.taken() == list(STEPS)
    shown = capsys.readouterr()
    assert "FAILED, make figure6" in shown.out and "no luck with figure6" in shown.out
    assert "exit code 3" in shown.out and (place / "out/report.html").is_file()
    assert (place / "out/steps/figure6.failed").read_text() == "no luck with figure6\n"
    commands.failing = set()
    assert a_runner(place, commands).run_all() == [] and commands.taken() == ["figure6"]
    assert not (place / "out/steps/figure6.failed").exists()


def test_an_experiment_alone(place, commands, capsys):
    one = runner_module.EXPERIMENTS["table1"]
    a_runner(place, commands).run_one(one)
    assert commands.taken() == ["table1"] and "table1: done in 0:0" in capsys.readouterr().out
    a_runner(place, commands).run_one(one)
    assert commands.taken() == [] and "table1: kept" in capsys.readouterr().out
    commands.failing = {"table2"}
    with pytest.raises(FAILURES, match="exit code 3"):
        a_runner(place, commands).run_one(runner_module.EXPERIMENTS["table2"])
    assert commands.taken() == ["table2"]
    several = a_runner(place, commands)
    several.models = [*several.models, "other/model"]
    several.run_one(one)
    assert commands.taken() == ["table1", "table1"]


def test_a_second_run_is_refused(place, commands):
    def inner(*_) -> int:
        with pytest.raises(ValueError, match="another run is at work"):
            a_runner(place, commands).run_all()
        return 0

    a_runner(place, inner).run_one(Experiment("table1", "", fake))
    assert commands.taken() == []
    assert a_runner(place, commands).run_all() == []


WAITING = """
import sys
from tests.reproduce import test_runner as t
t.runner_module.EXPERIMENTS = {name: t.Experiment(name, name, t.shell) for name in t.STEPS}
from dyvte.reproduce import __main__ as face
face.EXPERIMENTS = t.runner_module.EXPERIMENTS
sys.exit(face.main(["all", "--model", "playground/tiny/model", "--out", sys.argv[1]]))
"""


@kind("questions", makes="made/{name}")
def shell(entry: Experiment, work: Work) -> None:
    """A command that starts another process, waits in the second step while a file says so, and makes a file."""
    script = (
        'mkdir -p "$0/made"; echo "$1" >>"$0/ran"; '
        'if [ "$1" = figure6 ] && [ -e "$0/block" ]; then touch "$0/started"; sleep 300 & sleep 300; fi; '
        'touch "$0/made/$1"'
    )
    work.command("bash", "-c", script, work.out, entry.name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_goes_on(tmp_path, number):
    out = tmp_path / "out dir"
    out.mkdir()
    (out / "block").touch()

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WAITING, str(out)]
        pipe = subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)

    run, until = start(), time.monotonic() + 30
    while not (out / "started").exists() and time.monotonic() < until:
        time.sleep(0.05)
    second = start()
    assert second.communicate(timeout=30) == ("", f"all: another run is at work in {out}\n")
    assert second.returncode == 1 and run.poll() is None
    run.send_signal(number)
    _, errors = run.communicate(timeout=30)  # ends only when nothing that it started holds its output
    assert run.returncode == 130 and "goes on from here" in errors
    assert (out / "ran").read_text().split() == ["table1", "figure6"]
    assert not (out / "steps/figure6.done").exists() and not (out / "steps/figure6.failed").exists()
    (out / "block").unlink()
    run = start()  # the lock is free
    shown, _ = run.communicate(timeout=60)
    assert run.returncode == 0, shown
    assert (out / "ran").read_text().split() == ["table1", "figure6", "figure6", "table2"]
