"""A processor of transformers as prompts and batches: its chat template, its placeholders, instruction data.

Called by :mod:`dyvte.bench.throughput` and :mod:`dyvte.engine.processor_model`.
"""

from __future__ import annotations

import copy
import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dyvte.engine.images import load_image
from dyvte.engine.instructions import check_records, image_paths, modality_lengths, read_records
from dyvte.engine.model import Batch
from dyvte.engine.questions import IMAGE_TOKEN, Question
from dyvte.engine.video import Video, Visual, frames_of
from dyvte.gates.supervision import IGNORE_INDEX

Turns = Sequence[tuple[Question, "str | None"]]
"""Questions with their answers; the last one may have None, the model's turn."""

_PLACEHOLDERS = ("image_token", "boi_token", "start_image_token")
"""Attributes of processors with the text that a chat template writes for an image."""
_STAND_IN = Image.new("RGB", (1, 1))
_SETTINGS = (
    *("size", "crop_size", "min_pixels", "max_pixels", "patch_size", "merge_size", "max_image_size"),
    *("image_grid_pinpoints", "do_image_splitting", "do_pan_and_scan", "crop_to_patches", "min_patches"),
    *("max_patches", "max_soft_tokens", "pooling_kernel_size", "max_crops", "overlap_margins"),
    *("pooling_size", "split_image", "split_resolutions", "use_covering_area_grid", "patch_expand_factor"),
    *("fine_route", "dense_max_patches"),
)
"""Settings of image processors that change how many visual tokens an image has."""


@dataclass(frozen=True)
class Sample:
    """A conversation with its answers.

    Attributes:
        text: the whole of it in the chat template.
        answers: (tokens from the beginning of each answer to the end of the text, tokens behind it).
        cut: tokens that are too many, to be cut from the end.
    """

    text: str
    images: list[Image.Image]
    answers: list[tuple[int, int]]
    cut: int


