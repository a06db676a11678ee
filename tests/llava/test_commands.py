"""The ``dyvte`` command runs the modules that it lists."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from dyvte import cli
from llava.commands import COMMANDS, main


def dyvte(*arguments):
    command = [sys.executable, "-m", "llava.commands", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and purpose in shown for name, (_, purpose) in COMMANDS.items())


def test_an_unknown_command_names_the_others(capsys):
    with pytest.raises(SystemExit) as end:
        main(["aks"])
    assert end.value.code == 2 and "'ask'" in capsys.readouterr().err


def test_without_a_command_there_is_help(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dyvte"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0 and "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", sys.argv)
    monkeypatch.setattr(cli, "command", None)
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0 and "usage:" in capsys.readouterr().out


def test_a_question_is_answered():
    done = dyvte(
        *("ask", "--model-path", "playground/tiny/model", "--image-file", "playground/tiny/example.jpg"),
        *("--query", "What digit is red?", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].strip()


def test_an_error_is_one_line():
    picture = "playground/tiny/example.jpg"
    done = dyvte("ask", *("--model-path", "nowhere/at/all", "--image-file", picture, "--query", "What?"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("dyvte ask: ") and "nowhere/at/all" in last


@pytest.mark.parametrize("name", ["ask", "chat", "demo", "serve"])
def test_every_flag_is_explained(name):
    module, _ = COMMANDS[name]
    flags = importlib.import_module(module).build_parser()._actions
    assert [flag.option_strings for flag in flags if not flag.help] == []
