"""A store of states: resumed and whole passes agree, foreign stores are refused, and gates fitted from it are those
that direct training gives.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dyvte import ExitGates
from dyvte.gates import fit as fit_gates
from dyvte.gates import store_states
from dyvte.gates.states import ATTENTION_STATES, STATES
from dyvte.gates.store import StateStore
from llava.train.train import train

SAMPLES, LAYERS, HIDDEN = 32, 4, 32


def store_flags(model, data, output, *more) -> list[str]:
    path, images = data
    return [
        "--model-path", str(model), "--data-path", str(path), "--image-folder", str(images),
        "--output", str(output), "--model-max-length", "256", "--batch-size", "3", "--shard-size", "7",
        "--device", "cpu", *more,
    ]  # fmt: skip


def training_flags(output, *more) -> list[str]:
    return [
        "--output_dir", str(output), "--num_train_epochs", "1", "--per_device_train_batch_size", "4",
        "--learning_rate", "1e-3", "--lr_scheduler_type", "cosine", "--warmup_ratio", "0.03", "--weight_decay", "0",
        "--logging_steps", "2", "--report_to", "none", "--save_strategy", "no", "--use_cpu", "True", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def stored(llava_model, instruction_data, tmp_path_factory) -> Path:
    """One undisturbed pass, with attention."""
    output = tmp_path_factory.mktemp("store") / "whole"
    store_states.main(store_flags(llava_model, instruction_data, output, "--attention"))
    return output


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")
    }


def test_what_a_store_holds(stored, instruction_data):
    records = json.loads(instruction_data[0].read_text())
    store = StateStore(stored, ["last_text", "mean_visual"])
    with_image = [number for number, record in enumerate(records) if "image" in record]
    assert len(store) == SAMPLES and store.index.tolist() == with_image
    (last_text, mean_visual, visual) = store.read("last_text", "mean_visual", "visual_tokens")
    assert last_text.shape == (len(with_image), LAYERS, HIDDEN) and set(visual.tolist()) == {4}
    entry = store[with_image[5]]
    assert torch.equal(entry["states"], torch.cat([last_text[5], mean_visual[5]], -1))
    assert entry["prompt_tokens"] == store.read("prompt_tokens")[0][5]
    assert store[0] == {}  # a sample of text only
    labels = store.labels(1.03)
    assert labels.shape == (len(with_image), LAYERS) and bool(labels[:, -1].all())
    assert int(store.labels(1e9).sum()) >= int(labels.sum()) > int(store.labels(1e-9).sum()) == 0


def test_interrupted_pass_goes_on_to_the_same_store(
    stored, llava_model, instruction_data, tmp_path, monkeypatch
):
    output = tmp_path / "store"
    flags = store_flags(llava_model, instruction_data, output, "--attention")
    replace, moved = os.replace, []

    def dies_at_the_third_shard(source, target):
        if str(target).endswith(".safetensors"):
            moved.append(target)
            if len(moved) == 3:
                raise RuntimeError("killed")
        replace(source, target)

    monkeypatch.setattr(os, "replace", dies_at_the_third_shard)
    with pytest.raises(RuntimeError, match="killed"):
        store_states.main(flags)
    monkeypatch.setattr(os, "replace", replace)
    shards = sorted(path.name for path in output.glob("*.safetensors"))
    assert shards == ["states-00000.safetensors", "states-00001.safetensors"]
    with pytest.raises(ValueError, match="lacks 3 of 5 shards"):
        StateStore(output)
    before = (output / shards[0]).stat().st_mtime_ns
    store_states.main(flags)
    assert (output / shards[0]).stat().st_mtime_ns == before  # kept, not written again
    assert content(output) == content(stored)


@pytest.mark.parametrize("other", ["model", "data", "image", "version", "states", "dtype", "shard_size"])
def test_store_of_other_things_is_refused(other, stored, llava_model, instruction_data, tmp_path, capsys):
    output = tmp_path / "store"
    shutil.copytree(stored, output)
    manifest = json.loads((output / "manifest.json").read_text())
    data, model, more = instruction_data, llava_model, ["--attention"]
    if other == "model":
        model = tmp_path / "llava-other"
        shutil.copytree(llava_model, model)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    elif other in ("data", "image"):
        shutil.copytree(instruction_data[1], tmp_path / "images")
        data = (tmp_path / "data.json", tmp_path / "images")
        shutil.copy(instruction_data[0], data[0])
        if other == "data":
            data[0].write_text(data[0].read_text().replace("red", "blue"))
        else:
            shutil.copy(tmp_path / "images" / "1.png", tmp_path / "images" / "30.png")
    else:
        more += {"version": ["--version", "vicuna_v1_nosys"], "dtype": ["--dtype", "bfloat16"],
                 "shard_size": ["--shard-size", "8"], "states": []}[other]  # fmt: skip
        if other == "states":
            more.remove("--attention")
    with pytest.raises(SystemExit) as refused:
        store_states.main(store_flags(model, data, output, *more))
    message = str(refused.value)
    name = "data" if other == "image" else other
    assert f"a store of another {name}" in message
    old = manifest["settings"]["version"] if other == "version" else manifest[name]
    has, wants = message.split("it has ")[1].split("; choose")[0].split(", this run has ")
    assert has == str(old) != wants


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--group_by_modality_length", "True", "--seed", "5"),
        ("--gate_supervision", "random", "--gate_alpha", "0.999"),
    ],
    ids=["shuffled", "grouped", "random layers"],
)
def test_fitted_gates_are_those_of_direct_training(more, stored, llava_model, instruction_data, tmp_path):
    path, images = instruction_data
    model = ["--tune_visual_gates", "True", "--model_name_or_path", str(llava_model), "--version", "v1",
             "--data_path", str(path), "--image_folder", str(images), "--image_aspect_ratio", "pad",
             "--model_max_length", "256"]  # fmt: skip
    train(argv=[*model, *training_flags(tmp_path / "direct", *more)])
    fit_gates.main(["--store", str(stored), *training_flags(tmp_path / "fitted", *more)])
    direct, fitted = (load_file(tmp_path / name / "gates.safetensors") for name in ("direct", "fitted"))
    torch.manual_seed(5 if "--seed" in more else 42)
    fresh = ExitGates(LAYERS, HIDDEN).state_dict()
    assert set(direct) == set(fitted) == set(fresh)
    for key, value in direct.items():
        torch.testing.assert_close(fitted[key], value, rtol=0, atol=2e-5)
        assert float((value - fresh[key]).abs().max()) > 1e-3  # far more than the tolerance
    histories = [
        [entry for entry in json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]]
        for name in ("direct", "fitted")
    ]
    for mine, theirs in zip(*histories, strict=True):
        for key in mine:
            if key.startswith("gates/") or key == "loss":
                assert mine[key] == pytest.approx(theirs[key], abs=1e-4), key


@pytest.mark.parametrize("states", [STATES[:1], STATES[1:], ATTENTION_STATES])
def test_gates_of_any_states_and_kinds_are_fitted(states, stored, tmp_path):
    more = (
        "--states",
        *states,
        "--gate_kind",
        "small",
        "--gate_dtype",
        "float16",
        "--gated_layers",
        "1",
        "3",
    )
    fit_gates.main(["--store", str(stored), *more, *training_flags(tmp_path)])
    gates = ExitGates.from_pretrained(tmp_path)
    assert (gates.states, gates.kind, gates.width, gates.gated_layers) == (states, "shared", 64, (1, 3))
    assert {value.dtype for value in gates.state_dict().values()} == {torch.float16}
    assert gates.shared is not None and gates.shared.w1.weight.shape == (64, len(states) * HIDDEN)
    assert float(gates.layers[3].embedding.detach().abs().max()) > 0  # it was trained


def test_what_cannot_be_fitted_is_refused(stored, tmp_path):
    ExitGates(LAYERS, HIDDEN, 8, ("mean_text",)).save_pretrained(tmp_path / "other")
    for flags, error, message in (
        (("--store", str(tmp_path)), FileNotFoundError, "store_states writes"),
        (("--states", "mean_audio"), ValueError, "not mean_audio"),
        (("--visual_gates", str(tmp_path / "other")), ValueError, "look at mean_text, not"),
        (("--gate_kind", "low_rank"), ValueError, "need a positive rank"),
        (("--gate_dtype", "int8"), ValueError, "float32 or float16"),
    ):
        with pytest.raises(error, match=message):
            fit_gates.main(["--store", str(stored), *flags, *training_flags(tmp_path / "out")])


def test_datasets_reads_a_store(stored, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    store = StateStore(stored)
    table = store.to_datasets(alpha=1.03)
    assert len(table) == len(store.index)
    row = table[4]
    assert row["index"] == store.index[4] and row["labels"].tolist() == store.labels()[4].tolist()
    for name in STATES + ATTENTION_STATES:
        assert torch.equal(torch.tensor(row[name]), store.read(name)[0][4])
