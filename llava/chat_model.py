"""LLaVA behind the engine's interface: conversation templates, tokenizer, image processor and splice.

Called from :mod:`llava.convert`, :mod:`llava.eval`, :mod:`llava.serve` and :mod:`llava.train`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dyvte.decoding.attach import Handle, attach
from dyvte.decoding.attention.plan import STOCK
from dyvte.decoding.policy import NoExit
from dyvte.engine.model import (
    Batch,
    ChatModel,
    Collator,
    DefaultTemplate,
    Generation,
    ModelOptions,
    TrainingSet,
    model_name_of,
    moved,
)
from dyvte.engine.questions import Question
from dyvte.engine.video import Visual, frames_of
from dyvte.gates.exit import LearnedExit
from dyvte.gates.files import gates_digest
from dyvte.gates.hub import hub_name
from dyvte.gates.supervision import Embedded
from dyvte.io import read_json_object
from dyvte.provenance import checkpoint_digest
from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, WRAPPED_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.variants import variant_of
from llava.train.arguments import DataArguments
from llava.train.dataset import make_supervised_data_module

_MODES_BY_NAME = {
    "vila": "vicuna_v1",
    "internvl-chat": "vicuna_v1",
    "eagle": "vicuna_v1",
    "llama-2": "llava_llama_2",
    "mistral": "mistral_instruct",
    "v1.6-34b": "chatml_direct",
    "v1": "llava_v1",
    "mpt": "mpt",
}


def infer_conv_mode(model_name: str, model_path: str | None = None) -> DefaultTemplate:
    """The conversation template that a checkpoint's config names as ``conversation_template``, else the one that
    LLaVA takes for a model of this name.
    """
    config = Path(model_path or "") / "config.json"
    if model_path and config.is_file():
        named = read_json_object(config).get("conversation_template")
        if named:
            return DefaultTemplate(str(named))
    name = model_name.lower()
    return DefaultTemplate(next((mode for part, mode in _MODES_BY_NAME.items() if part in name), "llava_v0"))


def open_chat_model(options: ModelOptions) -> LlavaChatModel:
    """Load a LLaVA checkpoint, or a plain language model, which then takes no images.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: there is no such conversation template, the checkpoint is of another family, or the gates are
            known to be of another model.
    """
    template = options.template or infer_conv_mode(model_name_of(options.model_path), options.model_path)
    if template not in conv_templates:
        raise ValueError(f"unknown conversation mode {template!r}: use one of {', '.join(conv_templates)}")
    loading: dict[str, Any] = {"dtype": options.dtype}
    if options.attn_implementation:
        loading["attn_implementation"] = STOCK.get(options.attn_implementation, options.attn_implementation)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        options.model_path,
        options.model_base,
        model_name_of(options.model_path),
        load_8bit=options.load_8bit,
        load_4bit=options.load_4bit,
        device=options.device,
        # processes that share a model take its layers from the host one by one
        device_map={"": "cpu"} if options.shard_model else "auto",
        gates=options.gates,
        **loading,
    )
    handle = None
    if image_processor is not None:
        handle = getattr(model, "exit_handle", None) or attach(model, NoExit())
        tower = getattr(model.config, "mm_vision_tower", None)
        if options.evaluator in variant_of(tower, model_name_of(options.model_path)).unpadded:
            model.config.image_aspect_ratio = (
                "square"  # of the original's three values the one without padding
            )
        place = options.gates or options.model_path
        handle.run = replace(
            handle.run,
            model_sha256=checkpoint_digest(options.model_path, tower, options.model_base),
            gates_sha256=gates_digest(place) if isinstance(handle.policy, LearnedExit) else None,
            gates_name=hub_name(options.gates) if options.gates else None,
            family=model.config.model_type,
            template=str(template),
        )
    return LlavaChatModel(model, tokenizer, image_processor, template, handle)


@dataclass(eq=False)
class LlavaChatModel(ChatModel):
    """LLaVA, or a plain language model with LLaVA's conversation templates.

    Attributes:
        model, tokenizer, image_processor: as ``load_pretrained_model`` gives them; no processor, no images.
        template: name of a conversation template.
        handle: the policy attached to ``model``.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    template: str
    handle: Handle | None

    def __post_init__(self) -> None:
        self.end_token_ids = (self.tokenizer.eos_token_id,)
        self._tokenizing = threading.Lock()  # batches are made in another thread than answers are decoded

    def user_turn(self, question: Question) -> str:
        """The question with its image tokens: where it has placeholders for them, else in front."""
        wrapped = getattr(self.model.config, "mm_use_im_start_end", False)
        return (WRAPPED_IMAGE_TOKEN if wrapped else DEFAULT_IMAGE_TOKEN).join(
            question.with_frames().around_images()
        )

    @property
    def roles(self) -> tuple[str, str]:
        """Those of the template."""
        human, model = conv_templates[self.template].roles
        return human, model

    def prompt(
        self, question: Question, history: Sequence[tuple[Question, str]] = (), system: str | None = None
    ) -> str:
        conversation = conv_templates[self.template].copy()
        if system is not None:
            conversation.set_system(system)
        for asked, answer in history:
            conversation.append_message(conversation.roles[0], self.user_turn(asked))
            conversation.append_message(conversation.roles[1], answer)
        conversation.append_message(conversation.roles[0], self.user_turn(question))
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def batch(self, prompts: Sequence[str], images: Sequence[Visual]) -> Batch:
        images = frames_of(images)
        with self._tokenizing:
            rows: Any = [
                tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt") for prompt in prompts
            ]
        pad = partial(pad_sequence, batch_first=True, padding_side="left")
        ids, mask = pad(rows, padding_value=self._pad_token_id), pad([torch.ones_like(row) for row in rows])
        if not images:
            return Batch(ids, mask)
        if self.image_processor is None:
            raise ValueError("this model takes no images: it has no vision tower")
        pixels = process_images(images, self.image_processor, self.model.config)
        return Batch(ids, mask, {"images": pixels, "image_sizes": [image.size for image in images]})

    def generate(self, batch: Batch, generation: Generation, streamer=None, stopping=None) -> Tensor:
        batch = self.place(batch)
        output = self.model.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            pad_token_id=self._pad_token_id,
            streamer=streamer,
            stopping_criteria=stopping,
            **batch.images,
            **generation.arguments(),
        )
        # a plain language model repeats the prompt
        return output[:, batch.input_ids.shape[1] :] if self.image_processor is None else output

    def decode(self, ids: Tensor) -> list[str]:
        with self._tokenizing:
            return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def embed(self, batch: Batch, answers: Tensor, answer_mask: Tensor) -> Embedded:
        batch = self.place(batch)
        prompt = torch.full_like(batch.input_ids, IGNORE_INDEX)
        return self.model.splice_images(
            torch.cat([batch.input_ids, answers], 1),
            torch.cat([batch.attention_mask.bool(), answer_mask], 1),
            torch.cat([prompt, answers.where(answer_mask, IGNORE_INDEX)], 1),
            **batch.images,
        )

    def training_data(
        self, data_path: str, image_folder: str, max_length: int = 2048
    ) -> tuple[TrainingSet, Collator]:
        config = self.model.config
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.model_max_length = max_length
        tokenizer.pad_token_id = self._pad_token_id
        arguments = DataArguments(
            data_path=data_path,
            image_folder=image_folder,
            image_aspect_ratio=getattr(config, "image_aspect_ratio", None) or "square",
            image_grid_pinpoints=getattr(config, "image_grid_pinpoints", None),
        )
        template, tower = conv_templates[self.template], self.model.get_vision_tower()
        module = make_supervised_data_module(tokenizer, arguments, template, tower, config, blank_image=False)
        return module["train_dataset"], module["data_collator"]

    def embed_samples(self, batch: dict[str, Any]) -> Embedded:
        names = ("input_ids", "attention_mask", "labels", "images", "image_sizes")
        inputs = (moved(batch.get(name), self.device, self.model.dtype) for name in names)
        return self.model.splice_images(*inputs)

    @property
    def _pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.tokenizer.eos_token_id
