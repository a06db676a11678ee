"""Grade MM-Vet answers with a language model, as MM-Vet's own evaluator asks it.

OPENAI_API_KEY=... python -m dyvte.benchmarks.judge --data-dir DIR --answers FILE --prompt-file mm-vet_evaluator.py

Judge: OPENAI_BASE_URL (any endpoint in OpenAI's form), OPENAI_API_KEY, MMVET_JUDGE_MODEL (default: gpt-4-0613). The
instruction it is given is not part of this project: --prompt-file is MM-Vet's mm-vet_evaluator.py, or a text file
with the value of its variable `prompt`. Grades are saved after each answer, and replies in a file that all runs
share: a run started again, of more rounds, or of other answers, pays only for requests that were never sent.

``scripts/v1_5/eval/mmvet.sh`` runs it. Messages to the judge must stay byte for byte those of MM-Vet's evaluator.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dyvte.benchmarks import mmvet
from dyvte.benchmarks import mmvet_grades as grading
from dyvte.benchmarks.endpoint import Endpoint, Reply, ReplyStore
from dyvte.cli import run
from dyvte.io import write_whole

DEFAULT_MODEL = "gpt-4-0613"
DEFAULT_ROUNDS = 5
STORE = "judge_replies.sqlite"
MOST_TRIES = 5  # as in MM-Vet's evaluator, like the text below
ASK_FOR_DIGIT = "\nPredict the correctness of the answer (digit): "
OFFICIAL_SHA256 = "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"
"""Of the instruction in MM-Vet's mm-vet_evaluator.py, the same since its first version."""


def read_instruction(path: Path | None) -> str:
    """The judge's instruction, from MM-Vet's evaluator itself or from a text file, byte for byte.

    Raises:
        FileNotFoundError: there is no such file; says where to get it.
        ValueError: the file is no text, is empty, or is a Python file without a string named `prompt`.
    """
    where = (
        "it is mm-vet_evaluator.py of github.com/yuweihao/MM-Vet (or a text file with its variable `prompt`)"
    )
    if path is None or not path.is_file():
        raise FileNotFoundError(f"No judge's instruction at --prompt-file {path or '(not given)'}: {where}.")
    try:
        text = path.read_bytes().decode("utf-8")
        text = _prompt_variable(text) if path.suffix == ".py" else text
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {where}.") from None
    if not text.strip():
        raise ValueError(f"{path} holds no instruction for the judge; {where}.")
    return text


