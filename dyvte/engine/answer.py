"""Questions in, answers out: the engine behind every command line that asks a model about images."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from dyvte.cost.flops import layer_flops, prefill_flops
from dyvte.cost.kv import kv_bytes
from dyvte.decoding.attach import Handle
from dyvte.decoding.policy import NoExit
from dyvte.decoding.trace import ExitTrace
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_PLACEHOLDER,
)
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token


@dataclass(frozen=True)
class Question:
    """What to ask, and about which images (RGB)."""

    text: str
    images: Sequence[Image.Image] = ()


@dataclass(frozen=True)
class Answer:
    """What the model said, and what its prefill did.

    Attributes:
        metadata: what an answers file holds; empty where no policy is attached.
        exit_probabilities: one per layer, NaN where no gate ran.
        decoder_flops_saved: against a prefill without exit; the gates' own cost is taken off.
    """

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    exit_probabilities: Sequence[float] = ()
    decoder_flops_saved: int = 0


@dataclass(frozen=True)
class Generation:
    """How answers are generated; greedy when the temperature is 0."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1 or self.temperature < 0:
            raise ValueError(
                f"max_new_tokens and num_beams must be positive, temperature not negative: {self}"
            )

    def arguments(self) -> dict[str, Any]:
        """Keywords for ``generate``."""
        sampling = {"temperature": self.temperature or None, "top_p": self.top_p}
        return {
            "do_sample": self.temperature > 0,
            **{name: value for name, value in sampling.items() if self.temperature > 0 and value is not None},
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "use_cache": True,
        }


