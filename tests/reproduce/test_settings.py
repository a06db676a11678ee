"""Settings: flags, the environment's variables, and what fits which experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from dyvte.reproduce.__main__ import main, models_of, parse
from dyvte.reproduce.experiments import EXPERIMENTS
from dyvte.reproduce.work import TINY


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in (
        "MODEL",
        "OUT",
        "QUESTIONS",
        "GATES",
        "STEPS",
        "BENCHMARKS",
        "LAYERS",
        "RIVALS",
        "THRESHOLD",
        "FORCE",
    ):
        monkeypatch.delenv(name, raising=False)


def test_variables_and_flags(monkeypatch):
    for name, value in {
        "QUESTIONS": "7", "GATES": "my gates", "LAYERS": "0 5", "RIVALS": "fastv k=3 r=0.75; tome r=12",
        "LIMIT": "", "FORCE": "1", "STEPS": "figure4 table4", "THRESHOLD": "0.70",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    name, settings = parse(["all", "--questions", "9"])
    assert name == "all" and settings.questions == 9, "a flag goes before a variable"
    assert settings.gates == Path("my gates") and settings.layers == (0, 5) and settings.limit is None
    assert settings.rivals == ("fastv k=3 r=0.75", "tome r=12") and settings.force
    assert settings.steps == ("figure4", "table4") and settings.threshold == "0.70"
    assert settings.given(("layers", "rivals", "seed")) == {
        "LAYERS": "0 5",
        "RIVALS": "fastv k=3 r=0.75;tome r=12",
    }


def test_models(monkeypatch, tmp_path):
    (tmp_path / "vila-7b").mkdir()
    (tmp_path / "vila-7b/config.json").write_text("{}")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    for name, found in (("table1", [TINY, str(tmp_path / "vila-7b")]), ("figure3", [TINY])):
        assert models_of(EXPERIMENTS[name], parse([name])[1]) == found
    for line in (
        ["table1", "a", "b c"],
        ["table1", "--model", "a", "b c"],
        ["table1", "a", "--model", "b c"],
    ):
        assert models_of(EXPERIMENTS["table1"], parse(line)[1]) == ["a", "b c"]
    monkeypatch.setenv("MODEL", "my model")
    assert models_of(EXPERIMENTS["figure3"], parse(["figure3"])[1]) == ["my model"]


def test_all_takes_no_benchmarks(monkeypatch):
    """Each experiment has its own."""
    monkeypatch.setenv("BENCHMARKS", "gqa")
    assert parse(["all"])[1].benchmarks is None and parse(["figure3"])[1].benchmarks == ("gqa",)


@pytest.mark.parametrize(
    "line, variables, message",
    [
        ("figure8 --layers 3", {}, "--layers is no setting of figure8"),
        ("all --benchmarks gqa", {}, "--benchmarks is no setting of all"),
        ("figure8 --steps table1", {}, "--steps is no setting of figure8"),
        ("figure8 --question 3", {}, "unrecognized arguments"),
        ("figure8 --questions many", {}, "invalid int value"),
        ("table3 --lr fast", {}, "invalid number value"),
        ("figure8", {"QUESTIONS": "many"}, "QUESTIONS=many is not possible"),
        ("all", {"STEPS": "table1 table9"}, "table9 is not one of table1 table2"),
        ("figure99", {}, "invalid choice"),
        ("figure8 a b", {}, "takes one model"),
    ],
)
def test_what_cannot_be_is_refused(line, variables, message, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        parse(line.split())
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_all_are_listed(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown for name in EXPERIMENTS)
    assert sum(entry.in_all for entry in EXPERIMENTS.values()) == 21
