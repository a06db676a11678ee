"""scripts/reproduce/all.sh: what is kept, what runs again, what an interruption and a failure leave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.scripts.test_end_to_end import ROOT, TINY, bash

SOURCES = ("common", "gates", "study", "rivals")
STEP = """\
step=$(basename "$0" .sh)
echo "$step $1 $MODEL ${QUESTIONS:-} ${BENCHMARKS:-}${METHOD:-}" >>"$OUT/ran"
if [ -e "$OUT/../block-$step" ]; then touch "$OUT/started"; sleep 300; fi
if [ -e "$OUT/../fail-$step" ]; then echo "no luck with $step"; exit 3; fi
"""
PYTHON = """\
#!/usr/bin/env bash
# stands in for Python: says which files there are, and makes the report
case $1 in
-m) cat "$OUT/ran" >"$OUT/report.html" ;;
*) cat >/dev/null; ls -l "$4" 2>/dev/null | sed 's/^/file /'; echo benchmark gqa ;;
esac
"""


@pytest.fixture
def place(tmp_path):
    """A copy of the script with steps that do next to nothing, in a folder of its own."""
    folder = tmp_path / "scripts/reproduce"
    folder.mkdir(parents=True)
    for name in ("all", "common"):
        shutil.copy(ROOT / f"scripts/reproduce/{name}.sh", folder)
    for name in SOURCES[1:]:
        (folder / f"{name}.sh").write_text("# nothing\n")
    for name, product in (("table1", "tables/table1.csv"), ("table2", "tables/table2.csv")):
        make_step(folder / f"{name}.sh", product)
    make_step(folder / "figure6.sh", "figures/tiny-model/figure6.png")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "gates").mkdir()
    (tmp_path / "gates/gates.json").write_text("{}")
    return tmp_path


def make_step(path: Path, product: str) -> None:
    path.write_text(f'{STEP}mkdir -p "$OUT/$(dirname {product})"\necho made >"$OUT/{product}"\n')


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "# changed\n")


def command(place: Path, **settings: str) -> tuple[list[str], dict[str, str]]:
    environment = {
        **os.environ,
        "PYTHON": str(place / "python"),
        "OUT": str(place / "out"),
        "STEPS": "table1 figure6 table2",
        "GATES": str(place / "gates"),
        **settings,
    }
    return ["bash", str(place / "scripts/reproduce/all.sh")], environment


def start(place: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    line, environment = command(place, **settings)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)


def ran(place: Path) -> list[str]:
    """The steps that ran since the last call."""
    path = place / "out/ran"
    names = [line.split()[0] for line in path.read_text().splitlines()] if path.is_file() else []
    path.unlink(missing_ok=True)
    path.touch()
    return names


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_what_is_done_is_kept(place):
    first = start(place)
    assert first.returncode == 0, first.stderr
    assert ran(place) == ["table1", "figure6", "table2"]
    assert "[ 2/3]" in first.stdout and first.stdout.count("done in 0:0") == 4
    assert (place / "out/report.html").is_file()
    before = state(place / "out/steps") | state(place / "out/tables")
    second = start(place)
    assert second.returncode == 0 and second.stdout.count("  kept\n") == 3 and ran(place) == []
    assert state(place / "out/steps") | state(place / "out/tables") == before


@pytest.mark.parametrize(
    "change, again",
    [
        (lambda place: (place / "out/tables/table1.csv").unlink(), ["table1"]),
        (lambda place: (place / "out/steps/table2.done").unlink(), ["table2"]),
        (lambda place: edit(place / "scripts/reproduce/figure6.sh"), ["figure6"]),
        (lambda place: (place / "scripts/reproduce/study.sh").write_text("# other\n"),
         ["table1", "figure6", "table2"]),
        (lambda place: (place / "gates/more").write_text("x"), ["table1", "figure6", "table2"]),
        (lambda place: {"QUESTIONS": "7"}, ["table1", "figure6", "table2"]),
        (lambda place: {"FORCE": "1"}, ["table1", "figure6", "table2"]),
        (lambda place: {"STEPS": "table2 table1"}, []),
    ],
)  # fmt: skip
def test_what_changed_runs_again(place, change, again):
    assert start(place).returncode == 0
    ran(place)
    settings = change(place)
    done = start(place, **(settings if isinstance(settings, dict) else {}))
    assert done.returncode == 0 and ran(place) == again, done.stdout


def test_steps_get_the_model_and_the_settings_but_not_those_of_one_script(place):
    assert start(place, QUESTIONS="7", BENCHMARKS="gqa", METHOD="tome", STEPS="table1").returncode == 0
    model = "playground/tiny/model"
    assert (place / "out/ran").read_text().split() == ["table1", model, model, "7"]


def test_a_failed_step_is_named_and_the_others_run(place):
    (place / "fail-figure6").touch()
    done = start(place)
    assert done.returncode == 1 and ran(place) == ["table1", "figure6", "table2"]
    assert "failed: figure6" in done.stderr and "no luck with figure6" in done.stdout
    assert "exit code 3" in done.stdout and (place / "out/report.html").is_file()
    assert (place / "out/steps/figure6.failed").read_text() == "no luck with figure6\n"
    (place / "fail-figure6").unlink()
    done = start(place)
    assert done.returncode == 0 and ran(place) == ["figure6"]
    assert not (place / "out/steps/figure6.failed").exists()


def blocked(place: Path) -> subprocess.Popen[str]:
    """A run that waits in its second step."""
    (place / "block-figure6").touch()
    line, environment = command(place)
    run = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not (place / "out/started").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_goes_on(place, number):
    run = blocked(place)
    if shutil.which("flock"):
        second = start(place)
        assert second.returncode == 1 and "another run is at work" in second.stderr
    run.send_signal(number)
    _, errors = run.communicate(timeout=30)  # ends only when nothing that it started holds its output
    assert run.returncode == 130 and "goes on from here" in errors
    assert ran(place) == ["table1", "figure6"] and not (place / "out/steps/figure6.done").exists()
    (place / "block-figure6").unlink()
    done = start(place)  # the lock is free: what the first run started has ended
    assert done.returncode == 0 and ran(place) == ["figure6", "table2"]


def test_unknown_steps_are_refused(place):
    done = start(place, STEPS="table1 table9")
    assert done.returncode == 2 and "table9 is not one of table1 table2" in done.stderr and ran(place) == []


def test_every_step_has_a_script():
    line = 'source <(sed -n "/^steps()/,/^}/p" scripts/reproduce/all.sh); name=x; steps'
    listed = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {row.split()[0] for row in listed.splitlines()}
    scripts = {path.stem for path in (ROOT / "scripts/reproduce").glob("*.sh")}
    assert len(names) == 21 and names <= scripts
    assert scripts - names == {*SOURCES, "all", "tiny", "figure9", "figure10"}


@pytest.mark.slow
def test_tiny_llava_interrupted_and_gone_on(tmp_path):
    settings = {"STEPS": "table2 figure7", "QUESTIONS": "12", "LIMIT": "2", "OUT": tmp_path / "out"}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **{key: str(value) for key, value in settings.items()},
    }
    line = ["bash", str(ROOT / "scripts/reproduce/all.sh")]
    run = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = tmp_path / "out/results/tiny-model/gqa/none/record.json"
    until = time.monotonic() + 300
    while not wanted.exists() and time.monotonic() < until:
        time.sleep(0.2)
    run.terminate()
    assert run.wait(timeout=60) == 130 and wanted.exists()
    assert not (tmp_path / "out/report.html").exists()
    done = bash("reproduce/all.sh", **settings)
    assert done.stdout.count("  done in") == 2
    page = (tmp_path / "out/report.html").read_text()
    assert all(f'id="{name}"' in page for name in ("table2", "examples")) and str(TINY) not in page
    before = state(tmp_path / "out")
    done = bash("reproduce/all.sh", **settings)
    assert done.stdout.count("  kept\n") == 2 and state(tmp_path / "out") == before
