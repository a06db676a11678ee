"""Instruction data (:mod:`dyvte.engine.instructions`) -> samples and padded batches.

The whole file is checked once when it is read; images are opened with their samples.

Called by :mod:`llava.chat_model` and :mod:`llava.train.train`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from dyvte.engine.images import load_image
from dyvte.engine.instructions import (
    check_records,
    check_targets,
    check_turns,
    image_paths,
    modality_lengths,
    read_records,
)
from dyvte.engine.questions import shown
from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX, WRAPPED_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.mm_utils import process_images
from llava.train.arguments import DataArguments
from llava.train.targets import render, tokenize

logger = logging.getLogger(__name__)


def template_name(version: str) -> str:
    """A key of ``conv_templates``: ``version``, or vicuna_v1 where no template has that name, as in LLaVA."""
    if version in conv_templates:
        return version
    logger.warning("no prompt template is named %r, so vicuna_v1 is used", version)
    return "vicuna_v1"


def place_images(text: str, template: Conversation, use_im_start_end: bool = False) -> str:
    """A question with its image where LLaVA puts it: on a line of its own, before the question.

    With several images the text is unchanged, because their places carry meaning.
    """
    if text.count(DEFAULT_IMAGE_TOKEN) == 1:
        text = f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()
        if "mmtag" in template.version:
            text = text.replace(DEFAULT_IMAGE_TOKEN, f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>")
    if use_im_start_end:
        text = text.replace(DEFAULT_IMAGE_TOKEN, WRAPPED_IMAGE_TOKEN)
    return text


@dataclass(eq=False)
class SupervisedDataset(Dataset):
    """Samples ``{"input_ids": (S,), "labels": (S,), "images": list of (3, H, W), "image_sizes": list}``.

    Attributes:
        records: see :mod:`dyvte.engine.instructions`.
        image_processor: the vision tower's, or None when the model takes text only.
        visual_tokens: of one image (of its smallest form, where images are cut into tiles).
        max_length: what prompts are cut to once images took their places; None for no limit.
        for_gates: whether only answers to an image are learned from.

    Raises:
        FileNotFoundError, ValueError: when records are malformed or their images are not there; the message names
            the first few.
    """

    records: Sequence[dict]
    tokenizer: Any
    template: Conversation
    data_args: DataArguments
    image_processor: Any = None
    use_im_start_end: bool = False
    visual_tokens: int = 1
    max_length: int | None = None
    for_gates: bool = False

    def __post_init__(self) -> None:
        plain = self.template.sep_style == SeparatorStyle.PLAIN
        check_records(
            self.records,
            self.data_args.data_path or "",
            self.data_args.image_folder,
            takes_images=self.image_processor is not None,
            turns_fit=partial(render, template=self.template) if plain else check_turns,
        )

    @property
    def modality_lengths(self) -> list[int]:
        return modality_lengths(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def has_target(self, index: int) -> bool:
        """Whether an answer has a token that is not cut off."""
        position = images = 0
        for token, label in zip(*self._tokens(self.records[index]), strict=True):
            if self.max_length is not None and position >= self.max_length:
                return False
            if label != IGNORE_INDEX:
                return images > 0 or not self.for_gates
            images += token == IMAGE_TOKEN_INDEX
            position += self.visual_tokens if token == IMAGE_TOKEN_INDEX else 1
        return False

    def _tokens(self, record: dict) -> tuple[list[int], list[int]]:
        """Token ids and labels of a record, each image one token."""
        has_image = bool(image_paths(record))
        turns = record["conversations"]
        if has_image:
            place = partial(place_images, template=self.template, use_im_start_end=self.use_im_start_end)
            turns = [{**turn, "value": place(turn["value"])} for turn in turns]
        try:
            ids, labels = tokenize(render(turns, self.template), self.tokenizer, has_image)
        except ValueError as error:
            raise ValueError(f"sample {shown(record.get('id'))}: {error}") from error
        limit = self.tokenizer.model_max_length
        return ids[:limit], labels[:limit]

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        ids, labels = self._tokens(record)
        images = [load_image(path, folder=self.data_args.image_folder) for path in image_paths(record)]
        images = images[: ids.count(IMAGE_TOKEN_INDEX)]
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "images": list(process_images(images, self.image_processor, self.data_args)) if images else [],
            "image_sizes": [image.size for image in images],
        }


@dataclass
class SupervisedCollator:
    """Samples -> a right-padded batch.

    ``images`` holds one tensor per ``<image>``, in the order of the batch, stacked when all shapes agree. A text-only
    batch gets a blank image after its shortest row, where no answer attends to it: distributed training needs the
    tower and the projector to take part in every step.

    Attributes:
        blank_image: (3, H, W) of that image; None adds no image to text-only batches.
    """

    pad_token_id: int
    blank_image: tuple[int, int, int] | None = None

    def __call__(self, samples: list[dict]) -> dict[str, Tensor | list]:
        if self.blank_image is not None and not any(sample["images"] for sample in samples):
            samples = self._with_blank_image(samples, self.blank_image)
        ids = [sample["input_ids"] for sample in samples]
        labels = [sample["labels"] for sample in samples]
        pad = partial(pad_sequence, batch_first=True)
        batch: dict[str, Tensor | list] = {
            "input_ids": pad(ids, padding_value=self.pad_token_id),
            "labels": pad(labels, padding_value=IGNORE_INDEX),
            "attention_mask": pad([torch.ones_like(row, dtype=torch.bool) for row in ids]),
        }
        images = [image for sample in samples for image in sample["images"]]
        if images:
            same_shape = all(image.shape == images[0].shape for image in images)
            batch["images"] = torch.stack(images) if same_shape else images
            batch["image_sizes"] = [size for sample in samples for size in sample["image_sizes"]]
        return batch

    @staticmethod
    def _with_blank_image(samples: list[dict], shape: tuple[int, int, int]) -> list[dict]:
        """The samples, with an image that no token attends to after the shortest one."""
        shortest = min(samples, key=lambda sample: len(sample["input_ids"]))
        carrier = {
            "input_ids": torch.cat([shortest["input_ids"], torch.tensor([IMAGE_TOKEN_INDEX])]),
            "labels": torch.cat([shortest["labels"], torch.tensor([IGNORE_INDEX])]),
            "images": [torch.zeros(shape)],
            "image_sizes": [(shape[2], shape[1])],
        }
        return [carrier if sample is shortest else sample for sample in samples]


def make_supervised_data_module(
    tokenizer,
    data_args: DataArguments,
    template: Conversation,
    vision_tower=None,
    config=None,
    blank_image: bool = True,
) -> dict:
    """The Trainer's ``train_dataset`` and ``data_collator``.

    Args:
        vision_tower: brings the image processor; None for a model that takes text only.
        blank_image: whether batches of text only get a blank image (see :class:`SupervisedCollator`); not for gates,
            which learn nothing from text.

    Raises:
        FileNotFoundError, ValueError: the data cannot be used, or nothing can be learned from it.
    """
    processor = None if vision_tower is None else vision_tower.image_processor
    records = read_records(data_args.data_path or "")
    wrapped = bool(getattr(config, "mm_use_im_start_end", False))
    dataset = SupervisedDataset(
        records,
        tokenizer,
        template,
        data_args,
        processor,
        wrapped,
        visual_tokens=1 if vision_tower is None else vision_tower.num_patches,
        max_length=getattr(config, "tokenizer_model_max_length", None),
        for_gates=not blank_image,
    )
    check_targets(dataset, data_args.data_path or "")
    logger.info("training on %d samples of %s", len(dataset), data_args.data_path)
    shape = None
    if vision_tower is not None and blank_image:
        shape = (3, vision_tower.config.image_size, vision_tower.config.image_size)
    return {"train_dataset": dataset, "data_collator": SupervisedCollator(tokenizer.pad_token_id, shape)}
