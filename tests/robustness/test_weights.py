"""Broken files of weights: what is loaded is finite and whole, or the file is told; nothing in them runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dyvte import ExitGates
from dyvte.weights import load_tensors
from llava.model.builder import load_pretrained_model
from tests.robustness.outcome import FEW, MANY, right_or_told

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4734384\n"
FEW_MODELS, MANY_MODELS = settings(FEW, max_examples=15), settings(MANY, max_examples=1500)
FEW, MANY = settings(FEW, max_examples=60), settings(MANY, max_examples=6000)

changes = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=3)
cuts = st.none() | st.floats(0, 1)
head = st.booleans()
"""Whether bytes are changed near the beginning, where a file says what it holds."""
TYPES = (torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float64, torch.complex64)


class Evil:
    """A pickle that leaves a mark where it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def broken(path: Path, edits, cut, near_head: bool) -> None:
    content = bytearray(path.read_bytes())
    for at, value in edits:
        content[at % (min(len(content), 2000) if near_head else len(content))] = value
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])


@pytest.fixture(scope="module")
def gates_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    ExitGates(3, 32, width=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, gates_folder, checkpoint, weights):
    """A function: a new copy of the gates, of the model, or of the model in shards of ``.bin``."""

    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("work") / "llava-tiny"
        shutil.copytree(gates_folder if kind == "gates" else checkpoint, folder)
        if kind == "bin":
            (folder / "model.safetensors").unlink()
            torch.save(weights, folder / "pytorch_model.bin")
        return folder

    return make


def load(folder: Path) -> torch.nn.Module:
    return load_pretrained_model(str(folder), None, folder.name, device="cpu")[1]


def all_finite(module: torch.nn.Module) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in module.state_dict().values())


def check_gates(fresh: Callable[[str], Path], edits, cut, near_head) -> None:
    folder = fresh("gates")
    broken(folder / "gates.safetensors", edits, cut, near_head)
    with right_or_told("gates.safetensors", "gates.json", str(folder)):
        assert all_finite(ExitGates.from_pretrained(folder))


@FEW
@given(changes, cuts, head)
def test_gates_with_changed_bytes(fresh, edits, cut, near_head):
    check_gates(fresh, edits, cut, near_head)


@pytest.mark.slow
@MANY
@given(changes, cuts, head)
def test_gates_with_changed_bytes_by_the_thousand(fresh, edits, cut, near_head):
    check_gates(fresh, edits, cut, near_head)


def check_model(fresh: Callable[[str], Path], kind: str, edits, cut, near_head) -> None:
    folder = fresh(kind)
    names = {
        "whole": "model.safetensors",
        "bin": "pytorch_model.bin",
        "tower": "vision_tower/model.safetensors",
    }
    broken(folder / names[kind], edits, cut, near_head)
    with right_or_told(str(folder)):
        assert all_finite(load(folder))


@FEW_MODELS
@given(st.sampled_from(("whole", "bin", "tower")), changes, cuts, head)
def test_models_with_changed_bytes(fresh, kind, edits, cut, near_head):
    check_model(fresh, kind, edits, cut, near_head)


