"""python -m dyvte.benchmarks: what it lists, finds missing, runs, and prints of a score."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dyvte.benchmarks import BENCHMARKS
from dyvte.benchmarks.__main__ import main
from dyvte.benchmarks.benchmark import Benchmark, File, QuestionScore, Remark, Score, describe
from dyvte.benchmarks.check import check, ready

ROOT = Path(__file__).parents[2]
NINE = ["vqav2", "gqa", "sqa", "textvqa", "pope", "mme", "mmbench", "seed", "mmvet"]


def test_all_nine_are_there_each_with_its_script(capsys):
    assert list(BENCHMARKS) == NINE
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == NINE
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and (ROOT / f"scripts/v1_5/eval/{name}.sh").is_file()
        assert benchmark.folder in lines[1 + NINE.index(name)]
        assert all(file.source for file in benchmark.files)


def refuse(data_dir):
    if (data_dir / "bad").exists():
        raise ValueError("labels.json, line 7: no such question")


@pytest.fixture
def benchmark():
    return Benchmark(
        name="toy",
        title="Toy",
        metric="accuracy",
        folder="toy",
        question_file="questions.jsonl",
        image_folder="images",
        files=(
            File("images", "a web site"),
            File("part*.json", "a shop"),
            File("extra.json", "a friend", "luxury"),
        ),
        ground_truth=lambda data_dir: [],
        score=lambda data_dir, answers_file, variant="": Score("toy", "accuracy", 1.0, {}, []),
        variants=("strict", "kind"),
        check_questions=refuse,
    )


def test_check_names_what_is_missing_and_where_to_get_it(benchmark, tmp_path):
    findings = check(benchmark, tmp_path)
    assert [finding.state for finding in findings] == ["missing", "missing", "missing", "optional"]
    assert (
        "eval.zip" in findings[0].detail
        and "a web site" in findings[1].detail
        and "luxury" in findings[3].detail
    )
    (tmp_path / "questions.jsonl").touch()
    (tmp_path / "images").mkdir()
    assert not ready(check(benchmark, tmp_path))
    (tmp_path / "part1.json").touch()
    assert ready(check(benchmark, tmp_path))
    (tmp_path / "bad").touch()
    wrong = check(benchmark, tmp_path)[-1]
    assert (wrong.state, wrong.detail) == ("wrong", "labels.json, line 7: no such question")
    assert not ready([wrong])


def test_variants(benchmark):
    assert benchmark.variant() == "strict" and benchmark.variant("kind") == "kind"
    with pytest.raises(ValueError, match="Toy has no variant 'x': use one of strict, kind"):
        benchmark.variant("x")
    with pytest.raises(ValueError, match="it has none"):
        BENCHMARKS["gqa"].variant("x")


def test_check_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["check", "gqa", "--data-root", str(tmp_path)])
    out = capsys.readouterr().out
    assert stopped.value.code == 1 and "GQA: not ready" in out and str(tmp_path / "gqa/data/images") in out
    with pytest.raises(SystemExit, match="name that one"):
        main(["check", "gqa", "pope", "--data-dir", str(tmp_path)])


def test_remarks_are_counted_and_the_first_ones_shown():
    remarks = [Remark(number, "no answer: counted as wrong", skipped=number < 3) for number in range(12)]
    score = Score("toy", "accuracy", 50.0, {}, [QuestionScore(1, 1.0)], "Official: 50", "strict", remarks)
    text = describe("Toy", score)
    assert text.startswith("Official: 50\nToy: 50.00 (accuracy, variant strict; 1 questions)")
    assert (
        "12 remarks, 3 of them" in text
        and "  9: no answer" in text
        and "10: no" not in text
        and "2 more" in text
    )


def test_score_command_writes_everything(tmp_path, files, capsys):
    files.json(
        tmp_path / "data/testdev_balanced_questions.json", {"1": {"answer": "cat"}, "2": {"answer": "dog"}}
    )
    answers = files.lines(
        tmp_path / "a.jsonl", [{"question_id": "1", "text": "Cat."}, {"question_id": "9", "text": ""}]
    )
    main(
        [
            "score",
            "gqa",
            "--data-dir",
            str(tmp_path),
            "--answers",
            str(answers),
            "--json",
            str(tmp_path / "o/s.json"),
        ]
    )
    content = json.loads((tmp_path / "o/s.json").read_text())
    assert content["value"] == content["parts"]["accuracy"] == 50.0
    assert content["skipped"] == 1 and {str(remark["question_id"]) for remark in content["remarks"]} == {
        "2",
        "9",
    }
    assert "GQA: 50.00 (accuracy" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="dyvte.benchmarks: .*nowhere.jsonl"):
        main(["score", "gqa", "--data-dir", str(tmp_path), "--answers", str(tmp_path / "nowhere.jsonl")])


def test_scoring_does_not_wait_for_torch(tmp_path):
    program = "import sys, dyvte.benchmarks.__main__ as b; b.main(['list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0


def test_run_says_that_it_needs_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr("dyvte.benchmarks.__main__.SCRIPTS", tmp_path)
    with pytest.raises(SystemExit, match="needs a checkout of the repository.*pope.sh does not exist"):
        main(["run", "pope", "--model-path", "m"])


def test_run_becomes_the_script(tmp_path):
    """A bash that prints what it was given stands for the script."""
    fake = tmp_path / "bash"
    fake.write_text('#!/bin/sh\necho "$1|$2|$MODEL|$METHOD|$GATES|$DATA|$BATCH_SIZE|${CHUNKS-unset}"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("CHUNKS", None)
    command = [
        sys.executable,
        "-m",
        "dyvte.benchmarks",
        "run",
        "pope",
        "--model-path",
        "m",
        "--method",
        "dyvte",
    ]
    command += ["--gates", "g", "--data-dir", "d", "--batch-size", "4", "--", "--dtype"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == f"{ROOT}/scripts/v1_5/eval/pope.sh|--dtype|m|dyvte|g|d|4|unset", done.stderr