class ChatFormat:
    """A processor with a chat template.

    Several threads may use it at once.

    Attributes:
        placeholder: the text that the chat template writes for an image.
        video_placeholder: the same for a video; None for a processor that takes none, whose prompts have the frames
            as images.

    Raises:
        ValueError: the processor has no chat template, or one without images.
    """

    def __init__(self, processor: Any, name: str) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        processor.chat_template = processor.chat_template or self.tokenizer.chat_template
        if not processor.chat_template:
            raise ValueError(
                f"the processor of {name} has no chat template, so questions cannot be put as it expects them: "
                "add the chat_template.jinja that belongs to it"
            )
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._lock = threading.Lock()
        self._of_thread = threading.local()  # a processor each: fast tokenizers take one thread at a time
        self.video_placeholder: str | None = None
        image = self._placeholder(_STAND_IN, _PLACEHOLDERS)
        if image is None:
            raise ValueError(
                f"the chat template of {name} writes no placeholder for an image: it is for text alone"
            )
        self.placeholder: str = image
        if getattr(processor, "video_processor", None) is not None:
            self.video_placeholder = ""  # written as a video, to see with what
            self.video_placeholder = self._placeholder(Video((_STAND_IN,), (0,), 1.0, 1), ("video_token",))

    def _placeholder(self, visual: Visual, attributes: Sequence[str]) -> str | None:
        """The text of one of the processor's attributes that its chat template writes once for an image or video."""
        text = self.render([(Question("?", [visual]), None)])
        known = (getattr(self.processor, attribute, None) for attribute in attributes)
        return next((token for token in known if token and text.count(token) == 1), None)

    @property
    def name(self) -> str:
        """Which template it is, for reports."""
        digest = hashlib.sha256(str(self.processor.chat_template).encode()).hexdigest()
        return f"its own ({digest[:12]})"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides how many visual tokens an image has."""
        described: Mapping[str, Any] = self.processor.image_processor.to_dict()
        return {name: plain for name in _SETTINGS if (plain := _plain(described.get(name))) is not None}

    def render(self, turns: Turns, system: str | None = None) -> str:
        """A conversation in the chat template, the model's turn open where the last answer is None.

        Raises:
            ValueError: the template has no place for a system message, and there is one.
        """
        messages = []
        if system is not None:
            messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
        for question, answer in turns:
            messages.append({"role": "user", "content": _content(self.shown(question))})
            if answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        is_open = turns[-1][1] is None
        try:
            text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_open)
        except Exception as error:  # of Jinja, by the template's own raise_exception
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        if system is not None and system.strip() not in text:
            raise ValueError("the chat template has no place for a system message")
        return text

    def shown(self, question: Question) -> Question:
        """The question as the processor takes it: videos as frames where it takes images alone."""
        return question.with_frames() if self.video_placeholder is None else question

    def tokens(self, text: str) -> list[int]:
        """Token ids of a rendered conversation, each image one token."""
        return self.tokenizer(text, add_special_tokens=self._adds_special_tokens(text))["input_ids"]

    def batch(self, texts: Sequence[str], images: Sequence[Visual]) -> Batch:
        """Rendered conversations with their images and videos, padded on the left.

        Raises:
            ValueError: there are more or fewer images or videos than places for them.
        """
        if self.video_placeholder is None:
            images = frames_of(images)
        marks = "|".join(map(re.escape, filter(None, (self.placeholder, self.video_placeholder))))
        places = [re.findall(marks, text) for text in texts]
        wanted = [mark == self.video_placeholder for marked in places for mark in marked]
        if wanted != [isinstance(image, Video) for image in images]:
            raise ValueError(f"the prompts have places for {len(wanted)} images, but come with {len(images)}")
        rest = iter(images)
        nested = [[next(rest) for _ in marked] for marked in places]
        own = [[image for image in row if not isinstance(image, Video)] for row in nested]
        videos = [image for row in nested for image in row if isinstance(image, Video)]
        if not hasattr(self._of_thread, "processor"):
            with self._lock:
                self._of_thread.processor = copy.deepcopy(self.processor)
        made = self._of_thread.processor(
            text=list(texts),
            images=own if any(own) else None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=self._adds_special_tokens(texts[0]),
            **(_of_videos(videos) if videos else {}),
        )
        fields = dict(made)
        return Batch(fields.pop("input_ids"), fields.pop("attention_mask"), fields)

    def decode(self, ids: Tensor) -> list[str]:
        """Answers as text."""
        with self._lock:
            return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def sample(self, turns: Turns, max_length: int) -> Sample:
        """A conversation with answers.

        Raises:
            ValueError: the template writes a question differently once it is answered, an image follows an answer, or
                what comes before the last image is too long already.
        """
        text, spans = self.render(turns), []
        closed = ""
        for count in range(1, len(turns) + 1):
            *before, (question, _) = turns[:count]
            opened = self.render([*before, (question, None)])
            closed = self.render(turns[:count]).rstrip()
            if not closed.startswith(opened.rstrip()) or not text.startswith(closed):
                raise ValueError("the chat template rewrites the prompt when it is answered")
            spans.append((opened, closed))
        eos = self.tokenizer.eos_token
        if eos and not closed.endswith(eos) and not self._ends(closed):
            text = closed + eos  # some templates leave it to the model to end its last answer
            spans[-1] = (spans[-1][0], text)
        ids = self.tokens(text)
        places = [(self._common(ids, opened), self._common(ids, closed)) for opened, closed in spans]
        image_id = self.tokenizer.convert_tokens_to_ids(self.placeholder)
        last_image = max((at for at, token in enumerate(ids) if token == image_id), default=-1)
        if last_image >= places[0][0]:
            raise ValueError("an image follows an answer: only images before the first answer are supported")
        cut = max(len(ids) - max_length, 0)
        if len(ids) - cut <= last_image:
            raise ValueError(
                f"{len(ids)} tokens are more than {max_length}, and cutting them would cut an image"
            )
        answers = [(len(ids) - start, len(ids) - end) for start, end in places]
        return Sample(text, frames_of([i for question, _ in turns for i in question.images]), answers, cut)

    def _ends(self, text: str) -> bool:
        """Whether the last token is a special one, as those that end a turn are."""
        return self.tokens(text)[-1] in self.tokenizer.all_special_ids or text.endswith(
            tuple(str(token) for token in self.tokenizer.get_added_vocab())
        )

    def _common(self, ids: list[int], text: str) -> int:
        """How many tokens the beginning ``text`` of a conversation has within it."""
        own = self.tokens(text)
        same = next(
            (at for at, pair in enumerate(zip(own, ids, strict=False)) if pair[0] != pair[1]), len(own)
        )
        if same < len(own) - 1:  # one token may reach over the border
            raise ValueError("the tokens of the prompt change when it is answered")
        return same

    def _adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer is to add its own, which templates may have written already."""
        begin = self.tokenizer.bos_token
        return not (begin and text.startswith(begin))


