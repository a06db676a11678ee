"""load_pretrained_model on every layout of a LLaVA checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionModel

from dyvte import ExitGates, LearnedExit, NoExit, attach
from dyvte.gates.origin import Origin
from dyvte.provenance import checkpoint_digest
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

PROMPT = "What is it? <image>\nASSISTANT:"


def logits_of(folder, picture, base=None, name="llava", **options):
    """Logits of one prompt with the picture, through all that the loader returns."""
    tokenizer, model, processor, _ = load_pretrained_model(str(folder), base and str(base), name, **options)
    ids = tokenizer_image_token(PROMPT, tokenizer, return_tensors="pt")[None]
    with torch.no_grad():
        return model(
            input_ids=ids, images=process_images([picture], processor, model.config).to(model.dtype)
        ).logits


@pytest.fixture
def expected(checkpoint, picture):
    return logits_of(checkpoint, picture)


def split_in_two(tensors):
    keys = list(tensors)
    return [{key: tensors[key] for key in part} for part in (keys[: len(keys) // 2], keys[len(keys) // 2 :])]


def write_bin_shards(folder, tensors):
    weight_map = {}
    for number, shard in enumerate(split_in_two(tensors), 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_what_comes_back(checkpoint):
    tokenizer, model, processor, context = load_pretrained_model(str(checkpoint), None, "llava")
    assert context == 2048 and tokenizer.bos_token_id == 1
    assert not model.training and model.dtype == torch.float32
    assert model.get_vision_tower().is_loaded and model.get_vision_tower().image_processor is processor
    assert model.config.mm_vision_tower == "vision_tower"
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == 360
    assert not hasattr(model, "exit_handle")


def test_published_layout(copy_of, weights, picture, expected):
    """.bin shards, the old model type, stale rotary buffers, a config without fields that came later."""
    folder = copy_of(
        model_type="llava", mm_use_im_start_end=None, mm_use_im_patch_token=None, torch_dtype="float16"
    )
    stale = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    write_bin_shards(folder, weights | stale)
    assert torch.equal(logits_of(folder, picture, name="anything"), expected)
    _, model, _, _ = load_pretrained_model(str(folder), None, "llava")
    assert model.config.mm_use_im_start_end is False
    assert model.get_input_embeddings().num_embeddings == 360


def test_dtype_is_explicit(checkpoint):
    for dtype in (torch.bfloat16, "bfloat16"):
        _, model, _, _ = load_pretrained_model(str(checkpoint), None, "llava", torch_dtype=dtype)
        assert model.dtype == model.get_vision_tower().dtype == torch.bfloat16


def test_context_length(copy_of, weights):
    folder = copy_of(max_sequence_length=777)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_pretrained_model(str(folder), None, "llava")[3] == 777


@pytest.mark.parametrize("prefix", ["model.", "base_model.model.model.", ""])
def test_projector_with_base(copy_of, base, weights, picture, expected, prefix):
    folder = copy_of()
    with pytest.raises(FileNotFoundError, match=f"model folder not found: {base}/none"):
        load_pretrained_model(str(folder), f"{base}/none", "llava")
    projector = {
        prefix + key.removeprefix("model."): value for key, value in weights.items() if "mm_projector" in key
    }
    torch.save(projector, folder / "mm_projector.bin")
    assert torch.equal(logits_of(folder, picture, base), expected)
    with pytest.raises(FileNotFoundError, match="mm_projector.bin.*model_base"):
        load_pretrained_model(str(folder), None, "llava")
    torch.save(dict(list(projector.items())[:2]), folder / "mm_projector.bin")
    with pytest.raises(ValueError, match="mm_projector.2.bias, model.mm_projector.2.weight"):
        load_pretrained_model(str(folder), str(base), "llava")


def write_lora(folder, model_class, config, weights, extra):
    """An adapter with random weights and non_lora_trainables.bin; returns the merged weights."""
    from peft import LoraConfig, get_peft_model

    model = model_class(config)
    model.load_state_dict(weights, strict=False)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, lora)
    torch.manual_seed(5)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft_model.save_pretrained(folder)
    torch.save(
        {f"base_model.model.{key}": value for key, value in extra.items()}, folder / "non_lora_trainables.bin"
    )
    return peft_model.merge_and_unload().state_dict()


@pytest.mark.parametrize("more_rows", [0, 3])
def test_lora_with_base(copy_of, base, weights, picture, expected, more_rows):
    """With ``more_rows``, embeddings and head grew in training and come with the LoRA folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = copy_of(vocab_size=360 + more_rows)
    extra = {key: value for key, value in weights.items() if "mm_projector" in key}
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        if more_rows:
            extra[key] = torch.cat([weights[key], torch.ones(more_rows, 32)])
    described = json.loads((folder / "config.json").read_text())
    config = LlamaConfig(
        **{
            key: described[key]
            for key in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
            )
        },
        max_position_embeddings=1024,
    )
    merged = write_lora(folder, LlamaForCausalLM, config, weights | extra, extra)
    found = logits_of(folder, picture, base, name="llava-lora")
    assert found.shape[-1] == 360 + more_rows
    assert not torch.allclose(found[..., :360], expected, atol=1e-3)

    whole = copy_of("whole", vocab_size=360 + more_rows)
    save_file(
        {k: v.clone() for k, v in (merged | extra).items()},
        whole / "model.safetensors",
        metadata={"format": "pt"},
    )
    torch.testing.assert_close(found, logits_of(whole, picture), atol=1e-5, rtol=0)
    with pytest.raises(FileNotFoundError, match="adapter_config.json.*model_base"):
        load_pretrained_model(str(folder), None, "llava-lora")
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(FileNotFoundError, match="non_lora_trainables.bin"):
        load_pretrained_model(str(folder), str(base), "llava-lora")


