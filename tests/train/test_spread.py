"""A model that accelerate spreads over devices, or keeps on disk, answers and labels as on one device."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from PIL import Image

from dyvte import ExitGates, LearnedExit, attach
from dyvte.decoding.policy import FixedExit, NoExit
from dyvte.engine.answer import Answerer
from dyvte.engine.model import Generation, ModelOptions
from dyvte.engine.openers import open_model
from dyvte.engine.questions import Question
from dyvte.gates.store_states import measure
from dyvte.gates.training import GateModel
from tests.fixtures.devices import OTHER, SecondDevice, place

LAYERS = 4


def on_disk(chat, folder):
    """Half of the layers in memory, half on disk until they run."""
    layers = {f"model.layers.{n}": "disk" if n % 2 else "cpu" for n in range(LAYERS)}
    rest = (
        "model.embed_tokens",
        "model.vision_tower",
        "model.mm_projector",
        "model.rotary_emb",
        "model.norm",
        "lm_head",
    )
    dispatch_model(
        chat.model, {**dict.fromkeys(rest, "cpu"), **layers}, main_device="cpu", offload_dir=folder
    )
    assert next(chat.model.model.layers[1].parameters()).is_meta


def on_two_devices(chat, folder):
    """The last layers, the norm and the head on another device than all that comes before them."""
    model = chat.model
    for part in model.model.layers[:2]:
        add_hook_to_module(part, AlignDevicesHook(torch.device("cpu")))
    for part in (*model.model.layers[2:], model.model.norm, model.lm_head):
        place(part, OTHER)
        add_hook_to_module(part, AlignDevicesHook(OTHER))
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True))  # as accelerate has the outermost module


def opened(model):
    return open_model(ModelOptions(str(model), template="v1", device="cpu"))


@torch.no_grad()
def results(chat, data) -> tuple[list, dict[str, torch.Tensor]]:
    """Answers with what their exits did; contents of a shard of states, and the loss of gates."""
    torch.manual_seed(3)
    gates = ExitGates(LAYERS, 32, width=8)
    image = Image.new("RGB", (30, 40), (200, 30, 30))
    questions = [Question("What colour is the ball?", (image,)), Question("How many digits are there?")]
    said, measured = [], {}
    answerer = Answerer(chat, Generation(max_new_tokens=5))
    for policy in (NoExit(), FixedExit(0), FixedExit(2), LearnedExit(gates, threshold=0.3)):
        chat.handle.policy = policy
        # without inference mode, in which tensors that only say where they are cannot be views
        for answer in Answerer.complete.__wrapped__(answerer, answerer.batch(questions)):  # type: ignore[attr-defined]
            said.append((answer.text, answer.report.exit_layer, answer.report.tokens_per_layer))
    path, images = data
    samples, collator = chat.training_data(str(path), str(images), 256)
    batch = collator([samples[index] for index in range(5)])
    measured = measure(chat, batch, range(5), ("mean_text", "last_text", "image_self"))
    gates.place([torch.device("cpu")] * LAYERS)
    model = GateModel(gates, chat)
    return said, {**measured, "loss": model(model.supervise(batch, None))["loss"]}


@pytest.mark.parametrize("spread", [on_disk, on_two_devices])
def test_spread_model_gives_the_same_results(spread, llava_model, instruction_data, tmp_path):
    said, measured = results(opened(llava_model), instruction_data)
    chat = opened(llava_model)
    chat.handle.detach()
    spread(chat, tmp_path)
    chat.handle = attach(chat.model, NoExit())
    with SecondDevice() if spread is on_two_devices else nullcontext():
        found = results(chat, instruction_data)
    assert found[0] == said and {exit_layer for _, exit_layer, _ in said} >= {None, 0, 2}
    torch.testing.assert_close(found[1], measured, rtol=1e-6, atol=1e-6)
