"""Eagle-X5 (LLaVA's layout with five towers): each tower against plain formulas, their mixture, and the model."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dyvte import FixedExit, attach
from dyvte.cost.flops import prefill_flops
from dyvte.cost.vision import counted_flops
from llava.chat_model import infer_conv_mode
from llava.eval import run_llava
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder import eagle_encoder
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.eagle_convnext import ConvNextEncoder
from llava.model.multimodal_encoder.eagle_encoder import MixtureTower
from llava.model.multimodal_encoder.eagle_eva import EvaEncoder, join, split
from llava.model.multimodal_encoder.eagle_transformers import (
    ClipEncoder,
    Pix2StructEncoder,
    SamEncoder,
    flattened_patches,
)
from llava.model.multimodal_encoder.tower import MapEncoder
from tests.fixtures.checkpoints import write_tokenizer
from tests.fixtures.layouts import language_model, random_like, train_gates, write_weights

TOWERS = "clip-448;convnext-1024;sam-1024;det-1024;pix2struct-1024"
PREFIX = "model.vision_tower."
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 42,
    "patch_size": 14,
}
CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [4, 8, 8, 16], "num_classes": 10}
SAM = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "window_size": 3,
    "global_attn_indexes": [1],
    "output_channels": 4,
    "mlp_dim": 24,
}
EVA = {
    "hidden_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 16,
    "window_size": 3,
    "window_block_indexes": [0],
    "pretrain_img_size": 32,
    "image_size": 64,
}
PIX2STRUCT = {
    "hidden_size": 16,
    "d_ff": 24,
    "d_kv": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "seq_len": 64,
}
ENCODERS = dict(zip(TOWERS.split(";"), (CLIP, CONVNEXT, SAM, EVA, PIX2STRUCT), strict=True))
CHANNELS = 16 + 16 + 4 * 4 + 16 + 16
NAME = "eagle-x5-tiny"


def ready(encoder, seed=0):
    """The encoder with random weights, and these in float64 under the published names."""
    encoder.load_state_dict(random_like(encoder, seed))
    state = encoder.state_dict()
    return encoder.eval(), {key.removeprefix("vision_tower."): value.double() for key, value in state.items()}


def image(size, seed=5):
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def norm(states, w, name, eps):
    mean = states.mean(-1, keepdim=True)
    variance = (states - mean).pow(2).mean(-1, keepdim=True)
    return (states - mean) / (variance + eps).sqrt() * w[name + ".weight"] + w[name + ".bias"]


def linear(states, w, name):
    return states @ w[name + ".weight"].T + w.get(name + ".bias", 0)


def patched(pixels, weight, bias):
    """(1, 3, H, W) -> (rows, columns, width), one product per patch."""
    side = weight.shape[-1]
    cut = pixels.double().unfold(2, side, side).unfold(3, side, side)[0]
    return torch.einsum("crqyx,dcyx->rqd", cut, weight) + (0 if bias is None else bias)


def attend(query, key, value, heads, scale, bias=None):
    """(T, D) each, one head at a time; ``bias(head, query)`` is added to the scores."""
    size = query.shape[-1] // heads
    mixed = []
    for head in range(heads):
        at = slice(head * size, head * size + size)
        scores = query[:, at] @ key[:, at].T * scale
        if bias is not None:
            scores = scores + bias(query[:, at])
        mixed.append(scores.softmax(-1) @ value[:, at])
    return torch.cat(mixed, -1)


def compare(found, expected):
    """The encoder's map (1, C, H, W) against (H, W, C)."""
    assert expected.std() > 0.05
    torch.testing.assert_close(found[0].permute(1, 2, 0).double(), expected, atol=1e-4, rtol=1e-4)


def windows_of(states, window):
    """The places of each window of a map (H, W, D), with None where it reaches beyond."""
    rows, columns = states.shape[:2]
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            yield [
                (row, column) if row < rows and column < columns else None
                for row in range(top, top + window)
                for column in range(left, left + window)
            ]


