"""The eval scripts on the shipped Tiny-LLaVA, from data files to records and tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dyvte.report.record import ResultRecord, find_records

ROOT = Path(__file__).parents[2]
TINY = ROOT / "playground/tiny"


def bash(script, *arguments, **settings):
    plain = {**os.environ, "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name in ("CUDA_VISIBLE_DEVICES", "OUT", "DATA", "MODEL", "GATES", "THRESHOLD"):
        plain.pop(name, None)
    environment = plain | {key: str(value) for key, value in settings.items()}
    command = ["bash", str(ROOT / "scripts" / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def lines(path):
    """Answers without what no two runs share."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row.pop("answer_id")
        row["metadata"].pop("seconds")
    return rows


@pytest.mark.parametrize("name", ["gqa", pytest.param("mmbench", marks=pytest.mark.slow)])
def test_benchmark_on_the_shipped_model(name, tmp_path):
    write = [
        sys.executable,
        "-m",
        "dyvte.tiny.sets",
        "--out",
        str(tmp_path),
        "--questions",
        "12",
        "--only",
        name,
    ]
    subprocess.run(write, check=True, cwd=ROOT, capture_output=True)
    settings = {
        "MODEL": TINY / "model",
        "CONV_MODE": "vicuna_v1_nosys",
        "DATA": tmp_path / name,
        "BATCH_SIZE": 4,
    }
    script = f"v1_5/eval/{name}.sh"
    bash(script, **settings, OUT=tmp_path / "none", VERIFY_EVERY=5)
    bash(script, **settings, OUT=tmp_path / "dyvte", METHOD="dyvte", GATES=TINY / "gates", CHUNKS=2)
    baseline, dyvte = (ResultRecord.read(tmp_path / method / "record.json") for method in ("none", "dyvte"))
    assert baseline.num_samples == dyvte.num_samples >= 12
    assert baseline.exit_layers == {"none": baseline.num_samples} and baseline.remarks == 0
    assert baseline.batch_check == {"checked": -(-baseline.num_samples // 5), "differ": 0}
    assert dyvte.decoder_tflops < baseline.decoder_tflops and dyvte.mean_exit_layer < dyvte.num_layers
    # answers are kept: a second run asks nothing, and one with another batch size answers the same
    before = (tmp_path / "dyvte/merge.jsonl").read_text()
    bash(script, **settings, OUT=tmp_path / "dyvte", METHOD="dyvte", GATES=TINY / "gates", CHUNKS=2)
    assert (tmp_path / "dyvte/merge.jsonl").read_text() == before
    settings["BATCH_SIZE"] = 1
    bash(script, **settings, OUT=tmp_path / "one", METHOD="dyvte", GATES=TINY / "gates")
    one, four = lines(tmp_path / "one/merge.jsonl"), lines(tmp_path / "dyvte/merge.jsonl")
    assert [(row["question_id"], row["text"], row["metadata"]["exit_layer"]) for row in one] == [
        (row["question_id"], row["text"], row["metadata"]["exit_layer"]) for row in four
    ]


@pytest.mark.slow
def test_both_tables_on_tiny_llava(tmp_path):
    settings = {"OUT": tmp_path, "QUESTIONS": 28}
    done = bash("reproduce/tiny.sh", **settings)
    assert len(find_records([tmp_path / "results"])) == 18
    for table in ("table1", "table2"):
        rows = (tmp_path / f"tables/{table}.md").read_text()
        assert "Baseline" in rows and "DyVTE" in rows and "| - " not in rows
    assert (tmp_path / "tables/exits.png").stat().st_size > 1000 and "done in" in done.stdout
