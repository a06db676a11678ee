"""The scripts on a trained model of transformers' own classes: a benchmark, gate training, a figure."""

from __future__ import annotations

import json
import subprocess
import sys

from dyvte.report.record import ResultRecord
from tests.scripts.test_end_to_end import ROOT, bash


def module(name, *flags):
    command = [sys.executable, "-m", name, *map(str, flags)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)


def test_benchmark_gates_and_figure_of_llava_next(tiny_next, tmp_path):
    module("dyvte.tiny.sets", "--out", tmp_path, "--questions", 24, "--only", "gqa")
    module("dyvte.tiny.data", "--out", tmp_path / "train", "--scenes", 48, "--processes", 1)
    settings = {"MODEL": tiny_next, "DATA": tmp_path / "gqa", "BATCH_SIZE": 8, "DEVICE": "cpu"}
    bash("v1_5/eval/gqa.sh", **settings, OUT=tmp_path / "none", VERIFY_EVERY=8)
    baseline = ResultRecord.read(tmp_path / "none/record.json")
    assert baseline.num_samples >= 24 and baseline.batch_check["differ"] == 0
    assert baseline.score > 75  # it is trained: answers are right
    (by,) = baseline.answered
    assert by.run.family == "llava_next" and len(by.run.processor["image_grid_pinpoints"]) == 2
    assert baseline.settings["conv_mode"] == by.run.template and by.run.template.startswith("its own (")

    fresh, gates = tmp_path / "fresh", tmp_path / "gates"
    module("init_weight", "--model-path", tiny_next, "--output", fresh, "--width", 32, "--gain", 0.1)
    training = {"NPROC": 1, "GLOBAL_BATCH": 16, "BATCH": 16, "BF16": False, "WORKERS": 0, "LR": "3e-3"}
    data = {"DATA": tmp_path / "train/finetune.json", "IMAGES": tmp_path / "train/images", "GATES": fresh}
    more = ["--use_cpu", "True", "--num_train_epochs", "2"]
    bash("v1_5/finetune_visual_gate.sh", *more, MODEL=tiny_next, OUTPUT=gates, **data, **training)
    described = json.loads((gates / "gates.json").read_text())
    assert described["model_family"] == "llava_next" and described["base_model"] == tiny_next.name

    bash("v1_5/eval/gqa.sh", **settings, OUT=tmp_path / "dyvte", METHOD="dyvte", GATES=gates)
    dyvte = ResultRecord.read(tmp_path / "dyvte/record.json")
    assert dyvte.num_samples == baseline.num_samples
    assert dyvte.decoder_tflops < 0.8 * baseline.decoder_tflops and dyvte.score > baseline.score - 25

    bash("reproduce/figure5.sh", tiny_next, OUT=tmp_path / "out", DATA_ROOT=tmp_path, GATES=gates, LIMIT=8)
    (figure,) = (tmp_path / "out/figures").rglob("figure5.png")
    assert figure.stat().st_size > 5000
