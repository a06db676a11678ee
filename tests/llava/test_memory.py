"""A checkpoint of 1 GB is held once while it loads, and once it is in use."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

MEASURE = """
import json, sys, torch
from llava.model.builder import load_pretrained_model

def kib(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])

before = kib("VmRSS")
_, model, _, _ = load_pretrained_model(sys.argv[1], None, "llava")
total = sum(float(parameter.sum()) for parameter in model.parameters())  # touches every weight
size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
print(json.dumps({"peak": (kib("VmHWM") - before) * 1024, "size": size, "sum": total}))
"""


def write_bin(path, shapes):
    torch.save({key: torch.full(shape, 0.01) for key, shape in shapes.items()}, path)


def write_safetensors(path, shapes):
    """Zeros, as a file with a hole: written at once, and read like any other."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("stem", "suffix", "write"),
    [("pytorch_model", "bin", write_bin), ("model", "safetensors", write_safetensors)],
)
def test_weights_are_held_once(copy_of, checkpoint, stem, suffix, write):
    folder = copy_of(
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=5,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=128,
    )
    described = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        tower = {"mm_vision_tower": str(checkpoint / "vision_tower")}
        model = LlavaLlamaForCausalLM(LlavaConfig.from_dict(described | tower))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weight_map = {}
    for number in range(3):
        name = f"{stem}-0000{number + 1}-of-00003.{suffix}"
        shard = dict(list(shapes.items())[number::3])
        write(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    try:
        command = [sys.executable, "-c", MEASURE, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["size"] > 1e9
    assert 0.9 < measured["peak"] / measured["size"] < 1.3
