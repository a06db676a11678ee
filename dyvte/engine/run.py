"""What the command lines that answer a file of questions share: chunks, batches, and the answers file.

A run that was interrupted goes on where it stopped when it is started again with the same settings. Flags that LLaVA
has keep its names.

Called from :mod:`dyvte.bench`, :mod:`dyvte.engine`, :mod:`dyvte.report`, :mod:`dyvte.study` and :mod:`llava.eval`.
"""

from __future__ import annotations

import argparse
import math
import os
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from dyvte.decoding.sharding import in_step
from dyvte.engine.answer import Answer, Answerer
from dyvte.engine.answers_file import AnswersFile, describe_run, has_checkpoints
from dyvte.engine.model import Batch, ChatModel, model_name_of
from dyvte.engine.options import add_model_arguments, open_answerer
from dyvte.engine.questions import Item, QuestionFormat, check_items, naming, naming_all, prepare
from dyvte.engine.shards import SHARD_MODEL
from dyvte.engine.video import VideoFile
from dyvte.io import check_output


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


def default_workers() -> int:
    """Threads that read images where nobody says how many: a core is left to the model, and four keep a GPU busy."""
    return max(1, min(4, (os.cpu_count() or 1) - 1))


def worker_count(text: str) -> int:
    """A number of workers from the command line.

    Raises:
        argparse.ArgumentTypeError: it is no such number.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers: give 0 or more")
    return int(text)


def prepared_batches(
    items: Sequence[Item], size: int, chat: ChatModel, folder: str, workers: int | None = None
) -> Iterator[tuple[Sequence[Item], Batch]]:
    """Items in batches, in order; the next batches are read while the caller works on one.

    Args:
        workers: threads that read images and preprocess them, each a batch at a time; as many batches wait at most.
            0: the caller reads each batch itself. Threads, not processes: decoding and resizing images leave Python's
            lock to others, and a batch need not be copied from another process.

    Raises:
        FileNotFoundError, ValueError: naming the question whose text or image is not usable.
    """

    def make(span: tuple[int, int]) -> tuple[Sequence[Item], Batch]:
        batch = items[slice(*span)]
        questions = [prepare(item, folder) for item in batch]
        prompts = []
        for item, question in zip(batch, questions, strict=True):
            with naming(item):
                prompts.append(chat.prompt(question))
        return batch, chat.batch(prompts, [image for question in questions for image in question.images])

    workers = default_workers() if workers is None else workers
    spans = spans_of(items, size, chat.mixes_videos)
    if not workers:
        yield from map(make, spans)
        return
    coming: deque[Future[tuple[Sequence[Item], Batch]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for span in spans:
            coming.append(pool.submit(make, span))
            if len(coming) > workers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:  # also where a batch fails, or the caller takes no more
        pool.shutdown(cancel_futures=True)


def spans_of(items: Sequence[Item], size: int, mixes_videos: bool) -> Iterator[tuple[int, int]]:
    """Start and end of each batch of at most ``size`` items; none has videos and images unless they may be mixed."""
    if mixes_videos:
        yield from ((start, min(start + size, len(items))) for start in range(0, len(items), size))
        return
    start, seen = 0, set[bool]()
    for at, item in enumerate(items):
        own = {isinstance(image, VideoFile) for image in item.images}
        if at - start == size or len(seen | own) > 1 and at > start:
            yield start, at
            start, seen = at, set()
        seen |= own
    if start < len(items):
        yield start, len(items)


def answer_items(args: argparse.Namespace, items: Sequence[Item], template: str | None = None) -> None:
    """Answer the questions of this chunk that the answers file does not hold yet.

    Args:
        template: instead of ``args.conv_mode``.

    With ``--verify-every N`` and batches, every N-th question is asked a second time, alone; its metadata then holds
    that answer as ``batch1_text``. With ``--shard-model`` this is one of several processes, a chunk each, which
    share the model (:mod:`dyvte.engine.shards` starts them); one without questions helps the others.

    Raises:
        FileNotFoundError, ValueError: before the model is loaded where that can be known; what was answered is kept,
            and answers of another run are not touched.
    """
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be positive, got {args.batch_size}")
    if args.shard_model and args.num_chunks < 2:
        raise ValueError(
            "--shard-model takes several processes, each with a chunk of the questions: start the command as "
            "`python -m dyvte.engine.shards OUT --chunks N -- python -m ... --shard-model`"
        )
    check_output(args.answers_file, args.question_file, "--answers-file and --question-file")
    items = get_chunk(items, args.num_chunks, args.chunk_idx)
    check_items(items, args.image_folder)
    model_name, template = model_name_of(args.model_path), template or args.conv_mode
    # what a name on the Hub stands for is known once it is downloaded
    answerer = None if has_checkpoints(args) else open_answerer(args, template)
    with AnswersFile(args.answers_file, describe_run(args), model_name, items) as answers:
        remaining = items[answers.kept :]
        if not remaining and not args.shard_model:
            return
        answerer = answerer or open_answerer(args, template)
        bar = tqdm(total=len(items), initial=answers.kept, desc=answers.path.stem, unit="q")
        with in_step(answerer.model), bar as progress:
            batches = prepared_batches(
                remaining, args.batch_size, answerer.chat, args.image_folder, args.workers
            )
            for number, (asked, batch) in enumerate(batches):
                with naming_all(asked):
                    done = answerer.complete(batch)
                if args.batch_size > 1 and args.verify_every:
                    done = _verified(answerer, asked, done, args, answers.kept + number * args.batch_size)
                answers.write([answer_line(*pair, model_name) for pair in zip(asked, done, strict=True)])
                progress.update(len(asked))


def _verified(
    answerer: Answerer, asked: Sequence[Item], done: list[Answer], args: argparse.Namespace, first: int
) -> list[Answer]:
    """The answers, every ``verify_every``-th with what the same question asked alone is answered."""
    checked = list(done)
    for place, item in enumerate(asked):
        report = done[place].report
        if (first + place) % args.verify_every == 0 and report is not None:
            (alone,) = answerer.ask([prepare(item, args.image_folder)])
            checked[place] = replace(done[place], report=replace(report, batch1_text=alone.text))
    return checked


def answer_line(item: Item, answer: Answer, model_name: str) -> dict[str, Any]:
    """A line of LLaVA's answers files."""
    return {
        **item.head,
        "text": answer.text,
        "answer_id": uuid.uuid4().hex,
        "model_id": model_name,
        "metadata": answer.report.as_dict() if answer.report else {},
    }


def question_parser(questions: QuestionFormat, description: str = "") -> argparse.ArgumentParser:
    """LLaVA's flags, those of the question format, and those of the exit method."""
    parser = argparse.ArgumentParser(description=description or questions.description)
    parser.add_argument("--image-folder", type=os.path.expanduser, default="")
    parser.add_argument("--question-file", type=os.path.expanduser, default=questions.question_file)
    parser.add_argument("--answers-file", type=os.path.expanduser, default="answer.jsonl")
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=1, help="questions answered together")
    parser.add_argument(
        "--verify-every",
        type=int,
        default=0,
        metavar="N",
        help="with batches, ask every N-th question alone as well; results say how many answers differ",
    )
    parser.add_argument(
        "--workers",
        type=worker_count,
        metavar="N",
        help="threads that read and preprocess images while the model answers; 0: none; default: one for each core "
        "but one, at most 4. Each holds a batch",
    )
    add_model_arguments(parser, questions.conv_mode, questions.max_new_tokens)
    parser.add_argument(
        SHARD_MODEL,
        action="store_true",
        help="under dyvte.engine.shards: the shards' processes share the decoder's layers, for a model larger than "
        "one GPU",
    )
    questions.add_flags(parser)
    return parser