class ChatSamples(Dataset[Sample]):
    """Instruction data in LLaVA's format as conversations in a chat template.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or records are malformed.
    """

    def __init__(self, form: ChatFormat, data_path: str, image_folder: str, max_length: int) -> None:
        self.records = read_records(data_path)
        check_records(self.records, data_path, image_folder, turns_fit=check_pairs)
        self.form, self.image_folder, self.max_length = form, image_folder, max_length

    @property
    def modality_lengths(self) -> list[int]:
        """See :func:`dyvte.engine.instructions.modality_lengths`."""
        return modality_lengths(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def has_target(self, index: int) -> bool:
        """Whether gates learn from a sample: it has an image, and an answer with a token that is not cut off."""
        record = self.records[index]
        stand_ins = [Image.new("RGB", (1, 1)) for _ in image_paths(record)]
        if not stand_ins:
            return False
        sample = self.form.sample(turns_of(record, stand_ins), self.max_length)
        return any(start > max(end, sample.cut) for start, end in sample.answers)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        images = [load_image(path, folder=self.image_folder) for path in image_paths(record)]
        try:
            return self.form.sample(turns_of(record, images), self.max_length)
        except ValueError as error:
            raise ValueError(f"sample {record.get('id', index)!r}: {error}") from error


def check_pairs(turns: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError unless questions and answers take turns: chat templates have no place for others."""
    if [turn["from"] for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        raise ValueError("the conversation must be questions of 'human' and answers of 'gpt' in turns")


def turns_of(record: Mapping[str, Any], images: Sequence[Image.Image]) -> list[tuple[Question, str]]:
    """Questions with their images, and answers, of a record. A single image stands in front of its question."""
    conversation, rest = record["conversations"], iter(images)
    turns = []
    for asked, answered in zip(conversation[::2], conversation[1::2], strict=True):
        text = asked["value"]
        own = [next(rest) for _ in range(text.count(IMAGE_TOKEN))]
        if len(images) == 1:
            text = text.replace(IMAGE_TOKEN, "").strip()
        turns.append((Question(text, own), answered["value"]))
    return turns


class ChatCollator:
    """Samples -> fields of a :class:`~dyvte.engine.model.Batch`, and ``labels`` (B, S), -100 outside of answers."""

    def __init__(self, form: ChatFormat) -> None:
        self.form = form

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        """A batch.

        Raises:
            ValueError: the processor made other tokens of an answer than its tokenizer does.
        """
        images = [image for sample in samples for image in sample.images]
        batch = self.form.batch([sample.text for sample in samples], images)
        ids, columns = batch.input_ids, batch.input_ids.shape[1]
        labels = torch.full_like(ids, IGNORE_INDEX)
        for row, sample in enumerate(samples):
            tail = self.form.tokens(sample.text)[-sample.answers[0][0] :]
            if ids[row, -len(tail) :].tolist() != tail:
                raise ValueError("the processor makes other tokens of an answer than its tokenizer does")
            for start, end in sample.answers:
                at = slice(columns - start, columns - end)
                labels[row, at] = ids[row, at]
        fields = {"input_ids": ids, "attention_mask": batch.attention_mask, "labels": labels, **batch.images}
        fills = {"input_ids": self.form.tokenizer.pad_token_id, "labels": IGNORE_INDEX}
        for name, value in fields.items():
            if torch.is_tensor(value) and value.shape == ids.shape:
                rows = [
                    _shifted(row, sample.cut, fills.get(name, 0))
                    for row, sample in zip(value, samples, strict=True)
                ]
                fields[name] = torch.stack(rows)
        return fields


def _shifted(row: Tensor, cut: int, fill: int) -> Tensor:
    """A row (S,) without its last ``cut`` tokens, padded on the left."""
    return torch.cat([row.new_full((cut,), fill), row[: len(row) - cut]]) if cut else row


def _content(question: Question) -> list[dict[str, str]]:
    """A question as chat templates take it."""
    content: list[dict[str, str]] = []
    for number, piece in enumerate(question.around_images()):
        if number:
            kind = "video" if isinstance(question.images[number - 1], Video) else "image"
            content.append({"type": kind})
        # LLaVA sets images on a line of their own; templates have marks for that
        if text := piece.strip("\n"):
            content.append({"type": "text", "text": text})
    return content


def _of_videos(videos: Sequence[Video]) -> dict[str, Any]:
    """Keywords of a processor. Frames are chosen already, so it takes all; their times follow from the numbers."""
    described = [
        {
            "fps": video.fps,
            "frames_indices": list(video.indices),
            "total_num_frames": video.total,
            "duration": video.total / video.fps,
        }
        for video in videos
    ]
    frames = [[np.asarray(frame) for frame in video.frames] for video in videos]
    return {"videos": frames, "video_metadata": described, "do_sample_frames": False}


def _plain(value: Any) -> Any:
    """A setting as JSON takes it; None for one that it does not take."""
    if isinstance(value, Mapping):
        return {name: part for name, part in value.items() if part is not None}
    return value if isinstance(value, (bool, int, float, str, list)) else None
