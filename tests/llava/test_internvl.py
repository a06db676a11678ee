"""InternVL-Chat (LLaVA's layout with InternViT): the tower against plain formulas, its two places, and the model."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dyvte import FixedExit, attach
from dyvte.cost.flops import prefill_flops
from llava.chat_model import infer_conv_mode
from llava.eval import model_vqa, model_vqa_loader, run_llava
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.intern_encoder import INSIDE, InternVisionTower
from llava.model.multimodal_encoder.intern_vit import InternViT, InternViTConfig
from llava.model.multimodal_encoder.tower import SelectingTower
from tests.fixtures.checkpoints import write_tokenizer
from tests.fixtures.layouts import language_model, random_like, read_lines, train_gates, write_weights

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
PATCHES = 24 * 24
NAME = "internvl-chat-tiny"


def tower_weights(**changes):
    config = InternViTConfig(**{**SIZES, **changes})
    with torch.device("meta"):
        model = InternViT(config)
    return random_like(model, seed=3)


def published(config):
    """Names and shapes of InternViT as released."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    rows = (config["image_size"] // config["patch_size"]) ** 2 + 1
    shapes = {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.patch_embedding.weight": (width, 3, config["patch_size"], config["patch_size"]),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding": (1, rows, width),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"encoder.layers.{layer}.{key}": shape
            for key, shape in {
                "attn.qkv.weight": (3 * width, width),
                "attn.q_norm.weight": (width,),
                "attn.k_norm.weight": (width,),
                "attn.proj.weight": (width, width),
                "attn.proj.bias": (width,),
                "mlp.fc1.weight": (inner, width),
                "mlp.fc1.bias": (inner,),
                "mlp.fc2.weight": (width, inner),
                "mlp.fc2.bias": (width,),
                "norm1.weight": (width,),
                "norm2.weight": (width,),
                "ls1": (width,),
                "ls2": (width,),
            }.items()
        }
    return shapes