def in_windows(states, window, mix):
    """``mix`` on the tokens of each window, zeros where there are none; window 0 is the whole map."""
    out = torch.zeros_like(states)
    for places in windows_of(states, window or len(states)):
        zero = torch.zeros_like(states[0, 0])
        mixed = mix(torch.stack([zero if place is None else states[place] for place in places]))
        for place, value in zip(places, mixed, strict=True):
            if place is not None:
                out[place] = value
    return out


@torch.no_grad()
def test_clip():
    encoder, w = ready(ClipEncoder(CLIP))
    pixels = image(42)
    base = "vision_model."
    states = patched(pixels, w[base + "embeddings.patch_embedding.weight"], None).flatten(0, 1)
    states = states + w[base + "embeddings.position_embedding.weight"][1:]
    states = norm(states, w, base + "pre_layrnorm", 1e-5)
    for layer in range(2):
        p = f"{base}encoder.layers.{layer}."
        normed = norm(states, w, p + "layer_norm1", 1e-5)
        parts = [linear(normed, w, f"{p}self_attn.{part}_proj") for part in "qkv"]
        states = states + linear(attend(*parts, 2, 8**-0.5), w, p + "self_attn.out_proj")
        inner = linear(norm(states, w, p + "layer_norm2", 1e-5), w, p + "mlp.fc1")
        states = states + linear(inner * torch.sigmoid(1.702 * inner), w, p + "mlp.fc2")
    compare(encoder(pixels), states.unflatten(0, (3, 3)))


def convolved(states, weight, bias, groups=1, stride=1, padding=0):
    """(H, W, C) -> (H', W', C') in float64."""
    out = F.conv2d(states.permute(2, 0, 1)[None], weight, bias, stride, padding, groups=groups)
    return out[0].permute(1, 2, 0)


@torch.no_grad()
def test_convnext():
    encoder, w = ready(ConvNextEncoder(CONVNEXT))
    pixels = image(64)
    states = norm(patched(pixels, w["stem.0.weight"], w["stem.0.bias"]), w, "stem.1", 1e-5)
    for stage, depth in enumerate(CONVNEXT["depths"]):
        if stage:
            p = f"stages.{stage}.downsample."
            states = norm(states, w, p + "0", 1e-5)
            states = convolved(states, w[p + "1.weight"], w[p + "1.bias"], stride=2)
        for block in range(depth):
            p = f"stages.{stage}.blocks.{block}."
            mixed = convolved(
                states, w[p + "conv_dw.weight"], w[p + "conv_dw.bias"], states.shape[-1], padding=3
            )
            inner = F.gelu(linear(norm(mixed, w, p + "norm", 1e-5), w, p + "mlp.fc1"))
            states = states + linear(inner, w, p + "mlp.fc2") * w[p + "weight"]
    compare(encoder(pixels), states)


@torch.no_grad()
def test_sam():
    encoder, w = ready(SamEncoder(SAM))
    pixels = image(64)
    states = patched(pixels, w["patch_embed.projection.weight"], w["patch_embed.projection.bias"])
    states = states + w["pos_embed"][0]
    for layer, window in enumerate((3, 0)):
        p, side = f"layers.{layer}.", window or 4

        def mix(tokens, p=p, side=side):
            def bias(query):
                found = torch.zeros(side * side, side * side, dtype=torch.float64)
                for i in range(side * side):
                    for j in range(side * side):
                        down, across = i // side - j // side + side - 1, i % side - j % side + side - 1
                        along = w[p + "attn.rel_pos_h"][down] + w[p + "attn.rel_pos_w"][across]
                        found[i, j] = query[i] @ along
                return found

            query, key, value = linear(tokens, w, p + "attn.qkv").split(16, -1)
            return linear(attend(query, key, value, 2, 8**-0.5, bias), w, p + "attn.proj")

        states = states + in_windows(norm(states, w, p + "layer_norm1", 1e-6), window, mix)
        inner = F.gelu(linear(norm(states, w, p + "layer_norm2", 1e-6), w, p + "mlp.lin1"))
        states = states + linear(inner, w, p + "mlp.lin2")
    states = norm(states @ w["neck.conv1.weight"][:, :, 0, 0].T, w, "neck.layer_norm1", 1e-6)
    # four neighbors become channels: of channel c, places (0, 0), (0, 1), (1, 0), (1, 1) are 4c, 4c + 1, ...
    corners = [states[y::2, x::2] for y in range(2) for x in range(2)]
    compare(encoder(pixels), torch.stack(corners, -1).flatten(2))


