"""A made tokenizer, language model, vision tower and instruction file, all tiny and random."""

from __future__ import annotations

import json
import random

import pytest
import torch
from PIL import Image
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
)

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.train.arguments import ModelArguments
from llava.train.saving import save_full
from tests.fixtures.checkpoints import write_pieces
from tests.fixtures.towers import write_tower

CORPUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: What colour is the ball? ASSISTANT: red "
    "green blue. How many digits are there? Three, four, five. INST SYS human system \n 0 1 2 3 4 5 6 7 8 9"
)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A SentencePiece tokenizer with byte fallback, as Llama's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_pieces(folder, [CORPUS], 400)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return LlamaTokenizer.from_pretrained(tokenizer_folder, model_max_length=512)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory, tokenizer):
    """A folder with a random four-layer Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vision_tower(tmp_path_factory):
    """A folder with a random three-layer CLIP tower: 28 x 28 pixels, four patches."""
    folder = tmp_path_factory.mktemp("clip")
    write_tower(folder)
    return folder


@pytest.fixture(scope="session")
def instruction_data(tmp_path_factory):
    """(json path, image folder): 32 samples, every fourth without an image, every third with two turns."""
    folder = tmp_path_factory.mktemp("data")
    images = folder / "images"
    images.mkdir()
    draw = random.Random(0)
    records = []
    for index in range(32):
        colour = draw.choice(list(COLOURS))
        record: dict = {"id": f"sample-{index}"}
        question = "What colour is the ball?"
        if index % 4:
            record["image"] = f"{index}.png"
            Image.new("RGB", (28 + index, 30), COLOURS[colour]).save(images / record["image"])
            question = f"<image>\n{question}" if index % 2 else f"{question}\n<image>"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": colour}]
        if index % 3 == 0:
            turns += [
                {"from": "human", "value": "How many?"},
                {"from": "gpt", "value": f"{index % 10} digits."},
            ]
        records.append({**record, "conversations": turns})
    path = folder / "instruct.json"
    path.write_text(json.dumps(records))
    return path, images


@pytest.fixture(scope="session")
def caption_data(tmp_path_factory, instruction_data):
    """(json path, image folder): image and caption pairs for alignment."""
    path, images = instruction_data
    records = [
        {
            "id": record["id"],
            "image": record["image"],
            "conversations": [
                {"from": "human", "value": "Describe it.\n<image>"},
                {"from": "gpt", "value": f"A {record['conversations'][1]['value']} ball."},
            ],
        }
        for record in json.loads(path.read_text())
        if "image" in record
    ]
    captions = tmp_path_factory.mktemp("captions") / "captions.json"
    captions.write_text(json.dumps(records))
    return captions, images


@pytest.fixture(scope="session")
def llava_model(tmp_path_factory, language_model, vision_tower, tokenizer):
    """A folder with a random LLaVA: the language model above with a tower and a projector."""
    folder = tmp_path_factory.mktemp("models") / "llava-tiny"
    fields = LlamaConfig.from_pretrained(language_model).to_dict()
    fields.pop("model_type")
    torch.manual_seed(2)
    model = LlavaLlamaForCausalLM(LlavaConfig(**fields))
    arguments = ModelArguments(
        vision_tower=str(vision_tower), mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2
    )
    model.get_model().initialize_vision_modules(arguments)
    with torch.no_grad():  # so that answers depend on the image in some samples
        model.get_model().mm_projector[2].weight.mul_(20)
    model.config.image_aspect_ratio = "pad"
    model.config.mm_use_im_start_end = model.config.mm_use_im_patch_token = False
    save_full(model, folder)
    tokenizer.save_pretrained(folder)
    return folder
