"""Answering, killed at random times or without space to write: no answer is lost, doubled or out of order, and the
end equals an uninterrupted run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dyvte.engine import shards
from llava.eval.model_vqa_loader import build_parser, eval_model
from tests.robustness.bad_disk import begin_after_fork, read_only, told

QUESTIONS = 12
ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(checkpoint, tmp_path):
    """A function: the flags of a run on twelve questions, of which each has an answer of its own."""
    (tmp_path / "images").mkdir()
    rows = []
    for index in range(QUESTIONS):
        Image.new("RGB", (20 + index, 30), (20 * index, 99, 200)).save(tmp_path / f"images/{index}.png")
        rows.append({"question_id": index, "image": f"{index}.png", "text": "What is it?" + " red" * index})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def flags(answers=None, tokens=3):
        given = {"model-path": checkpoint, "image-folder": tmp_path / "images", "temperature": 0}
        given |= {"question-file": tmp_path / "questions.jsonl", "conv-mode": "vicuna_v1"}
        given |= {"max_new_tokens": tokens, "device": "cpu"}
        given |= {"answers-file": tmp_path / answers} if answers else {}
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]

    return flags


def start(argv):
    """Answer in a process of its own, which needs not import anything."""
    process = os.fork()
    if process:
        return process
    try:
        begin_after_fork()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        eval_model(build_parser().parse_args(argv))
        os._exit(0)
    except BaseException:
        os._exit(1)


def whole_lines(folder, name="answers"):
    """The finished lines of all files of answers, by answer id, and those of the current one in order."""
    found = {}
    for file in sorted(folder.glob(f"{name}*.jsonl")):
        lines = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        answers = [json.loads(line) for line in lines]
        assert len({answer["question_id"] for answer in answers}) == len(answers), f"doubled in {file}"
        assert [answer["question_id"] for answer in answers] == list(range(len(answers))), f"order in {file}"
        found |= {answer["answer_id"]: (answer["question_id"], answer["text"]) for answer in answers}
    return found


@pytest.mark.parametrize(
    "kills", [4, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(36000)])]
)
@pytest.mark.parametrize("kind", ["one run", "two runs"])
def test_answering(command, tmp_path, kind, kills):
    """In "two runs", another method is asked in between: its answers displace the others, which stay on the disk."""
    chance = random.Random(kind)
    begun = time.monotonic()
    assert os.waitpid(start(command("expected.jsonl")), 0)[1] == 0
    lasts = time.monotonic() - begun
    seen = {}
    for kill in range(kills):
        tokens = 2 if kind == "two runs" and kill % 2 else 3
        process = start(command("answers.jsonl", tokens))
        time.sleep(chance.uniform(0, lasts))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        now = whole_lines(tmp_path)
        assert seen.items() <= now.items(), "an answer was lost"
        seen = now
    assert os.waitpid(start(command("answers.jsonl")), 0)[1] == 0
    assert seen.items() <= whole_lines(tmp_path).items()
    ends = [[], []]
    for end, name in zip(ends, ("expected", "answers"), strict=True):
        end += [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        end[:] = [(answer["question_id"], answer["text"]) for answer in end]
    assert ends[0] == ends[1]
    if kind != "two runs":
        assert not list(tmp_path.glob("answers.*-*.jsonl")), "its own answers were taken for another run's"


@pytest.mark.slow
def test_shards_of_a_killed_script(command, tmp_path):
    """The process that runs the shards is killed with them, and started again."""
    chance = random.Random(0)
    out = tmp_path / "answers"
    run = [sys.executable, "-m", "dyvte.engine.shards", str(out), "--chunks", "2", "--"]
    run += [sys.executable, "-m", "llava.eval.model_vqa_loader", *command()]
    for _ in range(8):
        process = subprocess.Popen(run, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, 12))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert (
            not (out / "merge.jsonl").exists()
            or len((out / "merge.jsonl").read_text().splitlines()) == QUESTIONS
        )
    subprocess.run(run, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    merged = [json.loads(line)["question_id"] for line in (out / "merge.jsonl").read_text().splitlines()]
    assert merged == list(range(QUESTIONS))


def answer(argv):
    eval_model(build_parser().parse_args(argv))


def texts_in(file):
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    return [(answer["question_id"], answer["text"]) for answer in answers]


def test_answering_on_a_full_disk(command, tmp_path):
    """It fails in the middle of an answer, again and again; what fits is kept, and the rest follows once it fits."""
    assert not told(lambda: answer(command("expected.jsonl")))
    size = (tmp_path / "expected.jsonl").stat().st_size
    seen = {}
    for largest in (size // 3, size // 3, size // 2):
        line = told(lambda: answer(command("answers.jsonl")), largest)
        assert f"earlier answers are kept, and a new run goes on: '{tmp_path / 'answers.jsonl'}'" in line
        now = whole_lines(tmp_path)
        assert seen.items() <= now.items() and len(now) > 1
        seen = now
    other = told(lambda: answer(command("answers.jsonl", tokens=2)), 100)  # too little for what it depends on
    assert str(tmp_path) in other
    assert seen.items() <= whole_lines(tmp_path).items()
    assert not told(lambda: answer(command("answers.jsonl")))
    assert seen.items() <= whole_lines(tmp_path).items()
    assert texts_in(tmp_path / "answers.jsonl") == texts_in(tmp_path / "expected.jsonl")
    assert not list(tmp_path.glob(".*.tmp"))


def test_answering_in_a_folder_that_is_read_only(command, tmp_path):
    done = tmp_path / "done"
    assert not told(lambda: answer(command("done/answers.jsonl")))
    before = {path: path.read_bytes() for path in done.iterdir()}
    read_only(done)
    for name, tokens in (("other.jsonl", 3), ("answers.jsonl", 2)):
        line = told(lambda: answer(command(f"done/{name}", tokens)))  # noqa: B023 - called at once
        assert "ermission denied" in line and str(done) in line
    assert {path: path.read_bytes() for path in done.iterdir()} == before


def test_script_on_a_full_disk_and_in_a_read_only_folder(command, tmp_path):
    out = tmp_path / "answers"
    run = [str(out), "--chunks", "1", "--", sys.executable, "-m", "llava.eval.model_vqa_loader", *command()]
    line = told(lambda: shards.main([str(read_only(tmp_path / "closed")), *run[1:]]))
    assert "ermission denied" in line and "closed" in line
    assert "shard 0 of 1 failed" in told(lambda: shards.main(run), 9000)
    held = whole_lines(out, "1_0")
    assert held and not (out / "merge.jsonl").exists()
    assert not told(lambda: shards.main(run))
    merged, size = texts_in(out / "merge.jsonl"), (out / "merge.jsonl").stat().st_size
    assert held.items() <= whole_lines(out, "1_0").items() and len(merged) == QUESTIONS
    (out / "merge.jsonl").unlink()
    line = told(lambda: shards.merge(out, 1), size - 1)
    assert str(out / "merge.jsonl") in line and not (out / "merge.jsonl").exists()
    shards.merge(out, 1)
    assert texts_in(out / "merge.jsonl") == merged