class Answerer:
    """A model with its conversation template; answers batches of questions, and says what each cost.

    Args:
        model, tokenizer, image_processor: as ``load_pretrained_model`` gives them.
        conv_mode: name of a conversation template.
        handle: the attached policy, whose traces are read; None for a model that cannot have one.

    Raises:
        ValueError: for a template that does not exist.
    """

    def __init__(
        self, model, tokenizer, image_processor, conv_mode: str, handle: Handle | None, generation: Generation
    ):
        check_conv_mode(conv_mode)
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.conv_mode = conv_mode
        self.handle = handle
        self.generation = generation

    @property
    def exits(self) -> bool:
        """Whether a policy that may drop the image is attached."""
        return self.handle is not None and not isinstance(self.handle.policy, NoExit)

    def user_turn(self, question: Question) -> str:
        """The question with its image tokens: where it has placeholders for them, else in front."""
        count = len(question.images)
        token = DEFAULT_IMAGE_TOKEN
        if getattr(self.model.config, "mm_use_im_start_end", False):
            token = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
        text = re.sub(
            f"{re.escape(IMAGE_PLACEHOLDER)}|{re.escape(DEFAULT_IMAGE_TOKEN)}", token, question.text
        )
        placed = text.count(token)
        if placed not in (0, count):
            raise ValueError(f"the question has places for {placed} images, but comes with {count}: {text!r}")
        return text if placed else (token + "\n") * count + text

    def prompt(self, question: Question) -> str:
        """The question in the conversation template, with the model's turn open."""
        conversation = conv_templates[self.conv_mode].copy()
        conversation.append_message(conversation.roles[0], self.user_turn(question))
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer a batch of questions."""
        return self.complete([self.prompt(question) for question in questions], self.pixels(questions))

    def pixels(self, questions: Sequence[Question]):
        """(pixels, sizes) of all images in order, for :meth:`complete`; None without images."""
        images = [image for question in questions for image in question.images]
        if not images:
            return None
        if self.image_processor is None:
            raise ValueError("this model takes no images: it has no vision tower")
        pixels = process_images(images, self.image_processor, self.model.config)
        return pixels, [image.size for image in images]

    @torch.inference_mode()
    def complete(self, prompts: Sequence[str], pixels=None, streamer=None) -> list[Answer]:
        """Continue a batch of prompts.

        Args:
            prompts: whole prompts with ``<image>`` where images belong.
            pixels: what :meth:`pixels` returned for their images.
            streamer: gets the tokens as they come (one prompt only).
        """
        ids, mask, inputs = self.encode(prompts, pixels)
        start = _now(ids.device)
        output = self.generate_ids(ids, mask, inputs, streamer)
        seconds = (_now(ids.device) - start) / len(prompts)
        texts = [text.strip() for text in self.tokenizer.batch_decode(output, skip_special_tokens=True)]
        if self.handle is None:
            return [Answer(text) for text in texts]
        return self._measured(texts, self.handle.traces[0], seconds)

    def encode(
        self, prompts: Sequence[str], pixels=None
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Token ids and mask (B, S), padded on the left, and the image keywords of ``generate``, on the device."""
        device, dtype = self.model.device, self.model.dtype
        ids, mask = self._batch(prompts)
        inputs: dict[str, Any] = {}
        if pixels is not None:
            images, sizes = pixels
            on_device = [image.to(device, dtype) for image in images]
            images = torch.stack(on_device) if torch.is_tensor(images) else on_device
            inputs = {"images": images, "image_sizes": sizes}
        return ids.to(device), mask.to(device), inputs

    def generate_ids(
        self, ids: torch.Tensor, mask: torch.Tensor, inputs: dict[str, Any], streamer=None
    ) -> torch.Tensor:
        """The answers' token ids (B, T), without the prompt; the traces are then those of this call."""
        if self.handle is not None:
            self.handle.traces.clear()
        output = self.model.generate(
            ids,
            attention_mask=mask,
            pad_token_id=self._pad_id(),
            streamer=streamer,
            **inputs,
            **self.generation.arguments(),
        )
        return (
            output[:, ids.shape[1] :] if self.image_processor is None else output
        )  # a plain LM repeats the prompt

    def _batch(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask (B, S), padded on the left."""
        rows = [torch.tensor(tokenizer_image_token(prompt, self.tokenizer)) for prompt in prompts]
        ids = torch.full((len(rows), max(len(row) for row in rows)), self._pad_id())
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, ids.shape[1] - len(row) :] = row
            mask[index, ids.shape[1] - len(row) :] = 1
        return ids, mask

    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.tokenizer.eos_token_id

    def _measured(self, texts: list[str], trace: ExitTrace, seconds: float) -> list[Answer]:
        """Answers with what the trace says; with beams, of each question's first one."""
        flops = prefill_flops(self.model, trace)
        probabilities = trace.exit_probabilities.T.tolist()
        held = kv_bytes(self.model.config, trace, self.model.dtype)
        tokens = trace.tokens_per_layer.T.tolist()
        answers = []
        for index, text in enumerate(texts):
            at = index * trace.num_samples // len(texts)
            metadata = {
                "exit_layer": trace.exit_layers[at],
                "tokens_per_layer": tokens[at],
                "tflops": flops.total[at] / 1e12,
                "decoder_tflops": (flops.decoder[at] + flops.gates[at]) / 1e12,  # gates included
                "kv_bytes": held[at],
                "seconds": seconds,
                "prompt_tokens": trace.prompt_tokens[at],
                "visual_tokens": trace.visual_tokens[at],
            }
            full = trace.num_layers * layer_flops(self.model.config, trace.prompt_tokens[at])
            saved = full - flops.decoder[at] - flops.gates[at]
            answers.append(Answer(text, metadata, probabilities[at], saved))
        return answers


def check_conv_mode(name: str) -> None:
    """Raise ValueError when there is no such conversation template."""
    if name not in conv_templates:
        raise ValueError(f"unknown conversation mode {name!r}: use one of {', '.join(conv_templates)}")


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def describe_exit(answer: Answer) -> str:
    """What the exit did, in a few lines for a person; empty where nothing was measured."""
    if not answer.metadata:
        return ""
    layer, total = answer.metadata["exit_layer"], answer.metadata["tflops"]
    layers = len(answer.metadata["tokens_per_layer"])
    where = (
        f"after layer {layer} of 0..{layers - 1}" if layer is not None else "none, the image stays to the end"
    )
    lines = [f"exit: {where}"]
    asked = [f"{i}:{p:.3f}" for i, p in enumerate(answer.exit_probabilities) if not math.isnan(p)]
    if asked:
        lines.append("exit probability by layer: " + " ".join(asked))
    saved = answer.decoder_flops_saved / 1e12
    share = 100 * saved / (total + saved) if total + saved else 0.0
    lines.append(f"prefill: {total:.3g} TFLOPs, {saved:.3g} saved ({share:.1f}%)")
    return "\n".join(lines)
