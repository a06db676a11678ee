"""The benchmark and gate-training scripts on a checkpoint of transformers' own classes."""

from __future__ import annotations

import json
import subprocess
import sys

from dyvte.report.record import ResultRecord
from tests.scripts.test_end_to_end import ROOT, bash


def test_gqa_and_gates_of_llava_next(llava_next, tmp_path):
    write = [sys.executable, "-m", "dyvte.tiny.sets", "--out", tmp_path, "--questions", 8, "--only", "gqa"]
    subprocess.run([str(word) for word in write], check=True, cwd=ROOT, capture_output=True)
    settings = {"MODEL": llava_next, "DATA": tmp_path / "gqa", "BATCH_SIZE": 4, "DEVICE": "cpu"}
    bash("v1_5/eval/gqa.sh", **settings, OUT=tmp_path / "none", VERIFY_EVERY=4)
    record = ResultRecord.read(tmp_path / "none/record.json")
    assert record.num_samples >= 8 and record.batch_check["differ"] == 0
    (by,) = record.answered
    assert by.run.family == "llava_next" and by.run.processor["image_grid_pinpoints"]
    assert record.settings["conv_mode"] == by.run.template
    assert by.run.template.startswith("its own (")
    questions = [json.loads(line) for line in (tmp_path / "gqa/llava_gqa_testdev_balanced.jsonl").open()]
    records = [
        {
            "id": row["question_id"],
            "image": row["image"],
            "conversations": [
                {"from": "human", "value": "<image>\n" + row["text"]},
                {"from": "gpt", "value": "red"},
            ],
        }
        for row in questions[:4]
    ]
    (tmp_path / "gates.json").write_text(json.dumps(records))
    training = {
        "NPROC": 1,
        "GLOBAL_BATCH": 4,
        "BATCH": 2,
        "BF16": False,
        "WORKERS": 0,
        "DATA": tmp_path / "gates.json",
    }
    bash(
        "v1_5/finetune_visual_gate.sh",
        "--use_cpu",
        "True",
        MODEL=llava_next,
        OUTPUT=tmp_path / "gates",
        IMAGES=tmp_path / "gqa/data/images",
        **training,
    )
    described = json.loads((tmp_path / "gates/gates.json").read_text())
    assert described["model_family"] == "llava_next" and described["base_model"] == llava_next.name
    bash("v1_5/eval/gqa.sh", **settings, OUT=tmp_path / "dyvte", METHOD="dyvte", GATES=tmp_path / "gates")
    assert ResultRecord.read(tmp_path / "dyvte/record.json").num_samples == record.num_samples