@pytest.mark.slow
@MANY_MODELS
@given(st.sampled_from(("whole", "bin", "tower")), changes, cuts, head)
def test_models_with_changed_bytes_by_the_thousand(fresh, kind, edits, cut, near_head):
    check_model(fresh, kind, edits, cut, near_head)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_weights_of_other_types(dtype, fresh):
    """Types that cannot be computed with are refused; float64 becomes the model's type, and in gates all or none."""
    folder = fresh("gates")
    tensors = load_file(folder / "gates.safetensors")
    save_file(
        {**tensors, "layers.1.w1.weight": tensors["layers.1.w1.weight"].to(dtype)},
        folder / "gates.safetensors",
    )
    with pytest.raises(ValueError, match=r"gates.* must all be float16, bfloat16, float32 or float64"):
        ExitGates.from_pretrained(folder)
    folder = fresh("whole")
    tensors = load_file(folder / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight"
    save_file(
        {**tensors, key: tensors[key].to(dtype)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    if dtype == torch.float64:
        assert load(folder).state_dict()[key].dtype == torch.float32
    else:
        with pytest.raises(ValueError, match=f"model.safetensors: {key} is stored in a type without a scale"):
            load(folder)


WEIGHTS_OF = {
    "gates": "gates.safetensors",
    "whole": "model.safetensors",
    "tower": "vision_tower/model.safetensors",
    "bin": "pytorch_model.bin",
}


@pytest.mark.parametrize("where", WEIGHTS_OF)
def test_values_that_are_not_finite(where, fresh):
    folder = fresh(where)
    path = folder / WEIGHTS_OF[where]
    tensors = load_tensors(path)
    key = sorted(tensors)[-1]
    tensors[key] = (
        tensors[key].clone().index_fill_(0, torch.tensor([0]), float("inf" if where == "bin" else "nan"))
    )
    torch.save(tensors, path) if where == "bin" else save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{path}: the weight {key} is not finite"):
        ExitGates.from_pretrained(folder) if where == "gates" else load(folder)
    with pytest.raises(ValueError, match=f"{path.name}: the weight {key} is not finite"):
        load_tensors(path)


def test_the_shard_of_a_value_that_is_not_finite_is_named(fresh, weights):
    folder, last = fresh("whole"), max(weights)
    (folder / "model.safetensors").unlink()
    rest = {key: value for key, value in weights.items() if key != last}
    shards = {"a.safetensors": rest, "b.safetensors": {last: torch.full_like(weights[last], torch.nan)}}
    weight_map = {}
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    with pytest.raises(ValueError, match=f"{folder / 'b.safetensors'}: the weight {last} is not finite"):
        load(folder)


@pytest.mark.parametrize("where", WEIGHTS_OF)
def test_pointers_of_git_lfs_are_named(where, fresh):
    folder = fresh(where)
    path = folder / WEIGHTS_OF[where]
    path.write_bytes(LFS)
    with pytest.raises(ValueError, match=f"{path.name} is a Git LFS pointer"):
        ExitGates.from_pretrained(folder) if where == "gates" else load(folder)


def test_pickles_do_not_run(fresh, tmp_path):
    folder, mark = fresh("bin"), tmp_path / "ran"
    path = folder / "pytorch_model.bin"
    for content in ({"model.norm.weight": Evil(mark)}, Evil(mark), [torch.zeros(2)], {"a": 5}):
        torch.save(content, path)
        with pytest.raises(
            ValueError, match="pytorch_model.bin .*more than tensors|holds something else than weights"
        ):
            load(folder)
    path.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(ValueError, match="pytorch_model.bin"):
        load(folder)
    assert not mark.exists()


def test_files_of_old_torch_are_read(fresh, weights):
    """Before torch 1.6 files were no zip archives; they load as the others do."""
    folder = fresh("bin")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    loaded = load(folder).state_dict()
    assert all(torch.equal(loaded[key], value.float()) for key, value in weights.items())
    assert set(load_tensors(folder / "pytorch_model.bin")) == set(weights)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/dev/zero", "sub/x.safetensors", "a\0b", "", "..", 5, ["a"], None]
)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_shards_outside_of_the_folder_are_not_read(name, index, fresh, weights):
    folder = fresh("whole")
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    weight_map = dict.fromkeys(weights, name)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with right_or_told(index):
        load(folder)
        pytest.fail("it was read")


def test_shards_that_are_no_files_are_not_read(fresh, weights):
    folder = fresh("whole")
    (folder / "model.safetensors").unlink()
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    index = {"weight_map": dict.fromkeys(weights, "zero.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        FileNotFoundError, match="has no zero.safetensors: model.safetensors.index.json names it"
    ):
        load(folder)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": None}, 5])
def test_indexes_of_other_shapes(index, fresh):
    folder = fresh("whole")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with right_or_told("model.safetensors.index.json", str(folder)):
        load(folder)
        pytest.fail("it was loaded")
