"""Answer a file of questions: ``questions.jsonl`` in, ``answers.jsonl`` out, in the order of the questions.

A run that was interrupted goes on where it stopped when it is started again with the same settings.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import shortuuid
from tqdm import tqdm

from llava.eval.answer import Answer, Answerer, Question
from llava.eval.options import add_method_arguments, open_answerer
from llava.eval.resume import AnswersFile, run_settings
from llava.mm_utils import get_model_name_from_path, load_image

logger = logging.getLogger(__name__)


def split_list(lst: Sequence, n: int) -> list:
    """Consecutive pieces of equal length, rounded up; there may be fewer than ``n``."""
    size = max(1, math.ceil(len(lst) / n))
    return [lst[i : i + size] for i in range(0, len(lst), size)]


def get_chunk(lst: Sequence, n: int, k: int) -> Sequence:
    """The ``k``-th of ``n`` pieces; empty when :func:`split_list` makes fewer."""
    if n < 1 or not 0 <= k < n:
        raise ValueError(f"--chunk-idx {k} is not one of the {n} chunks 0..{n - 1}")
    pieces = split_list(lst, n)
    return pieces[k] if k < len(pieces) else []


def read_questions(path: str) -> list[dict[str, Any]]:
    """The questions of a JSON-lines file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the line that is not a question.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"question file not found: {file}")
    questions = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            question = json.loads(line)
            question["question_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}, line {number}: not a question with a question_id ({error})") from error
        questions.append(question)
    return questions


def prepare(row: dict[str, Any], image_folder: str) -> Question:
    """A row of the question file with its image, if it has one, loaded.

    Raises:
        ValueError, FileNotFoundError: naming the question, when its text or image is not usable.
    """
    name = f"question {row['question_id']!r}"
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} has no text")
    images = row.get("image") or []
    try:
        loaded = [
            load_image(image, image_folder) for image in ([images] if isinstance(images, str) else images)
        ]
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{name}: {error}") from error
    return Question(text, loaded)


def prepared_batches(rows: Sequence[dict], size: int, answerer: Answerer, folder: str) -> Iterator[tuple]:
    """(rows, prompts, pixels) of each batch; the next batch is read while the caller works on one."""

    def make(batch: Sequence[dict]):
        questions = [prepare(row, folder) for row in batch]
        prompts = []
        for row, question in zip(batch, questions, strict=True):
            try:
                prompts.append(answerer.prompt(question))
            except ValueError as error:
                raise ValueError(f"question {row['question_id']!r}: {error}") from error
        return batch, prompts, answerer.pixels(questions)

    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, batches[0]) if batches else None
        for following in [*batches[1:], None]:
            if coming is None:
                return
            ready = coming.result()
            coming = pool.submit(make, following) if following is not None else None
            yield ready


def eval_model(args: argparse.Namespace) -> None:
    """Answer the questions of this chunk that the answers file does not hold yet."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be positive, got {args.batch_size}")
    rows = get_chunk(read_questions(args.question_file), args.num_chunks, args.chunk_idx)
    model_name = get_model_name_from_path(args.model_path)
    conv_mode = args.conv_mode
    if "plain" in model_name and "finetune" not in model_name.lower() and "mmtag" not in conv_mode:
        conv_mode += "_mmtag"
        logger.warning("a model named 'plain' is asked in conversation mode %s", conv_mode)
    with AnswersFile(args.answers_file, run_settings(args), model_name, rows) as answers:
        remaining = rows[answers.kept :]
        if not remaining:
            return
        answerer = open_answerer(args, conv_mode)
        with tqdm(
            total=len(rows), initial=answers.kept, desc=Path(args.question_file).stem, unit="q"
        ) as progress:
            for batch, prompts, pixels in prepared_batches(
                remaining, args.batch_size, answerer, args.image_folder
            ):
                done = answerer.complete(prompts, pixels)
                answers.write([answer_line(*pair, model_name) for pair in zip(batch, done, strict=True)])
                progress.update(len(batch))


def answer_line(row: dict[str, Any], answer: Answer, model_name: str) -> dict[str, Any]:
    return {
        "question_id": row["question_id"],
        "prompt": row["text"],
        "text": answer.text,
        "answer_id": shortuuid.uuid(),
        "model_id": model_name,
        "metadata": answer.metadata,
    }


def build_parser(max_new_tokens: int = 128) -> argparse.ArgumentParser:
    """LLaVA's flags, and those of the exit method."""
    parser = argparse.ArgumentParser(description="Answer a JSON-lines file of questions about images.")
    parser.add_argument("--model-path", type=str, default="facebook/opt-350m")
    parser.add_argument("--model-base", type=str, default=None)
    parser.add_argument("--image-folder", type=str, default="")
    parser.add_argument("--question-file", type=str, default="tables/question.jsonl")
    parser.add_argument("--answers-file", type=str, default="answer.jsonl")
    parser.add_argument("--conv-mode", type=str, default="llava_v1")
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--top_p", type=float, default=None)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, default=max_new_tokens)
    parser.add_argument("--batch-size", type=int, default=1, help="questions answered together")
    add_method_arguments(parser)
    return parser


def run(parser: argparse.ArgumentParser, action, argv: Sequence[str] | None = None) -> None:
    """Run a command line; what a person can put right is told in one line, without a traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    args = parser.parse_args(argv)
    try:
        action(args)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run(build_parser(), eval_model)
