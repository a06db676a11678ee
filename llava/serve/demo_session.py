"""What the demo does without its page: each question is answered twice, without and with exit, as the text comes.

:mod:`llava.serve.demo_page` shows it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor
from transformers import TextIteratorStreamer

from dyvte.decoding.policy import NoExit, Policy
from dyvte.engine.answer import Answer, Answerer
from dyvte.engine.questions import Question, check_text
from dyvte.gates.exit import LearnedExit
from dyvte.methods import METHODS, make_policy, parse_method

MAX_CHARACTERS = 4000
"""Of a question."""
PATIENCE = 600
"""Seconds that a page waits for the next piece of an answer."""


@dataclass(frozen=True)
class Controls:
    """How the second answer is to save.

    Attributes:
        method: of :mod:`dyvte.methods`, or several joined by ``+``.
        threshold, exit_layer: of ``dyvte`` and of ``fixed``; the other methods have no use for them.
        settings: of other methods, ``key=value`` separated by blanks.
    """

    method: str
    threshold: float | None = None
    exit_layer: int | None = None
    settings: str = ""


@dataclass(frozen=True)
class Turn:
    """A question with both answers; one that is still coming has no report."""

    question: str
    plain: Answer = Answer("")
    exiting: Answer = Answer("")


class Stopped(Exception):
    """Nobody reads the answer any more."""


class Pieces(TextIteratorStreamer):
    """An answer's text in pieces; :meth:`stop` ends its generation at the next token, by an exception."""

    def __init__(self, tokenizer) -> None:
        super().__init__(tokenizer, skip_prompt=True, timeout=PATIENCE, skip_special_tokens=True)
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def put(self, value: Tensor) -> None:
        if self._stopped.is_set():
            raise Stopped
        super().put(value)


class Session:
    """A model that answers every question without and with exit. The policy is the model's, so that one thread
    answers, one question at a time; any thread may ask.

    Args:
        answerer: of a model that takes images, with gates attached where it has some.

    Raises:
        ValueError: the model takes no images.
    """

    def __init__(self, answerer: Answerer) -> None:
        if answerer.handle is None:
            raise ValueError("the demo needs a model that takes images, and this is a language model")
        self._answerer, self._handle = answerer, answerer.handle
        policy = answerer.handle.policy
        self._gates = policy.gates if isinstance(policy, LearnedExit) else None
        config = answerer.chat.decoder_config
        self.num_layers: int = config.num_hidden_layers
        self._hidden_size: int = config.hidden_size
        self.threshold = self._gates.threshold if self._gates is not None else 0.5
        self._worker = ThreadPoolExecutor(1, "answers")

    @property
    def methods(self) -> list[str]:
        """Those that fit the model."""
        return [name for name in METHODS if name != "none" and self._fits(name)]

    def _fits(self, name: str) -> bool:
        try:
            self.policy(Controls(name, exit_layer=0))
        except ValueError:
            return False
        return True

    def policy(self, controls: Controls) -> Policy:
        """What the controls ask for.

        Raises:
            ValueError: settings are malformed or out of range, or the method does not fit the model.
        """
        policy = make_policy(
            parse_method(controls.method),
            controls.settings.split(),
            gates=self._gates,
            threshold=controls.threshold,
            exit_layer=controls.exit_layer,
        )
        policy.check(self.num_layers, self._hidden_size)
        return policy

    def ask(
        self, image: Image.Image | None, history: Sequence[Turn], text: str, controls: Controls
    ) -> Iterator[Turn]:
        """Answer a question, first without exit and then as the controls say; gives the turn as it grows.

        Args:
            image: of the whole conversation, RGB.
            history: its earlier turns; each answer follows those of its own side.

        Raises:
            ValueError: there is no question or no image, a control is out of range, or the conversation has become
                longer than the model can read.
        """
        text = text.strip()
        if image is None:
            raise ValueError("Choose an image first.")
        if not text:
            raise ValueError("Type a question.")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"The question has more than {MAX_CHARACTERS} characters.")
        check_text(text, "the question")
        turn = Turn(text)
        for side, policy in (("plain", NoExit()), ("exiting", self.policy(controls))):
            earlier = [(past.question, getattr(past, side).text) for past in history]
            for answer in self._stream(policy, image, earlier, text):
                turn = replace(turn, **{side: answer})
                yield turn

    def _stream(
        self, policy: Policy, image: Image.Image, history: Sequence[tuple[str, str]], text: str
    ) -> Iterator[Answer]:
        """The answer as it grows; the last one is whole, and has a report."""
        pieces = Pieces(self._answerer.chat.tokenizer)
        answering = self._worker.submit(self._answer, policy, image, history, text, pieces)
        try:
            grown = ""
            for piece in pieces:
                if piece:
                    grown += piece
                    yield Answer(grown)
        except queue.Empty:
            raise ValueError(f"The model gave no text for {PATIENCE} seconds.") from None
        finally:  # also where the reader is gone
            pieces.stop()
        yield answering.result()

    def _answer(
        self,
        policy: Policy,
        image: Image.Image,
        history: Sequence[tuple[str, str]],
        text: str,
        pieces: Pieces,
    ) -> Answer:
        try:
            asked = [Question(past) for past, _ in history] + [Question(text)]
            asked[0] = replace(asked[0], images=[image])
            chat, answers = self._answerer.chat, [answer for _, answer in history]
            prompt = chat.prompt(asked[-1], list(zip(asked, answers, strict=False)))
            self._handle.policy = policy
            (answer,) = self._answerer.complete(chat.batch([prompt], [image]), pieces)
            return answer
        finally:
            pieces.end()  # also where something failed: the reader waits for it
