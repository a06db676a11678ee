"""Short runs of each kind: what they change, what they write, and that it can be read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaTokenizer

from dyvte.gates.trainer import newest_checkpoint
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.train import prepare
from llava.train.train import train


def flags(model, tower, data, output, *more: str, steps: int = 3) -> list[str]:
    path, images = data
    return [
        "--model_name_or_path", str(model), "--vision_tower", str(tower), "--data_path", str(path),
        "--image_folder", str(images), "--output_dir", str(output), "--mm_projector_type", "mlp2x_gelu",
        "--mm_vision_select_layer", "-2", "--mm_use_im_start_end", "False",
        "--mm_use_im_patch_token", "False",
        "--image_aspect_ratio", "pad", "--model_max_length", "256", "--max_steps", str(steps),
        "--per_device_train_batch_size", "4", "--logging_steps", "1", "--report_to", "none",
        "--save_strategy", "no", "--use_cpu", "True", "--disable_tqdm", "True",
        "--learning_rate", "1e-2", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(language_model, vision_tower, caption_data, tmp_path_factory) -> Path:
    """A finished alignment run."""
    output = tmp_path_factory.mktemp("runs") / "llava-pretrain"
    more = ("--version", "plain", "--tune_mm_mlp_adapter", "True", "--gradient_checkpointing", "True")
    train(argv=flags(language_model, vision_tower, caption_data, output, *more))
    return output


@pytest.fixture(scope="module")
def finetuned(language_model, vision_tower, instruction_data, pretrained, tmp_path_factory) -> Path:
    """A finished full fine-tuning."""
    output = tmp_path_factory.mktemp("runs") / "llava-finetune"
    adapter = str(pretrained / "mm_projector.bin")
    more = ("--version", "v1", "--pretrain_mm_mlp_adapter", adapter, "--group_by_modality_length", "True")
    train(argv=flags(language_model, vision_tower, instruction_data, output, *more))
    return output


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_pretrain_writes_the_projector_alone(pretrained):
    saved = torch.load(pretrained / "mm_projector.bin", weights_only=True)
    assert sorted(saved) == [f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")]
    assert not list(pretrained.glob("*.safetensors"))
    config = json.loads((pretrained / "config.json").read_text())
    assert config["model_type"] == "llava_llama" and config["mm_projector_type"] == "mlp2x_gelu"
    assert config["mm_use_im_start_end"] is False and config["image_aspect_ratio"] == "pad"
    assert len(losses(pretrained)) == 3


def test_finetune_trains_everything_but_the_tower(finetuned, language_model, pretrained):
    weights = load_file(finetuned / "model.safetensors")
    assert not [key for key in weights if "vision_tower" in key]
    base = load_file(language_model / "model.safetensors")
    assert set(base) == {key for key in weights if "mm_projector" not in key}
    assert all(not torch.equal(weights[key], base[key]) for key in base)
    projector = torch.load(pretrained / "mm_projector.bin", weights_only=True)
    assert all(not torch.equal(weights[key], projector[key]) for key in projector)
    assert len(losses(finetuned)) == 3


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_is_of_the_kind_asked_for(
    name, language_model, vision_tower, caption_data, tmp_path, monkeypatch
):
    models, load = [], prepare.load_model
    monkeypatch.setattr(prepare, "load_model", lambda *args: models.append(load(*args)) or models[0])
    more = ("--version", "plain", "--tune_mm_mlp_adapter", "True", "--attn_implementation", name)
    train(argv=flags(language_model, vision_tower, caption_data, tmp_path, *more, steps=1))
    assert models[0].config._attn_implementation == name


def test_finetuned_folder_loads_as_llava(finetuned):
    model, info = LlavaLlamaForCausalLM.from_pretrained(finetuned, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.use_cache is True
    assert LlamaTokenizer.from_pretrained(finetuned)("red").input_ids[0] == model.config.bos_token_id


def test_tune_mm_mlp_adapter_leaves_the_language_model_alone(
    pretrained, language_model, vision_tower, caption_data
):
    """The saved projector differs from a fresh one, and a longer run from it starts where it ended."""
    saved = torch.load(pretrained / "mm_projector.bin", weights_only=True)
    output = pretrained.parent / "again"
    more = ("--version", "plain", "--tune_mm_mlp_adapter", "True", "--learning_rate", "0.0",
            "--pretrain_mm_mlp_adapter", str(pretrained / "mm_projector.bin"))  # fmt: skip
    train(argv=flags(language_model, vision_tower, caption_data, output, *more))
    again = torch.load(output / "mm_projector.bin", weights_only=True)
    assert all(torch.equal(again[key], saved[key]) for key in saved)


@pytest.mark.parametrize("kind", ["full", "projector", "lora"])
def test_resumed_run_equals_uninterrupted(kind, language_model, vision_tower, instruction_data, tmp_path):
    more = [
        "--version",
        "v1",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
        "--lr_scheduler_type",
        "cosine",
    ]
    more += ["--group_by_modality_length", "True", "--mm_projector_lr", "1e-3"]
    more += {"full": [], "projector": ["--tune_mm_mlp_adapter", "True"], "lora": ["--lora_enable", "True"]}[
        kind
    ]
    file = {
        "full": "model.safetensors",
        "projector": "mm_projector.bin",
        "lora": "adapter_model.safetensors",
    }[kind]

    def run(output: Path) -> dict:
        # 32 samples in batches of 4: 12 steps are one and a half epochs
        train(argv=flags(language_model, vision_tower, instruction_data, output, *more, steps=12))
        path = output / file
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)

    whole = run(tmp_path / "whole")
    broken = tmp_path / "broken"
    for folder in (tmp_path / "whole").glob("checkpoint-*"):
        if folder.name in ("checkpoint-8", "checkpoint-10"):
            (broken / folder.name).parent.mkdir(exist_ok=True)
            folder.rename(broken / folder.name)
    (broken / "checkpoint-10" / "trainer_state.json").write_text("{")  # killed while it was being written
    assert newest_checkpoint(broken) == str(broken / "checkpoint-8")
    resumed = run(broken)
    assert set(resumed) == set(whole) and whole
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=0)


def test_lora_run_can_be_merged_into_its_base(language_model, vision_tower, instruction_data, tmp_path):
    from llava.model.builder import load_pretrained_model

    output = tmp_path / "llava-lora"
    more = ("--version", "v1", "--lora_enable", "True", "--lora_r", "4")
    train(argv=flags(language_model, vision_tower, instruction_data, output, *more))
    others = torch.load(output / "non_lora_trainables.bin", weights_only=True)
    assert sorted(others) == [
        f"base_model.model.model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")
    ]
    adapter = load_file(output / "adapter_model.safetensors")
    assert adapter and not [key for key in adapter if "vision_tower" in key or "mm_projector" in key]
    _, model, _, _ = load_pretrained_model(str(output), str(language_model), "llava-lora", device="cpu")
    base = load_file(language_model / "model.safetensors")
    merged = model.state_dict()
    assert not torch.equal(merged["model.layers.0.self_attn.q_proj.weight"].float(),
                           base["model.layers.0.self_attn.q_proj.weight"])  # fmt: skip
    key = "model.mm_projector.0.weight"
    assert torch.equal(merged[key].float(), others[f"base_model.model.{key}"].float())
