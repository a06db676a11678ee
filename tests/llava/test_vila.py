"""VILA v1.0: LLaVA's layout, told apart by its name; its tokenizer, prompts, and evaluators without padding."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModel

from dyvte import FixedExit, attach
from llava.chat_model import infer_conv_mode
from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval import model_vqa, model_vqa_loader, model_vqa_science
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from tests.fixtures.layouts import read_lines, write_weights

PATCHES = 4


@pytest.fixture(params=["bin", "safetensors"])
def vila(request, checkpoint, weights, tmp_path):
    """A checkpoint as VILA's training wrote it: rotary tables and the trained-with CLIP lie beside the weights."""
    folder = tmp_path / "VILA-7b"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    described = json.loads((folder / "config.json").read_text())
    described |= {"architectures": ["LlavaLlamaForCausalLM"], "tokenizer_model_max_length": 4096}
    (folder / "config.json").write_text(json.dumps(described))
    described = json.loads((folder / "tokenizer_config.json").read_text()) | {"legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    tower = CLIPVisionModel.from_pretrained(checkpoint / "vision_tower").state_dict()
    extras = {
        f"model.vision_tower.vision_tower.vision_model.{key}": value * 9 for key, value in tower.items()
    }
    extras |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    write_weights(folder, weights | extras, request.param)
    return folder


def test_loads_as_llava_does(vila, checkpoint, weights, picture):
    tokenizer, model, processor, context = load_pretrained_model(str(vila), None, "VILA-7b")
    assert context == 2048 and type(model).__name__ == "LlavaLlamaForCausalLM"
    assert torch.equal(
        model.state_dict()["model.mm_projector.2.weight"], weights["model.mm_projector.2.weight"]
    )
    original = CLIPVisionModel.from_pretrained(checkpoint / "vision_tower").state_dict()
    tower = model.get_vision_tower().vision_tower.state_dict()
    assert all(torch.equal(tower[key], value) for key, value in original.items())

    prompt = "USER: <image>\nWhat colour is the ball? ASSISTANT:"
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    pixels = process_images([picture], processor, model.config)
    full = model.generate(ids, images=pixels, max_new_tokens=5, do_sample=False)
    with attach(model, FixedExit(0)) as handle:
        early = model.generate(ids, images=pixels, max_new_tokens=5, do_sample=False)
    (report,) = handle.traces[0].report()
    rest = ids.shape[1] - 1
    assert list(report.tokens_per_layer) == [rest + PATCHES, rest, rest]
    assert full.shape[0] == early.shape[0] == 1 and 0 < early.shape[1] <= 5


def test_tokenizer_without_legacy(vila):
    """A word after a special token gets no space in front, whatever the checkpoint's tokenizer says."""
    tokenizer, *_ = load_pretrained_model(str(vila), None, "VILA-7b")
    ids = tokenizer("</s>red").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[1] == "</s>"
    assert not tokenizer.convert_ids_to_tokens(ids)[2].startswith("\u2581")
    other = vila.parent / "llava-7b"
    shutil.copytree(vila, other)
    tokenizer, *_ = load_pretrained_model(str(other), None, "llava-7b")
    assert tokenizer.convert_ids_to_tokens(tokenizer("</s>red").input_ids)[2].startswith("\u2581")


def test_text_rows_take_no_image_slot(vila, picture):
    tokenizer, model, processor, _ = load_pretrained_model(str(vila), None, "VILA-7b")
    rows = [
        tokenizer_image_token(prompt, tokenizer, return_tensors="pt")
        for prompt in ("USER: red ASSISTANT:", "USER: <image>\nred ASSISTANT:")
    ]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    pixels = process_images([picture], processor, model.config)
    together = model.splice_images(ids, mask, None, pixels)
    alone = model.splice_images(rows[1][None], None, None, pixels)
    assert together.visual_mask.sum(1).tolist() == [0, PATCHES]
    assert torch.equal(together.inputs_embeds[1], alone.inputs_embeds[0])
    assert int((rows[1] == IMAGE_TOKEN_INDEX).sum()) == 1


def test_prompts(vila):
    assert infer_conv_mode("VILA-7b") == "vicuna_v1"
    tokenizer, *_ = load_pretrained_model(str(vila), None, "VILA-7b")
    ids = tokenizer_image_token("USER: <image>\nred ASSISTANT:", tokenizer)
    assert ids[0] == tokenizer.bos_token_id and ids.count(IMAGE_TOKEN_INDEX) == 1
    assert ids.count(tokenizer.bos_token_id) == 1


def answers_of(module, folder, rows, tmp_path, monkeypatch, name="question.jsonl"):
    """Run an evaluator on ``rows`` and return its answers, and the pixels that the tower saw."""
    from llava import chat_model

    seen = []
    original = chat_model.process_images

    def noted(*args):
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(chat_model, "process_images", noted)
    questions = tmp_path / name
    if name.endswith(".jsonl"):
        questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        questions.write_text(json.dumps(rows))
    given = {
        "--model-path": folder,
        "--image-folder": tmp_path,
        "--question-file": questions,
        "--answers-file": tmp_path / f"{module.__name__}.jsonl",
        "--conv-mode": "vicuna_v1",
        "--temperature": 0,
        "--method": "fixed",
        "--exit-layer": 1,
    }
    argv = [str(part) for pair in given.items() for part in pair]
    module.eval_model(module.build_parser().parse_args(argv))
    return read_lines(tmp_path / f"{module.__name__}.jsonl"), torch.cat(seen)


def by_hand(image, padded):
    """(3, 28, 28): with a mean-coloured frame, or the centre of the image at 28 pixels of height."""
    if padded:
        canvas = Image.new("RGB", (56, 56), (122, 116, 104))
        canvas.paste(image, (0, 14))
        final = canvas.resize((28, 28), Image.Resampling.BICUBIC)
    else:
        final = image.crop((14, 0, 42, 28))
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return ((np.asarray(final, dtype=np.float64) / 255 - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("evaluator", ["loader", "vqa", "science"])
def test_evaluators_without_padding(vila, tmp_path, monkeypatch, evaluator):
    """MM-Vet's and ScienceQA's give images to the processor as they are; the others pad them first."""
    values = np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    image.save(tmp_path / "wide.png")
    rows = [{"question_id": 0, "image": "wide.png", "text": "What is it?"}]
    name, module = "question.jsonl", {"loader": model_vqa_loader, "vqa": model_vqa}.get(evaluator)
    if module is None:
        module, name = model_vqa_science, "question.json"
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "red"}]
        rows = [{"id": "0", "image": "wide.png", "conversations": turns}]
    answers, pixels = answers_of(module, vila, rows, tmp_path, monkeypatch, name)
    assert answers[0]["metadata"]["exit_layer"] == 1
    assert answers[0]["metadata"]["visual_tokens"] == PATCHES
    np.testing.assert_allclose(pixels[0].numpy(), by_hand(image, evaluator == "loader"), atol=3e-6)


def test_llava_pads_everywhere(vila, checkpoint, tmp_path, monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8))
    image.save(tmp_path / "wide.png")
    rows = [{"question_id": 0, "image": "wide.png", "text": "What is it?"}]
    _, pixels = answers_of(model_vqa, checkpoint, rows, tmp_path, monkeypatch)
    np.testing.assert_allclose(pixels[0].numpy(), by_hand(image, True), atol=3e-6)


def test_missing_weights(vila, weights):
    for file in [*vila.glob("*.bin*"), *vila.glob("model.safetensors")]:
        file.unlink()
    write_weights(
        vila, {key: value for key, value in weights.items() if "projector.2.bias" not in key}, "bin"
    )
    with pytest.raises(ValueError, match="lacks 1 of the model's weights: model.mm_projector.2.bias"):
        load_pretrained_model(str(vila), None, "VILA-7b")
