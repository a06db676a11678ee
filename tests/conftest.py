"""Small random models, in both classes that ``attach`` serves, with the same weights."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaForConditionalGeneration,
)
from transformers import LlavaConfig as HFLlavaConfig

# a shell's background jobs ignore Ctrl-C, and so would the processes that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
# small tensors gain nothing from threads, and one thread sums in the same order in every process
torch.set_num_threads(1)

pytest_plugins = [f"tests.fixtures.{name}" for name in ("checkpoints", "hub", "processors", "records")]

IMAGE = 199  # placeholder id in transformers' class
PATCHES = 4
LAYERS = 4


def tiny_hf_llava(seed: int = 0, kv_heads: int = 2) -> LlavaForConditionalGeneration:
    """Transformers' own LLaVA, 4 layers, weights scaled up so that argmaxes and exits differ between samples."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        vocab_size=200,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlavaForConditionalGeneration(
        HFLlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model


@pytest.fixture(scope="session")
def tower_folder(tmp_path_factory, hf_llava):
    """A CLIP checkpoint folder with the weights of ``hf_llava``'s tower."""
    folder = tmp_path_factory.mktemp("tower")
    tower = CLIPVisionModel(hf_llava.config.vision_config)
    tower.load_state_dict(hf_llava.model.vision_tower.state_dict())
    tower.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def hf_llava():
    """Transformers' own LLaVA class. Session-wide: tests must detach what they attach."""
    return tiny_hf_llava()


@pytest.fixture(scope="session")
def llava(hf_llava, tower_folder):
    """This project's class with the weights of ``hf_llava``."""
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    text = hf_llava.config.text_config.to_dict()
    text.pop("model_type")
    config = LlavaConfig(
        **text,
        mm_vision_tower=str(tower_folder),
        mm_hidden_size=32,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
    )
    model = LlavaLlamaForCausalLM(config).eval()
    model.get_vision_tower().load_model()
    ours = {}
    for key, value in hf_llava.state_dict().items():
        for old, new in (
            ("model.language_model.", "model."),
            ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
            ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ):
            if key.startswith(old):
                key = new + key[len(old) :]
                break
        if not key.startswith("model.vision_tower."):
            ours[key] = value
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert not unexpected and all("vision_tower" in key for key in missing)
    return model


class Prompts:
    """Prompts as lists of pieces: an int list is text, the string "image" an image."""

    def __init__(self, *prompts):
        self.prompts = prompts
        generator = torch.Generator().manual_seed(7)
        self.pixels = torch.randn(sum(p.count("image") for p in prompts), 3, 28, 28, generator=generator)

    def __getitem__(self, index: int) -> Prompts:
        """One prompt with its own images."""
        one = Prompts(self.prompts[index])
        start = sum(p.count("image") for p in self.prompts[:index])
        one.pixels = self.pixels[start : start + self.prompts[index].count("image")]
        return one

    def __len__(self) -> int:
        return len(self.prompts)

    def hf(self, side: str = "left") -> dict:
        """Arguments for transformers' class."""
        rows = [
            [t for piece in p for t in ([IMAGE] * PATCHES if piece == "image" else piece)]
            for p in self.prompts
        ]
        out = _padded(rows, side)
        return {**out, "pixel_values": self.pixels} if len(self.pixels) else out

    def ours(self, side: str = "left") -> dict:
        """Arguments for this project's class."""
        rows = [[t for piece in p for t in ([-200] if piece == "image" else piece)] for p in self.prompts]
        return {**_padded(rows, side), "images": self.pixels if len(self.pixels) else None}


def _padded(rows: list[list[int]], side: str) -> dict:
    longest = max(map(len, rows))
    ids, mask = (
        torch.zeros(len(rows), longest, dtype=torch.long),
        torch.zeros(len(rows), longest, dtype=torch.long),
    )
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


MIXED = (
    [[1, 5, 6], "image", [7, 8, 9, 10]],
    [[1, 4], "image", [3], "image", [9, 11]],
    [[1, 33], "image", [8]],
    [[1, 21, 22, 23, 24, 25]],
    [[1], "image", [40, 41, 42, 43, 44, 45, 46]],
    [[1, 90, 91], "image", "image", [92, 93, 94]],
    [[1, 60, 61, 62], "image", [63, 64]],
    [[1], "image", [70, 71]],
)


@pytest.fixture(scope="session")
def prompts() -> Prompts:
    """Eight prompts of different lengths: none, one and two images, one text token after the image, text only."""
    return Prompts(*MIXED)


@pytest.fixture(scope="session")
def gates(hf_llava):
    """Random gates, scaled so that the prompts exit at different layers and some never do."""
    from dyvte import ExitGates

    torch.manual_seed(3)
    gates = ExitGates(LAYERS, 64, width=32)
    for parameter in gates.parameters():
        parameter.data.mul_(5)
    return gates
