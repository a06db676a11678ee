"""The interface between the engine and a model that answers questions about images.

The engine (answering, resuming, calibration, labels) sees a model through :class:`ChatModel` alone. It is implemented
twice: ``llava.chat_model`` for LLaVA's checkpoints, ``dyvte.engine.processor_model`` for those of transformers. Who
calls what:

    questions --prompt--> texts --batch--> Batch --generate--> token ids --decode--> answers    (Answerer)
                                            |----prefill-----> logits of the next token         (studies, timing)
                                            '----embed-------> embeddings with answers          (calibration, oracle)
    instruction data --training_data--> samples --embed_samples--> embeddings with answers      (gates, stores)

``prompt`` and ``batch`` run on the CPU and may run in another thread than the rest; every method may be called by
several threads at once.

Called from most of the project.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from dyvte.families.base import adapter_for

if TYPE_CHECKING:
    from transformers.generation.stopping_criteria import StoppingCriteriaList
    from transformers.generation.streamers import BaseStreamer

    from dyvte.decoding.attach import Handle
    from dyvte.engine.questions import Question
    from dyvte.engine.video import Visual
    from dyvte.gates.supervision import Embedded


@dataclass(frozen=True)
class ModelOptions:
    """Which model to open, and how.

    Attributes:
        model_path: folder or Hub id.
        model_base: the language model that LoRA weights or a projector in ``model_path`` belong to.
        template: name of a prompt template; by default the one that the checkpoint asks for.
        gates: folder of exit gates, or a name on the hub; by default those in the checkpoint, if any.
        device: "cuda" becomes "cpu", with a warning, where there is no GPU.
        dtype: "auto" is float16 on a GPU and float32 on a CPU.
        attn_implementation: one of :data:`~dyvte.decoding.attention.plan.KERNELS`, or "auto", the default.
        load_8bit, load_4bit: quantize with bitsandbytes.
        shard_model: the processes of this run share the decoder's layers, see :mod:`dyvte.decoding.sharding`.
        evaluator: the command line that asks (``model_vqa``), for models whose own one prepares images differently.
    """

    model_path: str
    model_base: str | None = None
    template: str | None = None
    gates: str | Path | None = None
    device: str = "cuda"
    dtype: str = "auto"
    attn_implementation: str | None = None
    load_8bit: bool = False
    load_4bit: bool = False
    shard_model: bool = False
    evaluator: str | None = None


class DefaultTemplate(str):
    """A prompt template that nobody asked for: families that bring their own take that instead."""


@dataclass(frozen=True)
class Generation:
    """How answers are generated; greedy when the temperature is 0.

    Raises:
        ValueError: a value is out of range.
    """

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
        """Keywords for transformers' ``generate``."""
        sampling = {"temperature": self.temperature or None, "top_p": self.top_p}
        return {
            "do_sample": self.temperature > 0,
            **{name: value for name, value in sampling.items() if self.temperature > 0 and value is not None},
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "use_cache": True,
        }


@dataclass(frozen=True)
class Batch:
    """Prompts with their images, ready for the model.

    Attributes:
        input_ids: (B, S) long, padded on the left, with the family's placeholders where images belong.
        attention_mask: (B, S) long, 1 on real tokens.
        images: further keywords of the model's forward (pixels, sizes, grids); empty without images.
    """

    input_ids: Tensor
    attention_mask: Tensor
    images: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The batch on a device, floating-point images in ``dtype``."""
        images = {name: moved(value, device, dtype) for name, value in self.images.items()}
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), images)

    def inputs(self) -> dict[str, Any]:
        """Keywords of the model's forward."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **self.images}


def moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A tensor, or a list with tensors in it, on a device; floating-point tensors take ``dtype``."""
    if isinstance(value, list):
        return [moved(part, device, dtype) for part in value]
    if not torch.is_tensor(value):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


class TrainingSet(Protocol):
    """Samples with answers, by index.

    Attributes:
        records: the instruction data.
        modality_lengths: words per sample, negative for text-only ones; LLaVA's sampler groups by them.
        has_target: whether a sample, told without its images, has a token to learn from.
    """

    records: Sequence[dict[str, Any]]

    @property
    def modality_lengths(self) -> list[int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def has_target(self, index: int) -> bool: ...


Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


class ChatModel(abc.ABC):
    """A model with its tokenizer, prompt template and image processor.

    Attributes:
        model: what a policy is attached to.
        handle: the attached policy (``NoExit`` when none was asked for); None for a model that takes no images.
        end_token_ids: the tokens that end an answer.
        tokenizer: what answers are decoded with; streamers need it.
        mixes_videos: whether a batch may hold images and videos.
    """

    model: nn.Module
    handle: Handle | None
    end_token_ids: Sequence[int]
    tokenizer: Any
    mixes_videos: bool = True

    @property
    def roles(self) -> tuple[str, str]:
        """Who asks and who answers, as a conversation names them."""
        return "USER", "ASSISTANT"

    @abc.abstractmethod
    def prompt(
        self, question: Question, history: Sequence[tuple[Question, str]] = (), system: str | None = None
    ) -> str:
        """The question in the prompt template, with the model's turn open.

        Args:
            history: earlier questions of the conversation, with their answers.
            system: instead of the template's own system message.

        Raises:
            ValueError: the question's text has places for another number of images than it comes with, or the
                template has no place for a system message.
        """

    @abc.abstractmethod
    def batch(self, prompts: Sequence[str], images: Sequence[Visual]) -> Batch:
        """Tokenize prompts and preprocess their images.

        Args:
            prompts: whole prompts, as :meth:`prompt` gives them.
            images: the images (RGB) and videos of all prompts, in order.

        Raises:
            ValueError: images for a model that takes none.
        """

    @abc.abstractmethod
    def generate(
        self,
        batch: Batch,
        generation: Generation,
        streamer: BaseStreamer | None = None,
        stopping: StoppingCriteriaList | None = None,
    ) -> Tensor:
        """Answer a batch; returns token ids (B, T) of the answers alone, padded after their end.

        Args:
            streamer: gets the tokens as they come (one prompt only).
            stopping: end single answers before their end token or ``max_new_tokens``.
        """

    @abc.abstractmethod
    def decode(self, ids: Tensor) -> list[str]:
        """Token ids (B, T) of answers as text, without special tokens or surrounding spaces."""

    @abc.abstractmethod
    def embed(self, batch: Batch, answers: Tensor, answer_mask: Tensor) -> Embedded:
        """Prompts followed by answers as embeddings, for labels with the answers as given.

        Args:
            answers: (B, T) token ids, as :meth:`generate` returns them.
            answer_mask: (B, T) bool, True on the tokens that belong to the answer.
        """

    @abc.abstractmethod
    def training_data(
        self, data_path: str, image_folder: str, max_length: int = 2048
    ) -> tuple[TrainingSet, Collator]:
        """Instruction data in LLaVA's format as samples with answers, and what makes batches for
        :meth:`embed_samples` of them.

        Args:
            max_length: prompts are cut to so many tokens, an image counting as one.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or records are malformed.
        """

    @abc.abstractmethod
    def embed_samples(self, batch: dict[str, Any]) -> Embedded:
        """A batch of :meth:`training_data` as embeddings on the model's device."""

    @property
    def device(self) -> torch.device:
        """Where prompts enter the model."""
        return self.model.device  # type: ignore[return-value] - of PreTrainedModel

    @property
    def decoder_config(self) -> Any:
        """The decoder's config; for models that have an adapter."""
        return adapter_for(self.model).decoder(self.model).config

    def place(self, batch: Batch) -> Batch:
        """The batch where the model is, in its precision; a batch that is there already is not copied."""
        return batch.to(self.device, self.model.dtype)  # type: ignore[arg-type] - of PreTrainedModel

    @torch.inference_mode()
    def prefill(self, batch: Batch, use_cache: bool = False) -> Tensor:
        """Run the prompts alone; returns the next token's logits (B, vocabulary)."""
        inputs = self.place(batch).inputs()
        return self.model(**inputs, use_cache=use_cache, logits_to_keep=1).logits[:, -1]


def resolved_dtype(device: str, dtype: str) -> str:
    """The precision that a model gets: "auto" is float16 on a GPU, and float32 on a CPU or where there is no GPU."""
    kind = torch.device(device).type
    on_cpu = kind == "cpu" or (kind == "cuda" and not torch.cuda.is_available())
    return dtype if dtype != "auto" else "float32" if on_cpu else "float16"


def model_name_of(model_path: str) -> str:
    """The folder's name; of a Trainer checkpoint, the parent's name comes first."""
    parts = model_path.strip("/").split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]
