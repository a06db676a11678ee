"""What a run's settings are, and digests of the weights that answers come from."""

from __future__ import annotations

import argparse
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dyvte import ExitGates
from dyvte.engine.answers_file import AnswersFile, describe_run
from dyvte.engine.marker import Run, read_run
from dyvte.engine.model import ModelOptions, resolved_dtype
from dyvte.engine.openers import open_model
from dyvte.engine.questions import item_of
from dyvte.gates.files import gates_digest
from dyvte.provenance import checkpoint_digest, checkpoint_files, sha256_of

GATES = "gates.safetensors"
SHAPES = ((1, (8, 64)), (2, (2, 8)))


def test_a_run_resumes_in_its_own_precision_only(monkeypatch, tmp_path, checkpoint):
    """A run on a GPU, in float16, is not resumed on a CPU in float32; where it is written does not matter."""
    (tmp_path / "q").touch()

    def settings(**flags):
        given = {"model_path": str(checkpoint), "model_base": None, "question_file": str(tmp_path / "q")}
        return describe_run(argparse.Namespace(**{**given, "gates": None, "answers_file": "a", **flags}))

    on_cpu = settings(device="cpu", dtype="auto")
    assert on_cpu == settings(device="cuda", dtype="auto"), "there is no GPU here"
    assert on_cpu == settings(device="cpu", dtype="float32", answers_file="b")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settings(device="cuda", dtype="auto") != on_cpu
    assert settings(device="cuda", dtype="auto") == settings(device="cuda:1", dtype="float16")
    assert settings(device="cuda", dtype="float32") == on_cpu
    assert (resolved_dtype("cuda", "auto"), resolved_dtype("cpu", "auto")) == ("float16", "float32")


@pytest.mark.parametrize("step", ["os.replace", "pathlib.Path.rename", "pathlib.Path.open"])
def test_a_kill_while_answers_are_moved_aside_loses_none(tmp_path, monkeypatch, step):
    """Whichever step it hits, and marker and answers belong together afterwards."""
    path, items = tmp_path / "a.jsonl", [item_of({"question_id": 1, "text": "What?"})]
    answer = {"question_id": 1, "prompt": "What?", "model_id": "m", "text": "red"}
    with AnswersFile(str(path), {"k": "1"}, "m", items) as file:
        file.write([answer])
    with (
        monkeypatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
        AnswersFile(str(path), {"k": "2"}, "m", items) as file,
    ):
        patch.setattr(step, killed)
        file.write([answer])
    (held,) = [file for file in tmp_path.glob("a*.jsonl") if file.read_bytes()]
    assert json.loads(held.read_text()) == answer
    if held == path:
        assert read_run(path).settings == {"k": "1"}
    with AnswersFile(str(path), {"k": "2"}, "m", items) as file:
        assert file.kept == 0
        file.write([{**answer, "text": "blue"}])
    assert {json.loads(file.read_text())["text"] for file in tmp_path.glob("a*.jsonl")} == {"red", "blue"}
    assert read_run(path) == Run({"k": "2"}, 1)


def killed(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.fixture
def copied(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    return tmp_path / "model"


def test_a_digest_is_of_the_files_that_are_loaded(copied):
    digest = checkpoint_digest(str(copied), "vision_tower")
    (copied / "pytorch_model.bin").write_bytes(b"not loaded beside safetensors")
    (copied / "checkpoint-5").mkdir()
    shutil.copy(copied / "model.safetensors", copied / "checkpoint-5")
    ExitGates(3, 32, 8).save_pretrained(copied)
    assert checkpoint_digest(str(copied), "vision_tower") == digest
    for name in ("model.safetensors", "config.json", "vision_tower/model.safetensors"):
        kept = (copied / name).read_bytes()
        (copied / name).write_bytes(kept + b" ")
        assert checkpoint_digest(str(copied), "vision_tower") != digest, name
        (copied / name).write_bytes(kept)
    assert checkpoint_digest(str(copied), str(copied / "vision_tower")) == digest
    tower = shutil.move(copied / "vision_tower", copied.parent / "tower")
    assert checkpoint_digest(str(copied), str(tower)) == digest != checkpoint_digest(str(copied))


def test_shards_count_by_their_index_and_additions_with_their_base(copied, base):
    (copied / "model.safetensors").rename(copied / "model-1.safetensors")
    (copied / "unused-2.safetensors").write_bytes(b"")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    names = {path.name for path in checkpoint_files(copied)}
    assert names == {"config.json", "model-1.safetensors"}
    (copied / "mm_projector.bin").write_bytes(b"projector")
    with_base = checkpoint_digest(str(copied), None, str(base))
    (copied / "mm_projector.bin").write_bytes(b"another")
    assert checkpoint_digest(str(copied), None, str(base)) != with_base
    assert checkpoint_digest(str(copied)) not in (with_base, checkpoint_digest(str(base)))


def test_answers_know_the_weights_they_come_from(checkpoint, tmp_path):
    ExitGates(3, 32, width=8).save_pretrained(tmp_path)
    chat = open_model(ModelOptions(str(checkpoint), template="v1", gates=str(tmp_path), device="cpu"))
    assert chat.handle.run.model_sha256 == checkpoint_digest(str(checkpoint), "vision_tower")
    assert chat.handle.run.gates_sha256 == sha256_of([tmp_path / GATES], tmp_path)[GATES]
    merged = shutil.copytree(checkpoint, tmp_path / "merged")
    weights = load_file(merged / "model.safetensors")
    gates = {
        f"model.visual_gates_router.{n}.w{i}.weight": torch.randn(s) for n in range(3) for i, s in SHAPES
    }
    digests = set()
    for scale in (1, 2, 2):
        scaled = {name: scale * value for name, value in gates.items()}
        save_file({**weights, **scaled}, merged / "model.safetensors", metadata={"format": "pt"})
        digests.add(gates_digest(merged))
    assert len(digests) == 2, "gates inside a checkpoint have a digest of their own"
    plain = open_model(ModelOptions(str(checkpoint), template="v1", device="cpu"))
    assert plain.handle.run.gates_sha256 is None
