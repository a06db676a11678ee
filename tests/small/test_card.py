"""The card says what the files say, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

from dyvte.small.card import card
from dyvte.small.knowledge import QUESTIONS


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def state(done: int) -> dict:
    losses = [{"loss": str(3 - step / 10), "step": step} for step in range(1, done + 1)]
    return {"global_step": done, "max_steps": 40, "log_history": [*losses, {"train_runtime": 1.0}]}


def test_what_was_not_done_is_said(tmp_path):
    text = card(tmp_path, "a test machine")
    assert "On a test machine." in text
    assert text.count("not begun") == 2 and text.count("Not measured yet.") == 2


def test_figures_are_those_of_the_files(tmp_path):
    write(tmp_path / "projector/trainer_state.json", state(20))
    write(tmp_path / "lora/checkpoint-10/trainer_state.json", state(10))
    write(tmp_path / "lora/checkpoint-12/trainer_state.json", state(12))
    ways = {
        way: {"digit_at": value, "mean": value}
        for way, value in (("image", 60.0), ("blind", 20.0), ("0", 21.5))
    }
    write(tmp_path / "accuracy.json", {"questions": 7, "layers": 1, "accuracy": ways})
    before = dict.fromkeys(QUESTIONS, "Paris")
    write(tmp_path / "knowledge.json", {"base": before, "model": {**before, "What is two plus two?": "4"}})
    text = card(tmp_path, "a test machine")
    assert "| captions: the projector alone | 20 | 40 | 2.450 | 1.450 |" in text
    assert "| conversations: LoRA adapters and the projector | 12 | 40 | 2.450 | 2.250 |" in text
    assert "on 7 held-out questions" in text and "60.0 with the image, 20.0 blind" in text
    assert "| digit_at | 60.0 | 20.0 | 21.5 |" in text
    assert "| What is two plus two? | ✗ Paris | 4 |" in text and "| right | 1 of 20 | 2 of 20 |" in text
