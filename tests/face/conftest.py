"""Tiny random LLaVA checkpoints in the layouts that exist in the wild."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from tests.towers import write_tower

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful,",
    "detailed, and polite answers to the user's questions. USER: What colour is the ball? ASSISTANT: red",
    "How many digits are there? Three, four, five. ### Human Assistant system 0 1 2 3 4 5 6 7 8 9 ! # $",
]
SIZES = {
    "vocab_size": 360,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
MULTIMODAL = {
    "mm_vision_tower": "vision_tower",
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "image_aspect_ratio": "pad",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
}


def write_tokenizer(folder):
    """A SentencePiece tokenizer with byte fallback, described as LLaVA-1.5's is."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=model,
        vocab_size=SIZES["vocab_size"],
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    described = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "legacy": False,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A whole checkpoint as safetensors, with its tower in a subfolder."""
    folder = tmp_path_factory.mktemp("face") / "llava-v1.5-tiny"
    write_tower(folder / "vision_tower")
    write_tokenizer(folder)
    config = LlavaConfig(**SIZES, **MULTIMODAL)
    config._name_or_path = str(folder)
    torch.manual_seed(2)
    model = LlavaLlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def weights(checkpoint):
    """The weights of :func:`checkpoint` under LLaVA's names."""
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


@pytest.fixture
def copy_of(checkpoint, tmp_path):
    """A function: a copy of the checkpoint without weights, with other config fields (None removes one)."""

    def make(name="copy", **changes):
        folder = tmp_path / name
        shutil.copytree(checkpoint, folder)
        (folder / "model.safetensors").unlink()
        described = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in described.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
        return folder

    return make


@pytest.fixture(scope="session")
def base(checkpoint, tmp_path_factory, weights):
    """A language model with the checkpoint's decoder: the base of projector and LoRA folders."""
    folder = tmp_path_factory.mktemp("base") / "vicuna"
    folder.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder / name)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.load_state_dict({key: value for key, value in weights.items() if "mm_projector" not in key})
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def picture():
    """A wide picture with something in it."""
    return Image.radial_gradient("L").resize((40, 24)).convert("RGB")
