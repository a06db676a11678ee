"""Requests of many clients, answered by one thread in batches: one packed row of prompts, of which each exits at its
own layer and ends with its own answer.

Called by :mod:`llava.serve.api`. Within a batch every request has its own length, stops and client; what the sampler
needs (temperature, ``top_p``) is the same for all of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from dyvte.cost.layers import layer_costs
from dyvte.decoding.report import PrefillReport
from dyvte.engine.answer import Answerer
from dyvte.engine.model import Generation
from llava.serve.growing_text import GrowingText
from llava.serve.protocol import FAULT, ApiError, Measures, Usage

logger = logging.getLogger(__name__)

NO_CONTEXT = 1 << 20
"""Tokens, for models that name no longest prompt."""


@dataclass(frozen=True)
class Piece:
    """Some more of an answer; the last one says why it ended, and the usage."""

    text: str
    finish_reason: Literal["stop", "length"] | None = None
    usage: Usage | None = None


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
        prompt: in the model's template, with its images.
        generation: how to answer; ``max_new_tokens`` counts for this request alone.
        stops: texts that end the answer.
        send: called from the batching thread with each piece, or with the error that ends the answer.
        gone: set by whoever asked when the answer is no longer wanted.
    """

    prompt: str
    images: Sequence[Image.Image]
    generation: Generation
    stops: Sequence[str]
    send: Callable[[Piece | ApiError], None]
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def kind(self) -> tuple[float, float | None]:
        """Jobs of one kind may share a batch."""
        return self.generation.temperature, self.generation.top_p


class _Answer:
    """One job of the running batch."""

    def __init__(self, job: Job, text: GrowingText, ends: Sequence[int]) -> None:
        self.job, self.ended, self.begun = job, False, False
        self._text, self._ends, self._count = text, ends, 0
        self._limit = job.generation.max_new_tokens

    def start(self, prompt_tokens: int, measures: Measures | None, context: int) -> None:
        """The prefill is done."""
        self._prompt_tokens, self._measures = prompt_tokens, measures
        self._limit = min(self._limit, context - prompt_tokens)
        if self._limit < 1:
            self.fail(_too_long(prompt_tokens, context))

    def take(self, token: int) -> bool:
        """The next token; returns whether the answer has ended."""
        if self.ended or self.job.gone.is_set():
            self.ended = True
            return True
        self._count += 1
        piece = "" if token in self._ends else self._text.add(token)
        if token in self._ends or self._text.stopped:
            self._finish(piece, "stop")
        elif self._count >= self._limit:
            self._finish(piece, "length")
        elif piece:
            self._send(Piece(piece))
        return self.ended

    def fail(self, error: ApiError) -> None:
        self.ended = True
        self.job.send(error)

    def _finish(self, piece: str, reason: Literal["stop", "length"]) -> None:
        self.ended = True
        piece += self._text.finish()
        usage = Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._count,
            total_tokens=self._prompt_tokens + self._count,
            x_dyvte=self._measures,
        )
        self._send(Piece(piece, "stop" if self._text.stopped else reason, usage))

    def _send(self, piece: Piece) -> None:
        self.begun = True
        self.job.send(piece)


class _Answers(StoppingCriteria):
    """Sees the new tokens of the whole batch at each step, and ends each answer by itself."""

    def __init__(self, answers: Sequence[_Answer], start: Callable[[], None]) -> None:
        self._answers, self._start, self._started = answers, start, False

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:  # type: ignore[override]
        if not self._started:
            self._start()
            self._started = True
        ended = [
            answer.take(token) for answer, token in zip(self._answers, input_ids[:, -1].tolist(), strict=True)
        ]
        return torch.tensor(ended, device=input_ids.device)