def test_adapter_without_a_config_is_of_its_bases_family(copy_of, checkpoint, weights):
    """What PEFT writes while it trains on a LLaVA model is no language model."""
    folder = copy_of()
    described = json.loads((folder / "config.json").read_text())
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    write_lora(folder, LlamaForCausalLM, LlamaConfig(**{key: described[key] for key in sizes}), weights, {})
    (folder / "config.json").unlink()
    _, model, processor, _ = load_pretrained_model(str(folder), str(checkpoint), "checkpoint-5", device="cpu")
    assert processor is not None and model.get_vision_tower().is_loaded
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(FileNotFoundError, match="has no non_lora_trainables.bin"):
        load_pretrained_model(str(folder), str(checkpoint), "checkpoint-5", device="cpu")


def test_lora_rows_that_nobody_holds(copy_of, base, weights):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = copy_of(vocab_size=363)
    extra = {key: value for key, value in weights.items() if "mm_projector" in key}
    described = json.loads((base / "config.json").read_text())
    write_lora(folder, LlamaForCausalLM, LlamaConfig(**described), weights, extra)
    with pytest.raises(ValueError, match="lm_head.weight, model.embed_tokens.weight"):
        load_pretrained_model(str(folder), str(base), "llava-lora")


def test_missing_weights_are_named(copy_of, weights):
    folder = copy_of()
    kept = {key: value for key, value in weights.items() if "layers.1.mlp.up_proj" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model.layers.1.mlp.up_proj.weight"):
        load_pretrained_model(str(folder), None, "llava")


def test_unknown_weights_are_reported(copy_of, weights, caplog):
    folder = copy_of()
    tower = {"model.vision_tower.vision_tower.vision_model.post_layernorm.bias": torch.ones(16)}
    save_file(weights | tower | {"model.other.weight": torch.ones(1)}, folder / "model.safetensors")
    load_pretrained_model(str(folder), None, "llava")
    ours = [record.getMessage() for record in caplog.records if record.name == "llava.model.builder"]
    assert "1 weights that the model does not use: model.other.weight" in ours[-1]


@pytest.mark.parametrize("old", [True, False])
def test_a_trained_tower_comes_from_the_checkpoint(copy_of, checkpoint, weights, picture, expected, old):
    folder = copy_of(unfreeze_mm_vision_tower=True)
    tower = CLIPVisionModel.from_pretrained(checkpoint / "vision_tower").state_dict()
    level = "vision_model." if old else ""
    trained = {f"model.vision_tower.vision_tower.{level}{key}": value * 1.5 for key, value in tower.items()}
    save_file(weights | trained, folder / "model.safetensors", metadata={"format": "pt"})
    _, model, _, _ = load_pretrained_model(str(folder), None, "llava")
    loaded = model.get_vision_tower().vision_tower.state_dict()
    assert all(torch.equal(loaded[key], value * 1.5) for key, value in tower.items())
    assert not torch.allclose(logits_of(folder, picture), expected, atol=1e-4)
    del trained[next(key for key in trained if key.endswith("pre_layrnorm.weight"))]
    save_file(weights | trained, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="pre_layrnorm"):
        load_pretrained_model(str(folder), None, "llava")


def test_old_tower_names_load_into_a_model(checkpoint):
    _, model, _, _ = load_pretrained_model(str(checkpoint), None, "llava")
    old = {}
    for key, value in model.state_dict().items():
        part = "vision_tower.vision_tower."
        old[key.replace(part, part + "vision_model.")] = value + 1
    model.load_state_dict(old)
    assert torch.equal(
        model.state_dict()["model.vision_tower.vision_tower.post_layernorm.bias"],
        old["model.vision_tower.vision_tower.vision_model.post_layernorm.bias"],
    )


def test_a_missing_tower_is_named(copy_of, weights, tmp_path):
    folder = copy_of(mm_vision_tower="towers/none/here")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="towers/none/here"):
        load_pretrained_model(str(folder), None, "llava")
    shutil.rmtree(folder / "vision_tower")
    described = json.loads((folder / "config.json").read_text()) | {"mm_vision_tower": "vision_tower"}
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(FileNotFoundError, match=str(folder / "vision_tower")):
        load_pretrained_model(str(folder), None, "llava")


