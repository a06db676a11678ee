"""ScienceQA as data for LLaVA's training:

python scripts/convert_sqa_to_llava.py convert_to_llava --base-dir ScienceQA/data/scienceqa \
    --prompt-format QCM-LEA --split train

reads ``problems.json`` and ``pid_splits.json`` in ``--base-dir`` and writes ``llava_{split}_{format}.json`` beside
them; ``convert_to_jsonl`` writes ``scienceqa_{split}_{format}.jsonl`` of instructions and outputs instead.
(The questions of the evaluation, ``llava_test_CQM-A.json``, have another form and come with LLaVA's eval.zip: keep
them in another folder.)

A format such as ``QCM-LEA`` names what stands in the question and in the answer, in order: Q question, C context
(the hint), M multiple choice, L lecture, E explanation (the solution), A answer; P puts lecture and explanation into
lines of their own. In questions, lecture and explanation stand after ``BECAUSE:``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dyvte.cli import run
from dyvte.io import read_json, write_json, write_whole

TASKS = {"convert_to_llava": "QCM-LEA", "convert_to_jsonl": "QCM-LEPA"}
"""Tasks with their default formats."""
OPTIONS = ("A", "B", "C", "D", "E")
INPUT_FORMATS = ("CQM", "QCM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUT_FORMATS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")

# LLaVA's converter has the two texts the wrong way round here; data made with it, and so these, keep that.
_SWAPPED = {"AL": "AE", "AE": "AL"}


def read_samples(base_dir: Path, split: str, prompt_format: str) -> list[tuple[dict[str, str], str, str]]:
    """``id`` (and ``image`` where there is one), question and answer of each problem of a split.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such split or format, or a problem is missing or lacks a field.
    """
    problems, splits = read_json(base_dir / "problems.json"), read_json(base_dir / "pid_splits.json")
    if split not in splits:
        raise ValueError(f"{base_dir / 'pid_splits.json'} has no split {split!r}, only {', '.join(splits)}.")
    input_format, _, output_format = prompt_format.partition("-")
    if input_format not in INPUT_FORMATS or output_format not in OUTPUT_FORMATS:
        raise ValueError(
            f"unknown format {prompt_format!r}: join one of {', '.join(INPUT_FORMATS)} "
            f"and one of {', '.join(OUTPUT_FORMATS)} by a hyphen"
        )
    samples = []
    for name in dict.fromkeys(splits[split]):
        try:
            problem = problems[name]
            question, answer = input_of(problem, input_format), output_of(problem, output_format)
        except (KeyError, IndexError, AttributeError) as error:
            missing = f"problem {name!r} is missing, or lacks a field or an option ({error!r})"
            raise ValueError(missing) from None
        # The heading goes, and with it any other place that reads the same, as in LLaVA's data.
        if question.startswith("Question: "):
            question = question.replace("Question: ", "")
        if answer.startswith("Answer: "):
            answer = answer.replace("Answer: ", "")
        about = {"id": name}
        if problem.get("image") is not None:
            about["image"] = f"{name}/{problem['image']}"
            question += "\n<image>"
        samples.append((about, question, answer))
    return samples


def input_of(problem: dict[str, Any], letters: str) -> str:
    """The question, a line for each part."""
    reasons = _reasons_of(problem)
    choices = " ".join(f"({OPTIONS[place]}) {choice}" for place, choice in enumerate(problem["choices"]))
    lines = {
        "Q": f"Question: {problem['question']}",
        "C": f"Context: {problem['hint'].strip() or 'N/A'}",
        "M": f"Options: {choices}",
        "B": "BECAUSE: " + " ".join(reasons[letter] for letter in letters if letter in reasons),
    }
    order = letters.replace("LE", "B").replace("L", "B").replace("E", "B")
    return _tidy("\n".join(lines[letter] for letter in order) + "\n")


def output_of(problem: dict[str, Any], letters: str) -> str:
    """The answer."""
    reasons, letter = _reasons_of(problem), OPTIONS[problem["answer"]]
    if letters == "LEPA":
        parts = (("LECTURE", reasons["L"]), ("SOLUTION", reasons["E"]))
        lines = [f"{title}: {text}" for title, text in parts if text.strip()]
        return _tidy("\n".join([*lines, "###", f"ANSWER: {letter}."]))
    letters = _SWAPPED.get(letters, letters)
    because = " BECAUSE:" if letters[0] == "A" and len(letters) > 1 else ""
    texts = {**reasons, "A": f"The answer is {letter}.{because}"}
    return _tidy("Answer: " + " ".join(texts[letter] for letter in letters))


def _reasons_of(problem: dict[str, Any]) -> dict[str, str]:
    """Lecture and explanation; line breaks spelt as backslash and n become real ones."""
    fields = {"L": "lecture", "E": "solution"}
    return {letter: problem[field].replace("\\n", "\n") for letter, field in fields.items()}


def _tidy(text: str) -> str:
    """Pairs of blanks as one, and no ``BECAUSE:`` without a reason."""
    text = text.replace("  ", " ").strip()
    return text.replace("BECAUSE:", "").strip() if text.endswith("BECAUSE:") else text


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
