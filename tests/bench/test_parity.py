"""The check of a device: what it counts, what it fails on, and that it runs without any extra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dyvte.bench import parity, summary

ROOT = Path(__file__).parents[2]
QUESTIONS = ROOT / "tests/gpu/questions"
EXTRAS = (
    "matplotlib pandas openpyxl requests tenacity datasets markdown_it sklearn deepspeed peft tensorboard"
)
EXTRAS += " flash_attn bitsandbytes av hypothesis"
WITHOUT_EXTRAS = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
missing = set("{EXTRAS}".split())
PathFinder.find_spec = staticmethod(
    lambda name, *given: None if name.partition(".")[0] in missing else find(name, *given)
)
"""
"""A sitecustomize module that hides the packages of all extras from the processes that find it."""


@pytest.fixture
def flags(tmp_path):
    lines = (QUESTIONS / "questions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "questions.jsonl").write_text("".join(lines[:6]))
    given = ["--model-path", ROOT / "playground/tiny/model", "--gates", ROOT / "playground/tiny/gates"]
    given += ["--question-file", tmp_path / "questions.jsonl", "--image-folder", QUESTIONS / "images"]
    return [str(word) for word in (*given, "--device", "cpu", "--json", tmp_path / "out/parity.json")]


@pytest.fixture
def bare(tmp_path):
    """The environment of a process without the packages of any extra."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/sitecustomize.py").write_text(WITHOUT_EXTRAS)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'bare'}:{ROOT}", "PYTHON": sys.executable}


def test_counts_and_their_page(flags, tmp_path, capsys):
    parity.main(flags)
    printed = capsys.readouterr().out
    (tmp_path / "out/parity.md").write_text(printed)
    assert "| float32   | no          |        6 of 6 |      6 of 6 |" in printed
    results = json.loads((tmp_path / "out/parity.json").read_text())["results"]
    assert [(one["dtype"], one["graphs"], one["questions"]) for one in results] == [
        ("float32", False, 6),
        ("bfloat16", False, 6),
    ]
    (tmp_path / "out/check.md").write_text("| tests | 9 | passed |\n")
    summary.main([str(tmp_path / "out")])
    page = (tmp_path / "out/README.md").read_text()
    assert "`parity`, 6 questions to model, batches of 16, beside a CPU in float32" in page
    assert page.index("| tests | 9 | passed |") < page.index("## parity") < page.index("6 of 6")


def test_what_differs_is_counted_and_float32_must_not():
    expected = {"a": ("red", 3), "b": ("two", None), "c": ("yes", 1)}
    found = {"a": ("red", 4), "b": ("two", None), "c": ("no", 1)}
    for dtype, broken in (("float32", True), ("bfloat16", False)):
        agreement = parity.compare(expected, found, dtype, graphs=True)
        assert (agreement.answers, agreement.exits, agreement.different) == (2, 2, ["a", "c"])
        assert agreement.broken is broken
    assert not parity.compare(expected, dict(expected), "float32", graphs=False).broken


def test_a_difference_in_float32_ends_the_command(flags, monkeypatch, capsys):
    own = parity.answer_all

    def other_answers(args, device, dtype, graphs, calls=[]):  # noqa: B006 - remembers its calls
        calls.append(dtype)
        found = own(args, device, dtype, graphs)
        return found if len(calls) == 1 else {name: (text + "?", at) for name, (text, at) in found.items()}

    monkeypatch.setattr(parity, "answer_all", other_answers)
    with pytest.raises(SystemExit, match="in float32 6 of 6 questions come out differently"):
        parity.main(flags)
    assert "0 of 6" in capsys.readouterr().out


def test_runs_without_extras(flags, bare, tmp_path):
    """Parity, the benchmark and the page need the core's dependencies alone."""
    program = """
import sys
from dyvte.bench import parity, summary
from dyvte.bench.__main__ import main
try:
    import matplotlib
except ModuleNotFoundError:
    print("bare")
parity.main(sys.argv[1:])
small = "--model tiny --layers 2 --dtype fp32 --visual-tokens tiny --gate-width 4 --rounds 1 --warmup 0"
for command in ("prefill", "ttft", "throughput --questions 2"):
    main([*command.split(), *small.split(), "--answer-tokens", "2", "--device", "cpu"])
"""
    done = subprocess.run([sys.executable, "-c", program, *flags], env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("bare") and "reading alone" in done.stdout


@pytest.mark.slow
def test_the_script_tried_out_on_a_cpu(bare, tmp_path):
    """All steps but the tests of a GPU, which are skipped here, without any extra; then nothing is measured twice."""
    extra = "--dtype fp32 --layers 3 --visual-tokens tiny --gate-width 8 --questions 8 --warmup 0"
    env = {
        **bare,
        "DEVICE": "cpu",
        "MODEL": "tiny",
        "EXTRA": extra,
        "ROUNDS": "1",
        "OUT": str(tmp_path / "out"),
    }
    script = ["bash", str(ROOT / "scripts/gpu_check.sh")]
    done = subprocess.run(script, env=env | {"SECONDS_MAX": "500"}, capture_output=True, text=True)
    page = (tmp_path / "out/README.md").read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    assert page.count("| passed |") == 3
    names = ("decode-tiny", "generate-tiny", "parity", "prefill-tiny", "throughput-tiny", "ttft-tiny")
    assert all(f"## {name}\n" in page for name in names)
    again = subprocess.run(script, env=env | {"SECONDS_MAX": "1"}, capture_output=True, text=True)
    assert again.returncode == 1 and again.stdout.count("no time left: run it again") == 3
