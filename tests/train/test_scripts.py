"""The training scripts: from any folder, with every setting from the environment, to flags that parse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.train.arguments import parse_arguments

SCRIPTS = Path(__file__).parents[2] / "scripts" / "v1_5"


@pytest.fixture
def run_script(tmp_path):
    """Run a script with an interpreter that only writes its arguments down."""
    recorder = tmp_path / "recorder"
    recorder.write_text(
        f'#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], open("{tmp_path}/args", "w"))'
    )
    recorder.chmod(0o755)

    def _run(name: str, *more: str, check: bool = True, **environment: str) -> list[str]:
        clean = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        clean |= {"PYTHON": str(recorder), "NPROC": "2", "BF16": "False", **environment}
        subprocess.run(
            ["bash", str(SCRIPTS / name), *more],
            cwd=tmp_path,
            env=clean,
            check=check,
            capture_output=True,
            timeout=60,
        )
        return json.loads((tmp_path / "args").read_text())

    return _run


def flags(arguments: list[str]) -> list[str]:
    return arguments[arguments.index("llava.train.train_mem") + 1 :]


@pytest.mark.parametrize("name", ["pretrain", "finetune", "finetune_lora", "finetune_visual_gate"])
def test_flags_parse(name, run_script, tmp_path):
    arguments = run_script(
        f"{name}.sh", "--use_cpu", "True", DEEPSPEED="", OUTPUT=str(tmp_path / "out"), MODEL="a b", LR="5e-3"
    )
    assert arguments[:2] == ["-m", "torch.distributed.run"]
    assert arguments[arguments.index("--nproc_per_node") + 1] == "2"
    model, data, training = parse_arguments(flags(arguments))
    assert model.model_name_or_path == "a b" and training.learning_rate == 5e-3 and data.data_path
    assert model.tune_mm_mlp_adapter is (name == "pretrain")
    assert training.lora_enable is (name == "finetune_lora")
    assert model.tune_visual_gates is (name == "finetune_visual_gate")
    assert training.get_warmup_steps(1000) == 30


def test_deepspeed_is_a_choice(run_script):
    assert "scripts/zero3.json" in run_script("finetune.sh")
    assert "--deepspeed" not in run_script("finetune.sh", DEEPSPEED="")
    assert "--deepspeed" not in run_script("finetune_visual_gate.sh")
    assert "scripts/zero2.json" in run_script("finetune_visual_gate.sh", DEEPSPEED="scripts/zero2.json")


def test_gate_training_keeps_the_papers_settings(run_script, tmp_path):
    for processes, batch, accumulation in (("1", "16", 8), ("2", "16", 4), ("8", "16", 1), ("16", "16", 1)):
        arguments = run_script("finetune_visual_gate.sh", NPROC=processes, BATCH=batch)
        model, _, training = parse_arguments(
            [*flags(arguments), "--use_cpu", "True", "--output_dir", str(tmp_path)]
        )
        together = (
            int(processes) * training.per_device_train_batch_size * training.gradient_accumulation_steps
        )
        assert together == 128 and training.gradient_accumulation_steps == accumulation
        assert (training.learning_rate, training.num_train_epochs, training.gate_alpha) == (4e-5, 1, 1.03)
        assert training.lr_scheduler_type == "cosine" and training.gate_supervision == "all"
        assert model.visual_gates is None
    assert "g" in run_script("finetune_visual_gate.sh", GATES="g")


def test_a_batch_that_does_not_divide_is_refused(run_script):
    run_script("finetune_visual_gate.sh")
    with pytest.raises(subprocess.CalledProcessError) as error:
        run_script("finetune_visual_gate.sh", GLOBAL_BATCH="100")
    assert error.value.returncode == 2 and b"GLOBAL_BATCH" in error.value.stderr