def test_image_tokens(copy_of, weights):
    folder = copy_of(mm_use_im_start_end=True, mm_use_im_patch_token=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer, model, _, _ = load_pretrained_model(str(folder), None, "llava")
    assert tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>"]) == [360, 361, 362]
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == 363
    assert torch.equal(model.get_input_embeddings().weight[:360], weights["model.embed_tokens.weight"])


def test_a_language_model(base):
    tokenizer, model, processor, context = load_pretrained_model(str(base), None, "vicuna")
    assert processor is None and type(model).__name__ == "LlamaForCausalLM" and context == 2048
    assert tokenizer("red").input_ids[0] == 1


def test_other_families_are_refused(copy_of, tmp_path):
    hf = copy_of("hf", architectures=["LlavaForConditionalGeneration"], model_type="llava", text_config={})
    with pytest.raises(ValueError, match="transformers.LlavaForConditionalGeneration.*dyvte.attach"):
        load_pretrained_model(str(hf), None, "llava-1.5-7b-hf")
    mistral = copy_of("mistral", architectures=["LlavaMistralForCausalLM"], model_type="llava_mistral")
    with pytest.raises(ValueError, match="LlavaMistralForCausalLM"):
        load_pretrained_model(str(mistral), None, "llava-mistral")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_pretrained_model(str(tmp_path / "empty"), None, "llava")
    with pytest.raises(FileNotFoundError, match="model folder not found: /no/such/folder"):
        load_pretrained_model("/no/such/folder", None, "llava")
    with pytest.raises(OSError, match="^lab/nothing is no folder here, .*couldn't connect[^\n]*$"):
        load_pretrained_model("lab/nothing", None, "llava")  # without a network, and not in the cache
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_pretrained_model(str(copy_of("bare")), None, "llava")


def test_quantization_without_bitsandbytes_says_so(checkpoint, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    for flag in ("load_8bit", "load_4bit"):
        with pytest.raises(ValueError, match="pip install .dyvte.quant"):
            load_pretrained_model(str(checkpoint), None, "llava", **{flag: True})


def test_gates_of_another_model_are_refused(checkpoint):
    gates = ExitGates(num_layers=3, hidden_size=32, width=8)
    gates.origin = Origin("llava-a", "a" * 64, "llava_llama")
    with pytest.raises(ValueError, match="trained for llava-a .*not for llava-v1.5-tiny "):
        load_pretrained_model(str(checkpoint), None, "llava", gates=gates)
    gates.origin = Origin("llava-a", checkpoint_digest(str(checkpoint), "vision_tower"), "llava_llama")
    _, model, _, _ = load_pretrained_model(str(checkpoint), None, "llava", gates=gates)
    assert model.exit_handle.policy.gates is gates


def test_gates_in_the_folder_are_attached(copy_of, checkpoint, weights, tmp_path):
    torch.manual_seed(3)
    gates = ExitGates(num_layers=3, hidden_size=32, width=8)
    gates.save_pretrained(tmp_path / "gates")
    merged = copy_of("merged")
    paper = {
        f"model.visual_gates_router.{i}.{name}.weight": getattr(gate, name).weight.detach()
        for i, gate in enumerate(gates.layers)
        for name in ("w1", "w2")
    }
    save_file(weights | paper, merged / "model.safetensors", metadata={"format": "pt"})
    beside = copy_of("beside")
    save_file(weights, beside / "model.safetensors", metadata={"format": "pt"})
    gates.save_pretrained(beside)
    for folder, given in (
        (merged, None),
        (beside, None),
        (checkpoint, tmp_path / "gates"),
        (checkpoint, gates),
    ):
        _, model, _, _ = load_pretrained_model(str(folder), None, "llava", gates=given)
        policy = model.exit_handle.policy
        assert isinstance(policy, LearnedExit)
        assert torch.equal(policy.gates.layers[2].w1.weight, gates.layers[2].w1.weight)
        model.exit_handle.detach()
        attach(model, NoExit()).detach()
    with pytest.raises(ValueError, match="4 layers.*3"):
        load_pretrained_model(str(checkpoint), None, "llava", gates=ExitGates(4, 32, 8))
