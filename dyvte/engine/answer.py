"""Questions in, answers out: what every command line that asks a model about images calls.

Called from most of the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer

from dyvte.decoding.attach import Handle
from dyvte.decoding.policy import NoExit
from dyvte.decoding.report import PrefillReport
from dyvte.engine.model import Batch, ChatModel, Generation
from dyvte.engine.questions import Question
from dyvte.timing import now

BAR_WIDTH = 30
"""Columns of an exit probability of 1."""


@dataclass(frozen=True)
class Answer:
    """What the model said, and what its prefill did; no report where no policy can be attached."""

    text: str
    report: PrefillReport | None = None


@dataclass
class Answerer:
    """Answers batches of questions with a model, and says what each cost.

    Several threads may ask at once: each gets the reports of its own questions.
    """

    chat: ChatModel
    generation: Generation = Generation()

    @property
    def model(self) -> nn.Module:
        """What the policy is attached to."""
        return self.chat.model

    @property
    def handle(self) -> Handle | None:
        """The attached policy; None for a model that cannot have one."""
        return self.chat.handle

    @property
    def exits(self) -> bool:
        """Whether a policy that may drop the image is attached."""
        return self.handle is not None and not isinstance(self.handle.policy, NoExit)

    def batch(self, questions: Sequence[Question]) -> Batch:
        """Questions as :meth:`complete` takes them."""
        prompts = [self.chat.prompt(question) for question in questions]
        return self.chat.batch(prompts, [image for question in questions for image in question.images])

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer a batch of questions."""
        return self.complete(self.batch(questions))

    @torch.inference_mode()
    def complete(self, batch: Batch, streamer: BaseStreamer | None = None) -> list[Answer]:
        """Answer a batch; with beams, the reports are those of the first ones.

        Args:
            streamer: gets the tokens as they come (one question only).
        """
        batch = self.chat.place(batch)
        if self.handle is None:
            ids = self.chat.generate(batch, self.generation, streamer)
            return [Answer(text) for text in self.chat.decode(ids)]
        device = self.chat.device
        with self.handle.collect() as traces:
            start = now(device)
            ids = self.chat.generate(batch, self.generation, streamer)
            seconds = (now(device) - start) / len(batch)
        texts, reports = self.chat.decode(ids), traces[0].report()
        beams = len(reports) // len(texts)
        pairs = zip(texts, reports[::beams], strict=True)
        return [Answer(text, replace(report, seconds=seconds)) for text, report in pairs]


def describe_exit(report: PrefillReport | None) -> str:
    """What the exit did, in a few lines for a person; empty where nothing was measured."""
    if report is None:
        return ""
    where = f"after layer {report.exit_layer} of 0..{report.num_layers - 1}"
    lines = ["exit: none, the image stays to the end" if report.exit_layer is None else f"exit: {where}"]
    ran = [f"{layer}:{p:.3f}" for layer, p in enumerate(report.exit_probabilities) if p is not None]
    if ran:
        lines.append("exit probability by layer: " + " ".join(ran))
    saved, total = report.saved_tflops, report.tflops
    share = 100 * saved / (total + saved) if total + saved else 0.0
    lines.append(f"prefill: {total:.3g} TFLOPs, {saved:.3g} saved ({share:.1f}%)")
    return "\n".join(lines)


def show_exit(report: PrefillReport) -> None:
    """Print it, with the tokens of each layer, and a bar where a gate ran."""
    where, *_, cost = describe_exit(report).splitlines()
    print(where)
    for layer, (tokens, p) in enumerate(zip_longest(report.tokens_per_layer, report.exit_probabilities)):
        bar = "" if p is None else f"  {'━' * round(BAR_WIDTH * p):{BAR_WIDTH}}  {p:.3f}"
        print(f"layer {layer:2}: {tokens:5} tokens{bar}")
    print(cost)