@torch.no_grad()
def test_eva():
    encoder, w = ready(EvaEncoder(EVA))
    pixels = image(64)
    states = patched(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    table = w["pos_embed"][0, 1:].T.reshape(1, 16, 2, 2)
    states = states + F.interpolate(table, (4, 4), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)

    def turned(tokens, side):
        """Each pair of channels as a complex number, turned by its place: pairs 0, 1 by row, 2, 3 by column."""
        pairs = torch.view_as_complex(tokens.unflatten(-1, (2, 4, 2)).contiguous())  # (T, heads, pairs)
        for place in range(len(tokens)):
            for pair in range(4):
                position = (place // side if pair < 2 else place % side) / side * 16
                angle = position * 10000 ** (-(pair % 2) / 2)
                pairs[place, :, pair] *= complex(math.cos(angle), math.sin(angle))
        return torch.view_as_real(pairs).flatten(1)

    for layer, window in enumerate((3, 0)):
        p, side = f"blocks.{layer}.", window or 4

        def mix(tokens, p=p, side=side):
            query = linear(tokens, w, p + "attn.q_proj") + w[p + "attn.q_bias"]
            value = linear(tokens, w, p + "attn.v_proj") + w[p + "attn.v_bias"]
            key = linear(tokens, w, p + "attn.k_proj")
            mixed = attend(turned(query, side), turned(key, side), value, 2, 8**-0.5)
            return linear(mixed, w, p + "attn.proj")

        states = states + in_windows(norm(states, w, p + "norm1", 1e-6), window, mix)
        normed = norm(states, w, p + "norm2", 1e-6)
        inner = F.silu(linear(normed, w, p + "mlp.w1")) * linear(normed, w, p + "mlp.w2")
        states = states + linear(norm(inner, w, p + "mlp.ffn_ln", 1e-6), w, p + "mlp.w3")
    compare(encoder(pixels), states)


def test_windows_come_back():
    states = torch.randn(2, 5, 7, 3)
    assert split(states, 4).shape == (2 * 2 * 2, 4, 4, 3)
    assert torch.equal(join(split(states, 4), 5, 7), states)


def test_patches_of_pix2struct():
    """Against numpy: undo CLIP's normalization, standardize, 45 x 45 patches of 16 pixels, numbered from 1."""
    pixels = image(720)  # which is not resized
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    raw = (pixels[0].double().numpy().transpose(1, 2, 0) * std + mean) * 255
    raw = (raw - raw.mean()) / raw.std()
    found = flattened_patches(pixels)[0].numpy()
    assert found.shape == (2025, 770)
    for row, column in ((0, 0), (0, 44), (17, 5), (44, 44)):
        line = found[row * 45 + column]
        assert line[:2].tolist() == [row + 1, column + 1]
        block = raw[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        np.testing.assert_allclose(line[2:], block.reshape(-1), atol=2e-5)
    assert not flattened_patches(torch.full((1, 3, 64, 64), 0.3))[:, :, 2:].isnan().any()
    # of few values the population's deviation is another than the sample's; corners keep their values when resized
    raw = (image(2)[0].double().numpy().transpose(1, 2, 0) * std + mean) * 255
    raw = (raw - raw.mean()) / raw.std()
    small = flattened_patches(image(2))[0].numpy()
    np.testing.assert_allclose(small[0, 2:5], raw[0, 0], atol=2e-5)
    np.testing.assert_allclose(small[-1, -3:], raw[1, 1], atol=2e-5)


@torch.no_grad()
def test_pix2struct():
    encoder, w = ready(Pix2StructEncoder(PIX2STRUCT))
    pixels = image(64)
    flat = flattened_patches(pixels)[0].double()

    def rms(states, name):
        return states / (states.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[name + ".weight"]

    states = linear(flat[:, 2:], w, "embeddings.patch_projection")
    states = states + w["embeddings.row_embedder.weight"][flat[:, 0].long()]
    states = states + w["embeddings.column_embedder.weight"][flat[:, 1].long()]
    for layer in range(2):
        p = f"encoder.layer.{layer}."
        normed = rms(states, p + "pre_attention_layer_norm")
        parts = [linear(normed, w, f"{p}attention.{part}") for part in ("query", "key", "value")]
        states = states + linear(attend(*parts, 2, 1), w, p + "attention.output")
        normed = rms(states, p + "pre_mlp_layer_norm")
        gate = F.gelu(linear(normed, w, p + "mlp.wi_0"), approximate="tanh")
        states = states + linear(gate * linear(normed, w, p + "mlp.wi_1"), w, p + "mlp.wo")
    compare(encoder(pixels), rms(states, "layernorm").unflatten(0, (45, 45)))


def published():
    """Names and shapes of Eagle-X5's towers as released, those that are not used left out."""
    shapes = {}

    def add(tower, **own):
        shapes.update({f"vision_towers.{tower}.vision_tower.{key}": shape for key, shape in own.items()})

    def both(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    clip = {
        "embeddings.class_embedding": (1024,),
        "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "embeddings.position_embedding.weight": (577, 1024),
        **both("pre_layrnorm", 1024),
        **both("post_layernorm", 1024),
    }
    for layer in range(24):
        p = f"encoder.layers.{layer}."
        for part in "qkv":
            clip |= both(f"{p}self_attn.{part}_proj", 1024, 1024)
        clip |= both(p + "self_attn.out_proj", 1024, 1024)
        clip |= both(p + "layer_norm1", 1024) | both(p + "layer_norm2", 1024)
        clip |= both(p + "mlp.fc1", 4096, 1024) | both(p + "mlp.fc2", 1024, 4096)
    add(0, **{f"vision_model.{key}": shape for key, shape in clip.items()})

    add(1, **both("stem.0", 384, 3, 4, 4), **both("stem.1", 384))
    dims = (384, 768, 1536, 3072)
    for stage, (depth, width) in enumerate(zip((3, 4, 30, 3), dims, strict=True)):
        if stage:
            p = f"stages.{stage}.downsample."
            add(1, **both(p + "0", dims[stage - 1]), **both(p + "1", width, dims[stage - 1], 2, 2))
        for block in range(depth):
            p = f"stages.{stage}.blocks.{block}."
            add(1, **both(p + "conv_dw", width, 1, 7, 7), **both(p + "norm", width))
            add(1, **both(p + "mlp.fc1", 4 * width, width), **both(p + "mlp.fc2", width, 4 * width))
            add(1, **{p + "weight": (width,)})

    add(2, pos_embed=(1, 64, 64, 1024), **both("patch_embed.projection", 1024, 3, 16, 16))
    for layer in range(24):
        p, rows = f"layers.{layer}.", 127 if layer in (5, 11, 17, 23) else 27
        add(2, **both(p + "layer_norm1", 1024), **both(p + "layer_norm2", 1024))
        add(2, **both(p + "attn.qkv", 3072, 1024), **both(p + "attn.proj", 1024, 1024))
        add(2, **{p + "attn.rel_pos_h": (rows, 64), p + "attn.rel_pos_w": (rows, 64)})
        add(2, **both(p + "mlp.lin1", 4096, 1024), **both(p + "mlp.lin2", 1024, 4096))
    add(2, **{"neck.conv1.weight": (256, 1024, 1, 1)}, **both("neck.layer_norm1", 256))

    add(3, pos_embed=(1, 197, 1024), **both("patch_embed.proj", 1024, 3, 16, 16))
    for layer in range(24):
        p = f"blocks.{layer}."
        add(3, **both(p + "norm1", 1024), **both(p + "norm2", 1024), **both(p + "attn.proj", 1024, 1024))
        add(3, **{f"{p}attn.{part}_proj.weight": (1024, 1024) for part in "qkv"})
        add(3, **{p + "attn.q_bias": (1024,), p + "attn.v_bias": (1024,)})
        add(3, **both(p + "mlp.w1", 2730, 1024), **both(p + "mlp.w2", 2730, 1024))
        add(3, **both(p + "mlp.w3", 1024, 2730), **both(p + "mlp.ffn_ln", 2730))

    add(4, **both("embeddings.patch_projection", 1536, 768))
    for part in ("row", "column"):
        add(4, **{f"embeddings.{part}_embedder.weight": (4096, 1536)})
    for layer in range(18):
        p = f"encoder.layer.{layer}."
        for part in ("query", "key", "value", "output"):
            add(4, **{f"{p}attention.{part}.weight": (1536, 1536)})
        add(4, **{p + "mlp.wi_0.weight": (3968, 1536), p + "mlp.wi_1.weight": (3968, 1536)})
        add(4, **{p + "mlp.wo.weight": (1536, 3968)})
        for part in ("pre_mlp_layer_norm", "pre_attention_layer_norm"):
            add(4, **{f"{p}{part}.weight": (1536,)})
    add(4, **{"layernorm.weight": (1536,)})
    return shapes


@pytest.fixture(scope="module")
def released():
    with torch.device("meta"):
        return MixtureTower(TOWERS, SimpleNamespace(mm_hidden_size=7680))


def test_published_names_and_shapes(released):
    assert {key: tuple(value.shape) for key, value in released.state_dict().items()} == published()
    assert [encoder.channels for encoder in released.vision_towers] == [1024, 3072, 1024, 1024, 1536]
    assert (released.hidden_size, released.num_patches) == (7680, 1024)
    assert [
        encoder.vision_tower.config.num_attention_heads
        for encoder in (released.vision_towers[i] for i in (2, 4))
    ] == [16, 24]
    windows = [block.window for block in released.vision_towers[3].vision_tower.blocks]
    assert windows == [16, 16, 0] * 8


def test_papers_column(released):
    """arXiv:2411.19628 has 27.8 TFLOPs. Its towers, 13.3, are ours without the products of attention (15.3 with)."""
    tokens, layer = 1024 + 45, 202_375_168
    decoder = 32 * (2 * layer * tokens + 4 * tokens**2 * 4096)
    projector = 2 * 1024 * (7680 * 4096 + 4096**2)
    towers = released.flops_per_image()
    assert towers / 1e12 == pytest.approx(15.27, abs=0.05)
    plain = {0: 0, 1: 0, 2: 0, 3: 0, 4: 0}
    plain[0] = 24 * 4 * 576**2 * 1024
    plain[2] = 4 * 4 * 4096**2 * 1024 + 20 * 25 * 4 * 196**2 * 1024
    plain[3] = 8 * 4 * 4096**2 * 1024 + 16 * 16 * 4 * 256**2 * 1024
    plain[4] = 18 * 4 * 2025**2 * 1536
    total = towers - sum(plain.values()) + decoder + projector
    assert total / 1e12 == pytest.approx(27.8, rel=0.03)


@torch.no_grad()
def test_mixture_of_stubs(monkeypatch):
    """Order of channels, the size that each encoder sees, and maps brought to 32 x 32 with corners on corners."""
    seen = {}

    class Stub(MapEncoder):
        def __init__(self, fields):
            super().__init__(fields)
            self.image_size, self.channels, self.side = (
                fields["image_size"],
                fields["channels"],
                fields["side"],
            )
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, pixels):
            seen[self.channels] = pixels
            ramp = torch.linspace(0, 1, self.side).expand(len(pixels), self.channels, self.side, self.side)
            return ramp * self.channels  # grows along columns

    monkeypatch.setattr(eagle_encoder, "ENCODERS", {"a": Stub, "b": Stub, "c": Stub})
    sizes = {
        "a-1": {"image_size": None, "channels": 2, "side": 32},
        "b-1": {"image_size": 3, "channels": 3, "side": 2},
        "c-1": {"image_size": 8, "channels": 1, "side": 45},
    }
    tower = MixtureTower("a-1;b-1;c-1", SimpleNamespace(encoders=sizes, input_image_size=8))
    pixels = image(8)
    found = tower(pixels)
    assert found.shape == (1, 1024, 6)
    ramp = torch.linspace(0, 1, 32).repeat(32)
    for channel, scale in enumerate((2, 2, 3, 3, 3, 1)):
        torch.testing.assert_close(found[0, :, channel], ramp * scale, atol=1e-5, rtol=0)
    assert torch.equal(seen[2], pixels) and torch.equal(seen[1], pixels)
    corners = seen[3][0, :, [0, 0, 2, 2], [0, 2, 0, 2]]
    torch.testing.assert_close(corners, pixels[0, :, [0, 0, 7, 7], [0, 7, 0, 7]])
    halves = tower(pixels.half())
    assert halves.dtype == torch.float16


@pytest.fixture
def make(tmp_path):
    """A function: a checkpoint in Eagle's layout."""

    def write(form, name=NAME, drop=(), **changes):
        folder = tmp_path / name
        folder.mkdir()
        write_tokenizer(folder)
        described, weights = language_model(
            32,
            CHANNELS,
            mm_vision_tower=TOWERS,
            encoders=ENCODERS,
            input_image_size=64,
            max_position_embeddings=2048,
        )
        described |= {"model_type": "eagle_llama", "architectures": ["EagleLlamaForCausalLM"]} | changes
        with torch.device("meta"):
            tower = MixtureTower(TOWERS, SimpleNamespace(encoders=ENCODERS, input_image_size=64))
        weights |= {PREFIX + key: value for key, value in random_like(tower, 7).items()}
        copies = ["rope_win", "rope_glb", "blocks.0.attn.rope", "blocks.1.attn.rope"]
        eva = f"{PREFIX}vision_towers.3.vision_tower."
        weights |= {
            f"{eva}{copy}.freqs_{part}": torch.ones(9, 8) for copy in copies for part in ("cos", "sin")
        }
        weights[f"{PREFIX}vision_towers.1.vision_tower.head.fc.weight"] = torch.ones(10, 16)
        weights = {key: value for key, value in weights.items() if not any(part in key for part in drop)}
        (folder / "config.json").write_text(json.dumps(described))
        write_weights(folder, weights, form)
        return folder, weights

    return write


@pytest.mark.parametrize(("form", "drop"), [("bin", ()), ("safetensors", (".rope", "rope_", ".head."))])
def test_loads_answers_and_exits(make, picture, form, drop):
    """With and without duplicate rotary tables and the classification head."""
    folder, weights = make(form, drop=drop)
    tokenizer, model, processor, context = load_pretrained_model(str(folder), None, NAME)
    tower = model.get_vision_tower()
    assert context == 2048 and tower.is_loaded and not any(p.requires_grad for p in tower.parameters())
    for key, value in tower.state_dict().items():
        assert torch.equal(value, weights[PREFIX + key]), key

    pixels = process_images([picture, picture.transpose(Image.Transpose.ROTATE_90)], processor, model.config)
    assert pixels.shape == (2, 3, 64, 64)
    features = tower(pixels)
    assert features.shape == (2, 1024, CHANNELS) and features.isfinite().all()
    at = 0
    for encoder in tower.vision_towers:  # each encoder alone, one image at a time
        side = encoder.image_size or 64
        own = F.interpolate(pixels[1:], (side, side), mode="bilinear", align_corners=True)
        own = F.interpolate(encoder(own), (32, 32), mode="bilinear", align_corners=True)
        part = features[1, :, at : at + encoder.channels]
        torch.testing.assert_close(part, own[0].flatten(1).T, atol=1e-4, rtol=1e-4)
        at += encoder.channels

    prompt = "USER: <image>\nWhat colour is the ball? ASSISTANT:"
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    rest = ids.shape[1] - 1
    with attach(model, FixedExit(0)) as handle:
        new = model.generate(ids, images=pixels[:1], max_new_tokens=3, do_sample=False)
    (report,) = handle.traces[0].report()
    assert list(report.tokens_per_layer) == [rest + 1024, rest, rest] and 1 <= new.shape[1] <= 3
    assert prefill_flops(model, handle.traces[0]).vision == [tower.flops_per_image()]


def test_scripts_train_and_ask_it(make, tmp_path, capsys):
    folder, _ = make("bin")
    gates = train_gates(folder, tmp_path, max_steps=1)
    words = ["--model-path", folder, "--image-file", tmp_path / "red.png", "--query", "What is it?"]
    words += ["--temperature", 0, "--max_new_tokens", 2, "--gates", gates, "--threshold", 0]
    answer = run_llava.eval_model(run_llava.build_parser().parse_args([str(word) for word in words]))
    assert "exit: after layer 0 of 0..2" in capsys.readouterr().out and answer.report.visual_tokens == 1024
    assert infer_conv_mode("Eagle-X5-7B") == "vicuna_v1"


def test_saved_and_loaded_again(make, tmp_path, picture):
    folder, _ = make("safetensors")
    tokenizer, model, processor, _ = load_pretrained_model(str(folder), None, NAME)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    _, loaded, _, _ = load_pretrained_model(str(tmp_path / "again"), None, "eagle-again")
    pixels = process_images([picture], processor, model.config)
    assert torch.equal(loaded.get_vision_tower()(pixels), model.get_vision_tower()(pixels))


def test_preprocessing(make):
    """Padded with CLIP's mean color, then 64 pixels with CLIP's mean and deviation (1024 in the released model)."""
    folder, _ = make("bin")
    _, model, processor, _ = load_pretrained_model(str(folder), None, NAME)
    values = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    pixels = process_images([Image.fromarray(values)], processor, model.config)[0].numpy()
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    frame = ((np.array([122, 116, 104]) / 255 - mean) / std)[:, None, None]
    np.testing.assert_allclose(pixels[:, :16], np.broadcast_to(frame, (3, 16, 64)), atol=2e-6)
    np.testing.assert_allclose(pixels[:, 16:48], ((values / 255 - mean) / std).transpose(2, 0, 1), atol=2e-6)


def test_released_input_size():
    with torch.device("meta"):
        tower = MixtureTower(TOWERS, SimpleNamespace())
    tower.load_model()
    assert tower.image_processor.crop_size["height"] == tower.image_processor.size["shortest_edge"] == 1024
    assert [encoder.image_size for encoder in tower.vision_towers] == [336, None, 1024, 1024, None]


@torch.no_grad()
@pytest.mark.parametrize("kind", list(ENCODERS))
def test_flops_are_what_torch_counts(kind):
    encoder, _ = ready(eagle_encoder.ENCODERS[kind.partition("-")[0]](ENCODERS[kind]))
    shape = (1, 3, encoder.image_size or 64, encoder.image_size or 64)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        encoder(torch.zeros(shape))
    assert counted_flops(encoder, shape) == counter.get_total_flops() > 0


def test_wrong_checkpoints(make):
    folder, _ = make("bin", drop=("vision_towers.3.vision_tower.blocks.1.attn.q_bias",))
    with pytest.raises(ValueError, match="lacks 1 of the model's weights: .*towers.3.*blocks.1.attn.q_bias"):
        load_pretrained_model(str(folder), None, NAME)
    folder, _ = make("bin", "eagle-b", encoders=ENCODERS | {"sam-1024": SAM | {"mlp_dim": 20}})
    with pytest.raises(ValueError, match="6 weights of .* do not have the shape .*towers.2.*mlp.lin1"):
        load_pretrained_model(str(folder), None, NAME)
    folder, _ = make("bin", "eagle-c", mm_hidden_size=96)
    with pytest.raises(ValueError, match="mm_hidden_size is 96, but the towers .* have 80 channels"):
        load_pretrained_model(str(folder), None, NAME)
    folder, _ = make("bin", "eagle-d", mm_vision_tower="clip-448;dino-518")
    with pytest.raises(ValueError, match="unknown vision tower 'dino-518'"):
        load_pretrained_model(str(folder), None, NAME)
    with pytest.raises(ValueError, match="come with an Eagle checkpoint only"):
        build_vision_tower(SimpleNamespace(mm_vision_tower=TOWERS))
