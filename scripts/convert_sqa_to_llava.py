"""ScienceQA as data for LLaVA's training:

python scripts/convert_sqa_to_llava.py convert_to_llava --base-dir ScienceQA/data/scienceqa \
    --prompt-format QCM-LEA --split train

reads ``problems.json`` and ``pid_splits.json`` in ``--base-dir`` and writes ``llava_{split}_{format}.json`` beside
them; ``convert_to_jsonl`` writes ``scienceqa_{split}_{format}.jsonl`` of instructions and outputs instead.
(The questions of the evaluation, ``llava_test_CQM-A.json``, have another form and come with LLaVA's eval.zip: keep
them in another folder.)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from convert_sqa_to_llava_base_prompt import build_prompt_chatbot

from dyvte.cli import run
from dyvte.io import read_json, write_json, write_whole

TASKS = {"convert_to_llava": "QCM-LEA", "convert_to_jsonl": "QCM-LEPA"}
"""Tasks with their default formats."""


def read_samples(base_dir: Path, split: str, prompt_format: str) -> list[tuple[dict[str, str], str, str]]:
    """``id`` (and ``image`` where there is one), question and answer of each problem of a split.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such split or format, or a problem is broken.
    """
    problems, splits = read_json(base_dir / "problems.json"), read_json(base_dir / "pid_splits.json")
    if split not in splits:
        raise ValueError(f"{base_dir / 'pid_splits.json'} has no split {split!r}, only {', '.join(splits)}.")
    samples = []
    for name, (question, answer) in build_prompt_chatbot(problems, splits[split], prompt_format).items():
        # The heading goes, and with it any other place that reads the same, as in LLaVA's data.
        if question.startswith("Question: "):
            question = question.replace("Question: ", "")
        if answer.startswith("Answer: "):
            answer = answer.replace("Answer: ", "")
        about = {"id": name}
        if problems[name].get("image") is not None:
            about["image"] = f"{name}/{problems[name]['image']}"
            question += "\n<image>"
        samples.append((about, question, answer))
    return samples


def convert(options: argparse.Namespace) -> None:
    """Write the split in the task's format: conversations, or instructions with their outputs."""
    prompt_format = options.prompt_format or TASKS[options.task]
    name = f"{options.split}_{prompt_format}"
    samples = read_samples(options.base_dir, options.split, prompt_format)
    if options.task == "convert_to_llava":
        rows = [
            {**about, "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]}
            for about, asked, answer in samples
        ]
        write_json(options.base_dir / f"llava_{name}.json", rows, indent=2)
    else:
        rows = [{**about, "instruction": asked, "output": answer} for about, asked, answer in samples]
        write_whole(
            options.base_dir / f"scienceqa_{name}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows)
        )
    print(f"Number of samples: {len(samples)}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Convert ScienceQA to LLaVA's training format.")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--base-dir", "--base_dir", type=Path, required=True)
    parser.add_argument("--split", required=True, help="a key of pid_splits.json")
    parser.add_argument("--prompt-format", "--prompt_format", help="default: QCM-LEA, for jsonl QCM-LEPA")
    run(parser, convert, arguments)


if __name__ == "__main__":
    main()
