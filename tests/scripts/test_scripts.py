"""The shell scripts: what they run, what they keep, and how they fail. A stub stands for the model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.fixtures.hub import Repository

ROOT = Path(__file__).parents[2]
EVAL = ROOT / "scripts/v1_5/eval"

# Stands for `python`: answers every question with its number, fails the shards named in FAIL, and notes what
# it was asked. Files are really checked; scoring is really done only where SCORE is set, because it takes seconds.
STUB = f"""#!{sys.executable}
import json, os, sys
arguments = sys.argv[1:]
if arguments[:2] != ["-m", "llava.eval.model_vqa_loader"]:
    real = {{"dyvte.benchmarks", "dyvte.methods", "dyvte.engine.shards", "dyvte.gates.hub"}}
    if not os.environ.get("SCORE") and not real & set(arguments):
        sys.exit()
    os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])
flags = dict(zip(arguments[2::2], arguments[3::2]))
index, chunks = int(flags["--chunk-idx"]), int(flags["--num-chunks"])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps({{**flags, "gpu": os.environ["CUDA_VISIBLE_DEVICES"]}}) + "\\n")
rows = [json.loads(line) for line in open(flags["--question-file"])]
rows = rows[index * len(rows) // chunks : (index + 1) * len(rows) // chunks]
meta = dict(exit_layer=1, tokens_per_layer=[9, 9, 4], tflops=1, decoder_tflops=1, seconds=1, prompt_tokens=9,
            visual_tokens=5)
with open(flags["--answers-file"], "w") as out:
    for row in rows:
        out.write(json.dumps(dict(question_id=row["question_id"], text=row["question_id"], metadata=meta)) +
        "\\n")
from tests.fixtures.answering import mark
settings = {{name: value for name, value in flags.items() if name != "--answers-file"}}
settings["chunk_idx"] = settings.pop("--chunk-idx")
mark(flags["--answers-file"], settings)
sys.exit(str(index) in os.environ.get("FAIL", "").split(","))
"""


@pytest.fixture
def gqa(tmp_path, files):
    """Run gqa.sh with the stub on five questions; settings are environment variables."""
    data = tmp_path / "gqa data"
    names = [str(number) for number in range(5)]
    files.lines(data / "llava_gqa_testdev_balanced.jsonl", [{"question_id": name} for name in names])
    files.json(data / "data/testdev_balanced_questions.json", {name: {"answer": name} for name in names})
    (data / "data/images").mkdir()
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(*arguments, **settings):
        calls.write_text("")
        plain = {
            **os.environ,
            "PYTHON": stub,
            "CALLS": calls,
            "DATA": data,
            "OUT": tmp_path / "out",
            "MODEL": "a/model",
        }
        plain.pop("CUDA_VISIBLE_DEVICES", None)
        environment = {key: str(value) for key, value in {**plain, **settings}.items()}
        command = ["bash", str(EVAL / "gqa.sh"), *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        done.calls = sorted(json.loads(line)["--chunk-idx"] for line in calls.read_text().splitlines())
        done.flags = [json.loads(line) for line in calls.read_text().splitlines()]
        return done

    run.out, run.data = tmp_path / "out", data
    return run


def test_one_shard_to_record(gqa):
    done = gqa(
        "--dtype", "bfloat16", METHOD="dyvte", GATES=gqa.data, THRESHOLD="0.7", BATCH_SIZE="8", SCORE=1
    )
    assert done.returncode == 0, done.stderr
    flags = done.flags[0]
    assert (flags["--method"], flags["--gates"], flags["--threshold"]) == ("dyvte", str(gqa.data), "0.7")
    assert (flags["--batch-size"], flags["--dtype"], flags["--temperature"]) == ("8", "bfloat16", "0")
    record = json.loads((gqa.out / "record.json").read_text())
    assert (
        record["score"] == 100.0 and record["num_samples"] == 5 and record["settings"]["threshold"] == "0.7"
    )
    predictions = json.loads((gqa.out / "testdev_balanced_predictions.json").read_text())
    assert len(predictions) == 5


def test_shards_over_gpus_merge_in_order(gqa):
    done = gqa(CUDA_VISIBLE_DEVICES="2,5", CHUNKS="4")
    assert done.returncode == 0, done.stderr
    assert {(flags["--chunk-idx"], flags["gpu"]) for flags in done.flags} == {
        ("0", "2"),
        ("1", "5"),
        ("2", "2"),
        ("3", "5"),
    }
    merged = [json.loads(line)["question_id"] for line in (gqa.out / "merge.jsonl").read_text().splitlines()]
    assert merged == ["0", "1", "2", "3", "4"]


def test_a_failed_shard_fails_and_touches_no_older_result(gqa):
    assert gqa(CHUNKS="3").returncode == 0
    (gqa.out / "record.json").write_text("older")
    merged = (gqa.out / "merge.jsonl").read_text()
    done = gqa(CHUNKS="3", FAIL="1", THRESHOLD="0.7", METHOD="dyvte")
    assert done.returncode != 0 and "shard 1 of 3 failed" in done.stderr
    assert (gqa.out / "merge.jsonl").read_text() == merged
    assert (gqa.out / "record.json").read_text() == "older"
    assert gqa(CHUNKS="3").returncode == 0
    assert (gqa.out / "record.json").read_text() == "older", "it is of the same run"
    done = gqa(CHUNKS="3", THRESHOLD="0.7", METHOD="dyvte")
    assert done.returncode == 0 and "is of another run; it is now" in done.stderr
    assert not (gqa.out / "record.json").exists()
    (kept,) = gqa.out.glob("record.*-*.json")
    assert kept.read_text() == "older" and len(list(gqa.out.glob("merge.*-*.jsonl"))) == 1


def test_shards_on_many_machines(gqa):
    """Each machine answers some shards; the last step merges them, and says which are missing or of another run."""
    done = gqa(CHUNKS="4", SHARDS="0-1")
    assert done.returncode == 0 and done.calls == ["0", "1"] and "SHARDS=none merges" in done.stdout
    assert not (gqa.out / "merge.jsonl").exists()
    done = gqa(CHUNKS="4", SHARDS="none")
    assert done.returncode != 0 and "shard 2 is missing; shard 3 is missing; start those" in done.stderr
    assert gqa(CHUNKS="4", SHARDS="3", BATCH_SIZE="7").returncode == 0
    done = gqa(CHUNKS="4", SHARDS="2")
    assert done.calls == ["2"]
    done = gqa(CHUNKS="4", SHARDS="none")
    assert done.returncode != 0 and "shard 3 is of another run (--batch-size differ)" in done.stderr
    gqa(CHUNKS="4", SHARDS="3")
    cut = gqa.out / "4_2.jsonl"
    whole = cut.read_text()
    cut.write_text(whole[:-5])
    assert "shard 2 holds 0 of 1 answers" in gqa(CHUNKS="4", SHARDS="none").stderr
    cut.write_text(whole)
    assert gqa(CHUNKS="4", SHARDS="none").returncode == 0
    merged = [json.loads(line)["question_id"] for line in (gqa.out / "merge.jsonl").read_text().splitlines()]
    assert merged == ["0", "1", "2", "3", "4"]
    assert "not among the 4 shards" in gqa(CHUNKS="4", SHARDS="2-4").stderr


def test_shards_by_rank(gqa):
    """As docs/evaluation.md has it for torchrun and accelerate: each process answers the shard of its rank."""
    run = {"CHUNKS": "2"}
    for rank in ("1", "0"):
        assert gqa(**run, SHARDS=rank, CUDA_VISIBLE_DEVICES="4,5").flags[0]["gpu"] == ("4", "5")[int(rank)]
    done = gqa(**run, SHARDS="none")
    assert done.returncode == 0 and done.calls == []
    assert len((gqa.out / "merge.jsonl").read_text().splitlines()) == 5


def test_two_copies_on_one_folder(gqa):
    """The second says so in one line and touches nothing."""
    gqa.out.mkdir()
    with FileLock(gqa.out / ".lock"):
        done = gqa(CHUNKS="2")
    assert done.returncode != 0 and done.calls == []
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith(f"another run is at work in {gqa.out}; wait for it, or stop it")
    )


def test_blanks_in_every_path(gqa, tmp_path):
    gates = tmp_path / "my gates"
    gates.mkdir()
    (gates / "gates.json").write_text('{\n "threshold": 0.25\n}')
    out = tmp_path / "out  folder"
    done = gqa(METHOD="dyvte", GATES=gates, MODEL="my models/a model", OUT=out, CHUNKS="2", CONV_MODE="a b")
    assert done.returncode == 0, done.stderr
    flags = done.flags[0]
    assert (flags["--gates"], flags["--model-path"]) == (str(gates), "my models/a model")
    assert (flags["--threshold"], flags["--conv-mode"]) == ("0.25", "a b")
    assert len((out / "merge.jsonl").read_text().splitlines()) == 5


def test_gates_of_the_hub_are_found_once_for_all_shards(gqa, hub, tmp_path):
    repository = hub.repositories["lab/gates"] = Repository(private=False)
    files = {"gates.json": b'{\n "threshold": 0.25\n}', "gates.safetensors": b"weights"}
    commit = repository.commit("v1", files)
    environment = {**hub.environment(tmp_path / "home", token=None), "HF_HUB_OFFLINE": "0"}
    done = gqa(**environment, METHOD="dyvte", GATES="lab/gates@v1", CHUNKS="2")
    assert done.returncode == 0, done.stderr
    places = {(flags["--gates"], flags["--threshold"]) for flags in done.flags}
    ((folder, threshold),) = places
    assert folder.endswith(f"models--lab--gates/snapshots/{commit}") and threshold == "0.25"
    assert sum("/api/models/lab/gates/revision/v1" in request for request in hub.requests) == 1
    done = gqa(**environment, METHOD="dyvte", GATES="lab/other", CHUNKS="2")
    assert done.returncode != 0 and done.calls == []
    assert (
        "there is no repository lab/other" in done.stderr and "no GATES=lab/other (see above)" in done.stderr
    )
    done = gqa(METHOD="dyvte", GATES="no/such/folder", CHUNKS="2")
    assert done.returncode != 0 and done.calls == [] and "GATES=no/such/folder is no folder" in done.stderr


def test_shards_of_another_split_are_not_merged(gqa):
    assert gqa(CHUNKS="5").returncode == 0 and gqa(CHUNKS="2").returncode == 0
    assert len((gqa.out / "merge.jsonl").read_text().splitlines()) == 5


def test_fixed_exit(gqa):
    done = gqa(METHOD="fixed", EXIT_LAYER="3")
    assert (done.flags[0]["--method"], done.flags[0]["--exit-layer"]) == ("fixed", "3")


def test_default_answers_folder_is_llavas(gqa):
    done = gqa(OUT="", MODEL="some/llava-v1.5-7b/")
    assert done.returncode == 0, done.stderr
    assert (gqa.data / "answers/llava_gqa_testdev_balanced/llava-v1.5-7b/1_0.jsonl").is_file()
    gqa(OUT="", MODEL="some/llava-v1.5-7b", METHOD="dyvte")
    assert (gqa.data / "answers/llava_gqa_testdev_balanced/llava-v1.5-7b-dyvte/merge.jsonl").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"METHOD": "magic"}, "'magic' is not one of none, dyvte"),
        ({"METHOD": "fixed"}, "needs EXIT_LAYER"),
        ({"METHOD": "dyvte", "GATES": "/nowhere"}, "GATES=/nowhere is no folder"),
        ({"DATA": "/nowhere"}, "files in DATA=/nowhere are not ready"),
    ],
)
def test_wrong_settings(gqa, settings, message):
    done = gqa(**settings)
    assert done.returncode == 1 and message in done.stderr and done.calls == []


@pytest.fixture
def bare_path(tmp_path):
    """A PATH with the shell's tools and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum", "df", "awk", "mkdir", "grep", "chmod"):
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


def setup(bare_path, tmp_path, **settings):
    environment = {"PATH": str(bare_path), "VENV": str(tmp_path / "venv"), **settings}
    bash = str(bare_path / "bash")
    return subprocess.run(
        [bash, str(ROOT / "scripts/setup.sh")], env=environment, capture_output=True, text=True
    )


def test_setup_without_python(bare_path, tmp_path):
    done = setup(bare_path, tmp_path)
    assert done.returncode == 1 and "no Python 3.10 or newer" in done.stderr and "apt install" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_setup_with_old_python(bare_path, tmp_path):
    (bare_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (bare_path / "python3").chmod(0o755)
    assert "no Python 3.10 or newer" in setup(bare_path, tmp_path).stderr
    assert "PYTHON=python3 is not a working" in setup(bare_path, tmp_path, PYTHON="python3").stderr


def test_setup_without_venv_module_or_disk(bare_path, tmp_path):
    (bare_path / "python3").write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexit 0\n')
    (bare_path / "python3").chmod(0o755)
    assert "no venv module" in setup(bare_path, tmp_path, MIN_DISK_GB="0").stderr
    done = setup(bare_path, tmp_path, MIN_DISK_GB="99999999")
    assert done.returncode == 1 and "MB are free" in done.stderr