class Batcher:
    """Answers jobs in a thread of its own, in the order they come, several at once.

    Args:
        answerer: the model, whose own generation settings are not used.
        size: requests of a batch, at most.
        wait: seconds for which the first request of a batch waits for others.
    """

    def __init__(self, answerer: Answerer, size: int, wait: float) -> None:
        self.chat, self._size, self._wait = answerer.chat, size, wait
        images = self.chat.handle is not None
        config = self.chat.decoder_config if images else self.chat.model.config
        self.context: int = getattr(config, "max_position_embeddings", None) or NO_CONTEXT
        self._kv_bytes = 0  # of a token in all layers
        if images:
            itemsize: int = self.chat.model.dtype.itemsize  # type: ignore[assignment] - of PreTrainedModel
            self._kv_bytes = sum(layer.cached for layer in layer_costs(self.chat.model)) * itemsize
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are still answered."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Answer a job when its turn comes."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Answer what has come until now, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)
            del batch  # nothing of a batch is kept while waiting for the next

    def _next_batch(self) -> list[Job]:
        """The oldest job, with others of its kind; none once the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            end = time.monotonic() + self._wait
            while len(self._jobs) < self._size and not self._closed and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            if not self._jobs:
                return []
            first = self._jobs[0]
            batch = [job for job in self._jobs if job.kind == first.kind][: self._size]
            for job in batch:
                self._jobs.remove(job)
            return batch

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Answer a batch. If it fails, each job of it is asked alone, so that the error goes to the one at fault."""
        chat = self.chat
        jobs = [job for job in jobs if not job.gone.is_set()]
        if not jobs:
            return
        answers = [_Answer(job, GrowingText(self._decode, job.stops), chat.end_token_ids) for job in jobs]
        failure = None
        try:
            self._generate(answers)
        except Exception as error:
            failure = _as_api_error(error)
        if failure is None:
            return
        for answer in answers:  # outside the handler, whose error holds the batch's memory
            if not answer.ended and not answer.begun and len(jobs) > 1:
                self._answer([answer.job])
            elif not answer.ended:
                answer.fail(failure)

    @torch.inference_mode()
    def _generate(self, answers: Sequence[_Answer]) -> None:
        chat, jobs = self.chat, [answer.job for answer in answers]
        batch = chat.batch([job.prompt for job in jobs], [image for job in jobs for image in job.images])
        text_tokens = batch.attention_mask.sum(1).tolist()
        if len(jobs) == 1 and text_tokens[0] >= self.context:
            raise _too_long(text_tokens[0], self.context)
        if max(text_tokens) >= self.context:
            raise ValueError("a prompt of this batch is too long")  # each is asked alone, and says so
        first = jobs[0].generation
        generation = Generation(
            max(job.generation.max_new_tokens for job in jobs), first.temperature, first.top_p
        )
        with nullcontext([]) if chat.handle is None else chat.handle.collect() as traces:

            def start() -> None:
                reports = traces[0].report() if traces else [None] * len(jobs)
                for answer, report, tokens in zip(answers, reports, text_tokens, strict=True):
                    if report is None:
                        answer.start(tokens, None, self.context)
                    else:
                        answer.start(report.prompt_tokens, self._measures(report, len(jobs)), self.context)

            chat.generate(
                chat.place(batch), generation, stopping=StoppingCriteriaList([_Answers(answers, start)])
            )

    def _decode(self, ids: list[int]) -> str:
        return self.chat.tokenizer.decode(ids, skip_special_tokens=True)

    def _measures(self, report: PrefillReport, batch_size: int) -> Measures:
        held = report.kv_bytes or 0
        return Measures(
            exit_layer=report.exit_layer,
            num_layers=report.num_layers,
            visual_tokens=report.visual_tokens,
            tflops=report.tflops,
            saved_tflops=report.saved_tflops,
            kv_bytes=held,
            kv_bytes_saved=report.prompt_tokens * self._kv_bytes - held,
            batch_size=batch_size,
        )


def _too_long(tokens: int, context: int) -> ApiError:
    return ApiError(
        400,
        f"messages: the prompt has {tokens} tokens, and prompt and answer together may have {context}",
        "messages",
        "context_length_exceeded",
    )


def _as_api_error(error: Exception) -> ApiError:
    """What a client is told: of its own faults the reason, of the server's none."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):  # the engine's word for what cannot be asked
        return ApiError(400, str(error), "messages")
    logger.error("a batch failed", exc_info=error)
    return ApiError(500, FAULT)
