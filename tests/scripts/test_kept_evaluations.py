"""scripts/reproduce/common.sh: which evaluations are kept, and which run again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# a run notes itself, and leaves a record unless GRADED is empty
SCRIPT = """
source scripts/reproduce/common.sh
data_of() { echo "$PLACE/data"; }
run_evaluation() {
    echo "ran $method $config"
    mkdir -p "$folder"
    if [ -n "$GRADED" ]; then touch "$folder/record.json"; fi
}
evaluation "$PLACE/model" gqa "$PLACE/out" "$METHOD_NOW" "$SETTINGS" "$PLACE/gates"
"""


@pytest.fixture
def evaluate(tmp_path):
    for name in ("model", "data", "gates"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("1")

    def run(**settings) -> str:
        given = {"METHOD_NOW": "dyvte", "SETTINGS": "", "GRADED": "1", **settings}
        environment = {**os.environ, "PYTHON": sys.executable, "PLACE": str(tmp_path), **given}
        command = ["bash", "-euc", SCRIPT]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return run


def test_an_evaluation_is_kept_until_something_changes(evaluate, tmp_path):
    ran, kept = "ran dyvte", f"kept: {tmp_path / 'out'}"
    assert [evaluate(), evaluate()] == [ran, kept]
    assert evaluate(SETTINGS="k=3") == "ran dyvte k=3"
    for setting in ("THRESHOLD", "BATCH_SIZE", "CONV_MODE", "VERIFY_EVERY", "VARIANT", "CHUNKS"):
        assert [evaluate(**{setting: "7"}), evaluate(**{setting: "7"}), evaluate()] == [ran, kept, ran], (
            setting
        )
    for name in ("model", "data", "gates"):
        (tmp_path / name / "file").write_text("other")
        assert [evaluate(), evaluate()] == [ran, kept], name


def test_answers_without_a_record_are_not_done(evaluate, tmp_path):
    """Nobody has graded them yet, or the record was removed."""
    assert [evaluate(GRADED=""), evaluate(GRADED=""), evaluate(), evaluate()][:3] == ["ran dyvte"] * 3
    (tmp_path / "out" / "record.json").unlink()
    assert evaluate() == "ran dyvte"