def _prompt_variable(code: str) -> str:
    """The string assigned to ``prompt`` in Python code, which is not run; empty when there is none."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [getattr(target, "id", "") for target in node.targets]
            if names == ["prompt"] and isinstance(node.value.value, str):
                return node.value.value
    return ""


def message_of(instruction: str, sample: dict[str, Any], prediction: str) -> str:
    """What the judge is asked about one answer: the instruction, and a table row that ends before its last cell."""
    truth = sample["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return instruction + "\n" + " | ".join([sample["question"], truth, prediction, ""])


def grade_answer(store: ReplyStore, message: str, round_index: int) -> tuple[Reply, float]:
    """The reply that is kept, and its score. A reply that does not begin with a number between 0 and 1 is asked for
    again, at temperatures 0, 0.5, 1, ...; after ``MOST_TRIES`` the score is 0.

    As in the official evaluator, one last reply is then asked for and kept, but its score is not read.
    """
    reply = store.ask(message, 0.0, round_index)
    for tries in range(MOST_TRIES):
        value = grading.parse_score(reply.content)
        if value is not None:
            return Reply(reply.model, (reply.content or "").split(" ")[0].strip()), value
        reply = store.ask(message + ASK_FOR_DIGIT, 0.5 * tries, round_index)
    return reply, 0.0


def grade(
    samples: mmvet.Samples,
    texts: dict[str, str],
    instruction: str,
    store: ReplyStore,
    path: Path,
    rounds: int,
) -> grading.Grades:
    """Grade all samples ``rounds`` times, round by round. Grades in ``path`` are kept; each new one is saved at once.

    A sample without an answer gets 0; the judge is not asked.
    """
    grades = grading.read_grades(path) if path.is_file() else {}
    for round_index in range(rounds):
        progress = tqdm(samples.items(), f"round {round_index + 1} of {rounds}", leave=False, disable=None)
        for key, sample in progress:
            entry = grades.setdefault(key, {"model": [], "content": [], "score": []})
            if len(entry["score"]) > round_index:
                continue
            reply, value = Reply("", ""), 0.0
            if key in texts:
                reply, value = grade_answer(store, message_of(instruction, sample, texts[key]), round_index)
            entry["model"].append(reply.model)
            entry["content"].append(reply.content)
            entry["score"].append(value)
            grading.write_grades(path, grades)
    return grades


def start_grades(path: Path, source: dict[str, str]) -> bool:
    """Remove the grades in ``path`` unless they come from ``source``, which is written beside them; True if removed.
    ValueError where the grades have no such file beside them.
    """
    sidecar = grading.source_path(path)
    if path.is_file() and not sidecar.is_file():
        raise ValueError(f"{path} is not from this command: move it away, or choose another --output-dir.")
    content = json.dumps(source, indent=1)
    if stale := sidecar.is_file() and sidecar.read_text(encoding="utf-8") != content:
        path.unlink(missing_ok=True)
    write_whole(sidecar, content)
    return stale


def judge(options: argparse.Namespace) -> None:
    """Grade an answers file; write the grades and the official tables."""
    if options.rounds < 1:
        raise ValueError(f"--rounds {options.rounds} must be at least 1.")
    instruction = read_instruction(options.prompt_file)
    samples = mmvet.read_samples(options.data_dir)
    predictions = mmvet.predictions_for(options.data_dir, options.answers)
    model = os.environ.get("MMVET_JUDGE_MODEL") or DEFAULT_MODEL
    endpoint = Endpoint(model)
    digest = hashlib.sha256(instruction.encode()).hexdigest()
    if digest != OFFICIAL_SHA256:
        print("The judge's instruction is not MM-Vet's own: grades may not compare with published ones.")

    folder = options.output_dir or options.answers.parent / mmvet.GRADES
    name = options.name or default_name(options.answers)
    path = grading.grade_path(folder, name, model, options.rounds)
    source = {"model": name, "answers_sha256": mmvet.fingerprint(predictions.texts)}
    source |= {"instruction_sha256": digest, "judge": model}
    store = ReplyStore(options.store or options.data_dir / STORE, endpoint)
    with store.lock:
        if start_grades(path, source):
            print(f"{path} held grades of other answers or by another instruction: graded anew.")
        grades = grade(samples, predictions.texts, instruction, store, path, options.rounds)

    totals = grading.aggregate(
        {key: sample["capability"] for key, sample in samples.items()}, grades, options.rounds
    )
    for file, row in zip(grading.csv_paths(path), totals.rows, strict=True):
        write_whole(file, grading.csv_text(name, row))
    print(f"{totals.report(name)}\nGrades: {path}")


def default_name(answers: Path) -> str:
    """The model's name: that of the answers file, or of its folder when answers were merged there."""
    return answers.resolve().parent.name if answers.stem == "merge" else answers.stem


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dyvte.benchmarks.judge",
        description="Grade MM-Vet answers. Environment: OPENAI_API_KEY, OPENAI_BASE_URL, MMVET_JUDGE_MODEL.",
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="MM-Vet's folder")
    parser.add_argument("--answers", type=Path, required=True, help="answers in LLaVA's JSON lines")
    parser.add_argument(
        "--prompt-file", type=Path, help="MM-Vet's mm-vet_evaluator.py, or its prompt as text"
    )
    parser.add_argument(
        "--output-dir", type=Path, help="default: grades/ beside the answers, where scoring looks"
    )
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS, help="how often each answer is graded")
    parser.add_argument("--name", help="of the model in file names; default: from the answers file")
    parser.add_argument("--store", type=Path, help=f"replies paid for (default: {STORE} in the data folder)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    run(build_parser(), judge, arguments)


if __name__ == "__main__":
    main()