def test_published_names_and_shapes():
    with torch.device("meta"):
        model = InternViT(InternViTConfig())
    released = {"hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 48}
    expected = published({**released, "image_size": 224, "patch_size": 14})
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
    assert sum(value.numel() for value in model.state_dict().values()) == pytest.approx(5.9e9, rel=0.002)


def rms(states, weight):
    return states / (states.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def reference(weights, pixels, heads=4, layers=6, side=4):
    """All hidden states, one image, one head at a time."""
    w = {key: value.double() for key, value in weights.items()}
    patches = pixels.double().unfold(2, 14, 14).unfold(3, 14, 14)  # (1, 3, rows, columns, 14, 14)
    rows, columns = patches.shape[2:4]
    flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(rows * columns, -1)
    states = flat @ w["embeddings.patch_embedding.weight"].flatten(1).T + w["embeddings.patch_embedding.bias"]
    table = weights["embeddings.position_embedding"][0]
    grid = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    positions = torch.cat([table[:1], grid[0].flatten(1).T]).double()
    states = torch.cat([w["embeddings.class_embedding"][0], states]) + positions
    found = [states]
    for layer in range(layers):
        p = f"encoder.layers.{layer}."
        normed = rms(states, w[p + "norm1.weight"])
        query, key, value = (normed @ part.T for part in w[p + "attn.qkv.weight"].split(32))
        query, key = rms(query, w[p + "attn.q_norm.weight"]), rms(key, w[p + "attn.k_norm.weight"])
        mixed = []
        for head in range(heads):
            at = slice(head * 8, head * 8 + 8)
            scores = query[:, at] @ key[:, at].T / 8**0.5
            mixed.append(scores.softmax(-1) @ value[:, at])
        out = torch.cat(mixed, -1) @ w[p + "attn.proj.weight"].T + w[p + "attn.proj.bias"]
        states = states + out * w[p + "ls1"]
        normed = rms(states, w[p + "norm2.weight"])
        inner = F.gelu(normed @ w[p + "mlp.fc1.weight"].T + w[p + "mlp.fc1.bias"])
        states = states + (inner @ w[p + "mlp.fc2.weight"].T + w[p + "mlp.fc2.bias"]) * w[p + "ls2"]
        found.append(states)
    return found


@pytest.mark.parametrize("size", [56, 84])
def test_tower_against_plain_formulas(size):
    weights = tower_weights()
    model = InternViT(InternViTConfig(**SIZES))
    model.load_state_dict(weights)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(4))
    expected = reference(weights, pixels)
    assert len(expected) == 7 and not torch.allclose(expected[3], expected[6], atol=1e-2)
    for layers in (0, 3, 6):
        found = model(pixels, layers)[0]
        torch.testing.assert_close(found.double(), expected[layers], atol=3e-5, rtol=1e-4)


@pytest.fixture
def make(tmp_path):
    """A function: a checkpoint whose tower is "inside" it, or in a "folder"."""

    def write(place, form, name=NAME, **changes):
        folder = tmp_path / name
        folder.mkdir()
        write_tokenizer(folder)
        tower = {"vision_config": SIZES} if place == "inside" else {}
        described, weights = language_model(
            32, 32, mm_vision_tower="pretrained/intern_vit_6b_224px", mm_vision_select_layer=-4, **tower
        )
        described |= changes
        weights |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
        if place == "inside":
            weights |= {INSIDE + key: value for key, value in tower_weights().items()}
        else:
            weights |= {INSIDE + "embeddings.class_embedding": torch.ones(1, 1, 32)}  # ignored
            own = folder / "pretrained" / "intern_vit_6b_224px"
            own.mkdir(parents=True)
            (own / "config.json").write_text(json.dumps({"model_type": "intern_vit_6b", **SIZES}))
            write_weights(own, tower_weights() | {"clip_projector.norm1_k.bias": torch.ones(3)}, form)
        described = {key: value for key, value in described.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(described))
        write_weights(folder, weights, form)
        return folder

    return write


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("place", ["inside", "folder"])
def test_loads_answers_and_exits(make, picture, place, form):
    folder = make(place, form)
    tokenizer, model, processor, context = load_pretrained_model(str(folder), None, NAME)
    tower = model.get_vision_tower()
    assert context == 2048 and tower.is_loaded and tower.inside == (place == "inside")
    assert (tower.hidden_size, tower.num_patches) == (32, PATCHES)
    assert all(not weight.is_meta and not weight.requires_grad for weight in tower.parameters())

    pixels = process_images([picture], processor, model.config)
    assert pixels.shape == (1, 3, 336, 336)
    features = tower(pixels)
    expected = reference(tower_weights(), pixels)[3][1:]
    torch.testing.assert_close(features[0].double(), expected, atol=5e-5, rtol=1e-4)

    prompt = "USER: <image>\nWhat colour is the ball? ASSISTANT:"
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    rest = ids.shape[1] - 1
    with attach(model, FixedExit(0)) as handle:
        new = model.generate(ids, images=pixels, max_new_tokens=3, do_sample=False)
    (report,) = handle.traces[0].report()
    assert list(report.tokens_per_layer) == [rest + PATCHES, rest, rest] and 1 <= new.shape[1] <= 3


def test_depth_and_grid_come_from_the_weights(make):
    """A checkpoint that says nothing of its tower but its names and shapes; heads are the released ones."""
    folder = make(
        "inside", "bin", vision_config={"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    )
    _, model, _, _ = load_pretrained_model(str(folder), None, NAME)
    model_of_tower = model.get_vision_tower().vision_tower
    assert len(model_of_tower.encoder["layers"]) == 6 and model_of_tower.embeddings.side == 4


def test_saved_and_loaded_again(make, tmp_path, picture):
    tokenizer, model, processor, _ = load_pretrained_model(str(make("inside", "safetensors")), None, NAME)
    again = tmp_path / "internvl-again"
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    _, loaded, _, _ = load_pretrained_model(str(again), None, "internvl-again")
    assert loaded.config.mm_vision_tower == "pretrained/intern_vit_6b_224px"
    pixels = process_images([picture], processor, model.config)
    assert torch.equal(loaded.get_vision_tower()(pixels), model.get_vision_tower()(pixels))


def test_preprocessing(make):
    """336 pixels, ImageNet's mean and deviation, and a frame of ImageNet's mean color."""
    _, model, processor, _ = load_pretrained_model(str(make("inside", "bin")), None, NAME)
    values = np.random.default_rng(0).integers(0, 256, (168, 336, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    pixels = process_images([image], processor, model.config)[0].numpy()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    frame = ((np.array([123, 116, 103]) / 255 - mean) / std)[:, None, None]
    np.testing.assert_allclose(pixels[:, :84], np.broadcast_to(frame, (3, 84, 336)), atol=2e-6)
    np.testing.assert_allclose(pixels[:, 84:252], ((values / 255 - mean) / std).transpose(2, 0, 1), atol=2e-6)


@pytest.mark.parametrize("padded", [True, False])
def test_evaluators(make, tmp_path, monkeypatch, padded):
    """The loader pads; MM-Vet's evaluator and run_llava give images to the processor as they are."""
    folder = make("inside", "bin")
    seen = []
    original = CLIPImageProcessorPil.preprocess
    monkeypatch.setattr(
        CLIPImageProcessorPil,
        "preprocess",
        lambda self, image, **kw: seen.append(image.size) or original(self, image, **kw),
    )
    Image.new("RGB", (60, 20), (9, 99, 199)).save(tmp_path / "wide.png")
    (tmp_path / "q.jsonl").write_text('{"question_id": 0, "image": "wide.png", "text": "What?"}\n')
    module = model_vqa_loader if padded else model_vqa
    given = {
        "--model-path": folder,
        "--image-folder": tmp_path,
        "--question-file": tmp_path / "q.jsonl",
        "--answers-file": tmp_path / "a.jsonl",
        "--conv-mode": "vicuna_v1",
        "--temperature": 0,
        "--max_new_tokens": 2,
        "--method": "fixed",
        "--exit-layer": 1,
    }
    module.eval_model(
        module.build_parser().parse_args([str(part) for pair in given.items() for part in pair])
    )
    (answer,) = read_lines(tmp_path / "a.jsonl")
    assert answer["metadata"]["exit_layer"] == 1 and answer["metadata"]["visual_tokens"] == PATCHES
    assert seen == [(60, 60) if padded else (60, 20)]
    if not padded:
        words = [
            "--model-path",
            folder,
            "--image-file",
            tmp_path / "wide.png",
            "--query",
            "What?",
            "--temperature",
            0,
        ]
        words += ["--max_new_tokens", 2]
        run_llava.eval_model(run_llava.build_parser().parse_args([str(word) for word in words]))
        assert seen[-1] == (60, 20)
    assert infer_conv_mode("InternVL-Chat-ViT-6B-Vicuna-7B") == "vicuna_v1"


@torch.no_grad()
def test_flops_are_what_torch_counts(make, picture):
    tokenizer, model, processor, _ = load_pretrained_model(str(make("inside", "bin")), None, NAME)
    tower = model.get_vision_tower()
    pixels = process_images([picture], processor, model.config)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        tower(pixels)
    assert counter.get_total_flops() == tower.flops_per_image()
    ids = tokenizer_image_token("<image>\nred", tokenizer, return_tensors="pt")[None]
    with attach(model, FixedExit(0)) as handle:
        model(ids, images=pixels)
    assert prefill_flops(model, handle.traces[0]).vision == [tower.flops_per_image()]


def test_papers_column():
    """arXiv:2411.19628: 15.3 TFLOPs at a prompt of 635; here blocks above the selected layer do not run (15.0)."""
    tower = InternVisionTower.__new__(InternVisionTower)  # without its six billion weights
    SelectingTower.__init__(tower, SimpleNamespace(mm_vision_select_layer=-4))
    tower.config = InternViTConfig(image_size=336)
    layer, tokens = 202_375_168, 635
    decoder = 32 * (2 * layer * tokens + 4 * tokens**2 * 4096)
    projector = 2 * 576 * (3200 * 4096 + 4096**2)
    assert (tower.flops_per_image() + decoder + projector) / 1e12 == pytest.approx(15.3, rel=0.03)


def test_gates_are_trained_and_asked(make, tmp_path, capsys):
    folder = make("inside", "bin")
    gates = train_gates(folder, tmp_path)
    words = [
        "--model-path",
        folder,
        "--image-file",
        tmp_path / "red.png",
        "--query",
        "What?",
        "--gates",
        gates,
    ]
    words += ["--threshold", 0, "--temperature", 0, "--max_new_tokens", 2]
    answer = run_llava.eval_model(run_llava.build_parser().parse_args([str(word) for word in words]))
    assert answer.report.exit_layer == 0 and "exit: after layer 0 of 0..2" in capsys.readouterr().out


def test_wrong_weights(make, tmp_path):
    folder = make("folder", "bin")
    own = folder / "pretrained" / "intern_vit_6b_224px"
    weights = tower_weights()
    for file in own.glob("*.bin*"):
        file.unlink()
    write_weights(own, {key: value for key, value in weights.items() if "layers.2.ls1" not in key}, "bin")
    with pytest.raises(ValueError, match="lacks 1 of its weights, such as encoder.layers.2.ls1"):
        load_pretrained_model(str(folder), None, NAME)
    write_weights(own, weights | {"encoder.layers.2.ls1": torch.ones(3)}, "bin")
    with pytest.raises(
        ValueError, match=r"encoder.layers.2.ls1 has shape \(3,\), its config.json asks for \(32,\)"
    ):
        load_pretrained_model(str(folder), None, NAME)
    shutil.rmtree(own)
    with pytest.raises(FileNotFoundError, match="no such folder, and the checkpoint does not hold it"):
        load_pretrained_model(str(folder), None, NAME)


def test_wrong_weights_inside(make):
    folder = make("inside", "bin", vision_config={**SIZES, "num_hidden_layers": 7})
    with pytest.raises(
        ValueError, match="lacks 13 of the model's weights: model.vision_tower.vision_tower.encoder.layers.6"
    ):
        load_pretrained_model(str(folder), None, NAME)
    folder = make("inside", "bin", "internvl-other", vision_config={**SIZES, "intermediate_size": 40})
    with pytest.raises(ValueError, match="18 weights of .* do not have the shape .*mlp.fc1"):
        load_pretrained_model(str(folder), None, NAME)
