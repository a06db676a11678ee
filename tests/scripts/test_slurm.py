"""The jobs for Slurm, with stand-ins for srun, scontrol and the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.train.arguments import parse_arguments

ROOT = Path(__file__).parents[2]
SRUN = """#!/usr/bin/env bash
# runs its command once for each task
while [[ $1 == --* ]]; do shift; done
status=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_NODEID=$task "$@" || status=$?
done
exit "$status"
"""
SCONTROL = """#!/usr/bin/env bash
[[ $* == "show hostnames nodes[7-8]" ]] && printf 'nodes7\\nnodes8\\n'
"""
PYTHON = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
arguments = sys.argv[1:]
failed = "--shards" in arguments and arguments[arguments.index("--shards") + 1] == os.environ.get("FAIL")
sys.exit(failed)
"""


@pytest.fixture
def job(tmp_path):
    """Run a job as sbatch does: a copy of the script, in the folder of the project. Gives its end and all calls."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("interpreter", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(name: str, *arguments: str, where: Path = ROOT, **settings: str):
        copy = tmp_path / "slurm_script"
        copy.write_text((ROOT / f"scripts/slurm/{name}.sh").read_text())
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "PYTHON": str(tmp_path / "interpreter"),
            "SLURM_JOB_ID": "1234567",
            "SLURM_JOB_NODELIST": "nodes[7-8]",
            "SLURM_NNODES": "2",
            **settings,
        }
        (tmp_path / "calls").write_text("")
        command = ["bash", str(copy), *arguments]
        done = subprocess.run(
            command, cwd=where, env=environment, capture_output=True, text=True, check=False
        )
        return done, [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return run


def flag(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


@pytest.mark.parametrize("train", ["", "finetune.sh"])
def test_training_starts_one_launcher_on_each_node(job, train, tmp_path):
    settings = {
        "NPROC": "8",
        "BF16": "False",
        "DEEPSPEED": "",
        "OUTPUT": str(tmp_path / "out"),
        "MODEL": "a b",
    }
    done, calls = job("train_gates", "--use_cpu", "True", SLURM_NTASKS="2", TRAIN=train, **settings)
    assert done.returncode == 0, done.stderr
    assert [flag(call, "--node_rank") for call in calls] == ["0", "1"]
    for call in calls:
        assert flag(call, "--nnodes") == "2" and flag(call, "--nproc_per_node") == "8"
        assert flag(call, "--master_addr") == "nodes7" and flag(call, "--master_port") == "24567"
        model, _, training = parse_arguments(call[call.index("llava.train.train_mem") + 1 :])
        assert model.model_name_or_path == "a b" and model.tune_visual_gates is (not train)
        if not train:
            assert training.gradient_accumulation_steps * training.per_device_train_batch_size * 16 == 128


def test_evaluation_answers_a_shard_in_each_task_and_then_merges(job, tmp_path):
    settings = {"SLURM_NTASKS": "4", "OUT": str(tmp_path / "out"), "MODEL": "a/model"}
    done, calls = job("evaluate", "gqa", "--dtype", "bfloat16", **settings)
    assert done.returncode == 0, done.stderr
    sharded = [call for call in calls if call[1] == "dyvte.engine.shards"]
    assert [flag(call, "--shards") for call in sharded] == ["0", "1", "2", "3", "none"]
    assert {flag(call, "--chunks") for call in sharded} == {"4"}
    assert {flag(call, "--dtype") for call in sharded} == {"bfloat16"}
    assert sum(call[1] == "dyvte.report.record" for call in calls) == 1
    done, calls = job("evaluate", "gqa", FAIL="2", **settings)
    assert done.returncode != 0
    shards = [flag(call, "--shards") for call in calls if "--shards" in call]
    assert shards == ["0", "1", "2", "3"], "a failed shard leaves the others, and nothing is merged"


@pytest.mark.parametrize("arguments", [["train_gates"], ["evaluate", "gqa"]], ids=str)
def test_a_job_from_another_folder_says_so(job, arguments, tmp_path):
    done, calls = job(*arguments, where=tmp_path, SLURM_NTASKS="2")
    assert done.returncode == 2 and not calls and "call sbatch in the project's folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1
