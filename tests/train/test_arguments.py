"""LLaVA's published command lines, and flags that only older transformers know, are understood."""

from __future__ import annotations

import argparse
import gc
import runpy
import sys
from pathlib import Path

import pytest
from transformers.integrations import is_deepspeed_zero3_enabled

from dyvte import cli
from llava.train.arguments import parse_arguments

ZERO2 = Path(__file__).parents[2] / "scripts" / "zero2.json"

PRETRAIN = """
--deepspeed ZERO2 --model_name_or_path lmsys/vicuna-13b-v1.5 --version plain
--data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json
--image_folder ./playground/data/LLaVA-Pretrain/images --vision_tower openai/clip-vit-large-patch14-336
--mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True --mm_vision_select_layer -2 --mm_use_im_start_end
False --mm_use_im_patch_token False --bf16 True --output_dir OUT --num_train_epochs 1
--per_device_train_batch_size 32 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1
--evaluation_strategy no --save_strategy steps --save_steps 24000 --save_total_limit 1 --learning_rate 1e-3
--weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --tf32 True
--model_max_length 2048 --gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True
--report_to wandb
"""
FINETUNE = """
--deepspeed ZERO2 --model_name_or_path lmsys/vicuna-13b-v1.5 --version v1
--data_path ./playground/data/llava_v1_5_mix665k.json --image_folder ./playground/data
--vision_tower openai/clip-vit-large-patch14-336
--pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin --mm_projector_type
mlp2x_gelu --mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False
--image_aspect_ratio pad --group_by_modality_length True --bf16 True --output_dir OUT --num_train_epochs 1
--per_device_train_batch_size 16 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1
--evaluation_strategy no --save_strategy steps --save_steps 50000 --save_total_limit 1 --learning_rate 2e-5
--weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --tf32 True
--model_max_length 2048 --gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True
--report_to wandb
"""
LORA = "--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 " + FINETUNE
GATES = """
--data_path d.json --output_dir OUT --ddp_find_unused_parameters True --tune_visual_gates True --bf16 True
"""


def parse(line: str, tmp_path):
    line = line.replace("OUT", str(tmp_path)).replace("--bf16 True", "--bf16 True --use_cpu True")
    return parse_arguments(line.replace("ZERO2", str(ZERO2)).split())


@pytest.mark.parametrize("line", [PRETRAIN, FINETUNE, LORA, GATES])
def test_published_scripts_parse(line, tmp_path):
    line = line.replace("--deepspeed ZERO2", "")
    model, data, training = parse(line, tmp_path)
    assert training.output_dir == str(tmp_path) and data.data_path
    assert training.eval_strategy.value == "no"
    if line is not GATES:
        assert training.get_warmup_steps(1000) == 30
        assert model.mm_vision_select_layer == -2 and model.mm_use_im_patch_token is False
    assert training.lora_enable is (line.startswith("--lora"))
    assert training.tf32 is None  # there is no GPU in the tests


def test_a_home_folder_behind_an_equals_sign_is_found(tmp_path, monkeypatch):
    """Shells leave the ``~`` of ``--flag=~/x`` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model, data, _ = parse_arguments(["--model_name_or_path=~/m", "--data_path=~/d=~.json", "--output_dir=o"])
    assert (model.model_name_or_path, data.data_path) == (f"{tmp_path}/m", f"{tmp_path}/d=~.json")
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path")
    found: list[str] = []
    cli.run(parser, lambda args: found.append(args.model_path), ["--model-path=~/m"])
    assert found == [f"{tmp_path}/m"]


def test_deepspeed_configs_are_read(tmp_path):
    for name in ("zero2", "zero3", "zero3_offload"):
        line = PRETRAIN.replace("ZERO2", str(ZERO2.with_name(f"{name}.json")))
        *_, training = parse(line, tmp_path)
        assert training.hf_deepspeed_config.get_value("zero_optimization.stage") == int(name[4])
    del training
    gc.collect()
    assert not is_deepspeed_zero3_enabled()  # or later tests would shard their models


def test_llavas_defaults(tmp_path):
    model, data, training = parse("--data_path d.json --output_dir OUT --use_cpu True", tmp_path)
    assert (model.version, model.mm_projector_type, model.mm_vision_select_layer) == ("v0", "linear", -1)
    assert (data.image_aspect_ratio, training.model_max_length, training.optim) == (
        "square",
        512,
        "adamw_torch",
    )
    assert (training.bits, training.lora_r, training.lora_alpha, training.lora_dropout) == (16, 64, 16, 0.05)
    assert (training.gate_supervision, training.gate_alpha) == ("all", 1.03)
    assert training.remove_unused_columns is False and training.mm_projector_lr is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--output_dir OUT", "--data_path"),
        ("--data_path d --output_dir OUT --bits 3", "--bits"),
        ("--data_path d --output_dir OUT --gate_supervision some", "--gate_supervision"),
        ("--data_path d --output_dir OUT --gate_alpha 0", "--gate_alpha"),
        ("--data_path d --output_dir OUT --gate_alpha nan", "--gate_alpha"),
        ("--data_path d --output_dir OUT --warmup_ratio 3", "--warmup_ratio"),
        ("--data_path d --output_dir OUT --lora_enable True --tune_visual_gates True", "exclude each other"),
        ("--data_path d --output_dir OUT --no_such_flag 1", "no_such_flag"),
    ],
)
def test_mistakes_are_named(line, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse(line + " --use_cpu True", tmp_path)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_half_precision_without_a_gpu_says_what_to_do(kind, tmp_path):
    with pytest.raises(ValueError, match=f"--{kind} True needs a GPU.* BF16=False.*--use_cpu True"):
        parse_arguments(["--data_path", "d", "--output_dir", str(tmp_path), f"--{kind}", "True"])
    *_, training = parse(f"--data_path d --output_dir OUT --{kind} True --use_cpu True", tmp_path)
    assert getattr(training, kind)


COMMANDS = {
    "llava.train.train": ["--output_dir", "OUT", "--use_cpu", "True"],
    "llava.train.train_mem": ["--output_dir", "OUT", "--use_cpu", "True", "--data_path", "nowhere.json"],
    "llava.train.fit_gates": ["--output_dir", "OUT", "--use_cpu", "True"],
    "dyvte.gates.fit": ["--output_dir", "OUT", "--use_cpu", "True", "--store", "nowhere"],
    "llava.train.sample": ["--output", "OUT/x.json", "--data-path", "nowhere.json"],
    "llava.train.store_states": [
        *(
            "--output",
            "OUT",
            "--data-path",
            "nowhere.json",
            "--model-path",
            "./nowhere",
            "--image-folder",
            ".",
        ),
    ],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_in_one_line(command, tmp_path, monkeypatch, capsys):
    flags = [word.replace("OUT", str(tmp_path)) for word in COMMANDS[command]]
    monkeypatch.setattr(sys, "argv", [command, *flags])
    monkeypatch.delitem(sys.modules, command, raising=False)  # or runpy warns
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(command, run_name="__main__")
    message = str(ended.value)
    assert message.startswith("python -m ") and "\n" not in message
    assert "nowhere" in message or "is missing" in message
