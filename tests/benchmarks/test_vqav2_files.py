"""VQAv2: the files that its converters and its script write."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dyvte.benchmarks import vqav2

ROOT = Path(__file__).parents[2]


def line(name, text):
    return {"question_id": name, "text": text}


@pytest.fixture
def script(monkeypatch):
    """Run a script of the repository with these arguments."""
    monkeypatch.syspath_prepend(ROOT / "scripts")

    def run(name, *arguments):
        importlib.import_module(name).main([str(argument) for argument in arguments])

    return run


def read_upload(path, frame):
    """A strict reader of EvalAI's format: one object for each question of the frame, and nothing else in it."""
    entries = json.loads(path.read_text())
    assert [entry["question_id"] for entry in entries] == frame
    assert all(set(entry) == {"question_id", "answer"} for entry in entries)
    assert all(type(entry["question_id"]) is int and type(entry["answer"]) is str for entry in entries)
    return [entry["answer"] for entry in entries]


def test_upload_file(tmp_path, files, script, capsys):
    frame = [5, 3, 9, 4]
    files.lines(tmp_path / vqav2.TEST_QUESTIONS, [{"question_id": name} for name in frame])
    source = tmp_path / "answers/split/model/merge.jsonl"
    rows = [line(9, "x"), line(3, "The Men's hats, two"), line(9, "No."), line(8, "y"), line(4, None)]
    files.lines(source, rows)
    source.write_text(source.read_text() + '{"question_id": 5, "te\n')
    script("convert_vqav2_for_submission", "--dir", tmp_path, "--ckpt", "model", "--split", "split")
    assert capsys.readouterr().out == "total results: 4, total split: 4, error_line: 1\n"
    upload = read_upload(tmp_path / "answers_upload/split/model.json", frame)
    assert upload == ["", "men 's hats 2", "no", ""]


def test_upload_of_another_split_is_refused(tmp_path, files, script):
    files.lines(tmp_path / vqav2.TEST_QUESTIONS, [{"question_id": 1}])
    files.lines(tmp_path / "answers/s/m/merge.jsonl", [line("1", "x")])
    with pytest.raises(SystemExit, match=": No answer in"):
        script("convert_vqav2_for_submission", "--dir", tmp_path, "--ckpt", "m", "--split", "s")
    assert not (tmp_path / "answers_upload").exists()


@pytest.mark.parametrize(("split", "images"), [("val2014", "val2014"), ("test-dev2015", "test2015")])
def test_question_file(tmp_path, files, script, split, images):
    asked = [{"image_id": 42, "question": "What is it?", "question_id": 42000}]
    source = files.json(tmp_path / "q.json", {"data_subtype": split, "questions": asked})
    script("convert_vqav2_questions", "--src", source, "--dst", tmp_path / "out/q.jsonl")
    assert json.loads((tmp_path / "out/q.jsonl").read_text()) == {
        "question_id": 42000,
        "image": f"COCO_{images}_000000000042.jpg",
        "text": "What is it?\nAnswer the question using a single word or phrase.",
        "category": "default",
    }


# Stands for `python`: answers each question with its number, passes over check and record, runs all else.
STUB = f"""#!{sys.executable}
import json, os, sys
if sys.argv[2] == "llava.eval.model_vqa_loader":
    flags = dict(zip(sys.argv[3::2], sys.argv[4::2]))
    images = os.path.basename(flags["--image-folder"])
    with open(flags["--answers-file"], "w") as out:
        for line in open(flags["--question-file"]):
            name = json.loads(line)["question_id"]
            out.write(json.dumps(dict(question_id=name, text=f"The {{name}} in {{images}}")) + "\\n")
    from tests.fixtures.answering import mark
    mark(flags["--answers-file"])
elif sys.argv[1] == "-m" and sys.argv[2] != "dyvte.engine.shards":
    open(os.environ["CALLS"], "a").write(" ".join(sys.argv[2:4]) + "\\n")
else:
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
"""


@pytest.fixture
def run_script(tmp_path, files):
    """Run vqav2.sh with the stub in a folder with one question of each split."""
    data, stub = tmp_path / "data", tmp_path / "python"
    for place, name in enumerate((vqav2.VAL_QUESTIONS, vqav2.DEV_QUESTIONS, vqav2.TEST_QUESTIONS)):
        files.lines(data / name, [{"question_id": place + 1 if place < 2 else 2}])
    files.json(data / vqav2.ANNOTATIONS, {})
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(**settings):
        environment = {
            **os.environ,
            "PYTHON": stub,
            "CALLS": tmp_path / "calls",
            "DATA": data,
            "MODEL": "a/m",
        }
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        command = ["bash", str(ROOT / "scripts/v1_5/eval/vqav2.sh")]
        environment = {key: str(value) for key, value in {**environment, **settings}.items()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done, (tmp_path / "calls").read_text().splitlines()

    return run, data


def test_script_writes_the_upload_file_of_test_dev(run_script):
    run, data = run_script
    done, calls = run()
    assert done.returncode == 0, done.stderr
    upload = data / "answers_upload/llava_vqav2_mscoco_test-dev2015/m.json"
    assert read_upload(upload, [2]) == ["2 in test2015"]
    assert str(upload) in done.stdout
    assert calls == ["dyvte.methods check", "dyvte.benchmarks check"]


def test_script_scores_the_validation_split(run_script):
    run, data = run_script
    done, calls = run(SPLIT="llava_vqav2_mscoco_val2014")
    assert done.returncode == 0, done.stderr
    merged = data / "answers/llava_vqav2_mscoco_val2014/m/merge.jsonl"
    assert json.loads(merged.read_text())["text"] == "The 1 in val2014"
    assert calls == ["dyvte.methods check", "dyvte.benchmarks check", "dyvte.report.record vqav2"]
    (data / vqav2.ANNOTATIONS).unlink()
    done, _ = run(SPLIT="llava_vqav2_mscoco_val2014")
    assert done.returncode == 1 and f"{vqav2.ANNOTATIONS} is missing" in done.stderr
