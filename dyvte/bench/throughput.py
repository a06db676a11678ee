"""Questions per second over a folder of images, through the loop that answers benchmarks.

Image files are read and preprocessed by ``--workers`` threads while the model answers. The ideal of a row is the time
of the same answers with all batches at hand, so that its efficiency says whether images or the model are the limit;
the rows *reading alone* say how fast images come without any model.

Called by :mod:`dyvte.bench`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dyvte.bench.settings import Measurements, Result, Settings, result_of
from dyvte.bench.shapes import END, FIRST_WORD, IMAGE
from dyvte.bench.variants import Variant
from dyvte.engine.answer import Answerer
from dyvte.engine.chat_format import ChatFormat
from dyvte.engine.model import Batch, Generation
from dyvte.engine.processor_model import ProcessorModel
from dyvte.engine.questions import Item
from dyvte.engine.run import prepared_batches
from dyvte.timing import interleaved, seconds_of

ALONE = "reading alone"
PHOTO = 640, 480
"""Pixels of a photo of COCO, of which most benchmarks take their images."""
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "word")
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def run(settings: Settings, model: LlavaForConditionalGeneration, batch: int, out: Measurements) -> None:
    """Measure one batch size."""
    chat = make_chat(model)
    variants = settings.make_variants(model, batch)
    text = " ".join(["word"] * settings.prompt_tokens)
    with image_folder(settings.images, settings.questions) as folder:
        found = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS]
        if not found:
            raise ValueError(f"{folder} holds no images ({', '.join(ENDINGS)})")
        names = [found[at % len(found)] for at in range(settings.questions)]
        items = [Item({"question_id": at}, text, (name,)) for at, name in enumerate(names)]

        def read(workers: int) -> Iterator[Batch]:
            return (made for _, made in prepared_batches(items, batch, chat, str(folder), workers))

        at_hand = list(read(0))
        tasks: dict[str, Callable[[], float]] = {}
        for variant in variants:
            answer = Answering(settings, chat, variant)
            tasks[variant.name] = lambda answer=answer: answer.seconds(lambda: at_hand)
            for workers in settings.workers:
                tasks[_name(variant.name, workers)] = lambda answer=answer, workers=workers: answer.seconds(
                    lambda: read(workers)
                )
        for workers in settings.workers:
            tasks[_name(ALONE, workers)] = lambda workers=workers: seconds_of(
                lambda: list(map(len, read(workers))), model.device
            )
        measured = interleaved(tasks, settings.rounds, settings.warmup, settings.progress)
    for variant in variants:
        for workers in settings.workers:
            result = result_of(variant, batch, measured[_name(variant.name, workers)], measured[variant.name])
            result.variant = _name(variant.name, workers)
            out.results.append(result)
    for workers in settings.workers:
        name = _name(ALONE, workers)
        out.results.append(Result(batch, name, settings.attn, None, measured[name]))
    for result in out.results:
        result.numbers["questions_per_second"] = settings.questions / median(result.seconds)


def _name(what: str, workers: int) -> str:
    return f"{what}, {workers} workers"


class Answering:
    """Answers of a variant, ``--answer-tokens`` each."""

    def __init__(self, settings: Settings, chat: ProcessorModel, variant: Variant) -> None:
        self._chat, self._variant = chat, variant
        self._answerer = Answerer(chat, Generation(max_new_tokens=settings.answer_tokens))

    def seconds(self, batches: Callable[[], Any]) -> float:
        """Seconds to answer all batches, the time to get them included."""
        chat: Any = self._chat
        with self._variant.ready(chat.model) as handle:
            chat.handle = handle
            return seconds_of(lambda: [self._answerer.complete(batch) for batch in batches()], chat.device)


def make_chat(model: LlavaForConditionalGeneration) -> ProcessorModel:
    """The model behind the engine's interface, without a policy, with a tokenizer of a few words."""
    tower: Any = model.config.vision_config
    side = tower.image_size
    vocabulary = {word: at for at, word in enumerate(WORDS)}
    assert vocabulary["</s>"] == END and vocabulary["<image>"] == IMAGE and vocabulary["word"] == FIRST_WORD
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - no password
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment] - a settable property
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),  # pyright: ignore[reportArgumentType]
        PreTrainedTokenizerFast(
            tokenizer_object=words, **special, extra_special_tokens={"image_token": "<image>"}
        ),
        patch_size=tower.patch_size,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    chat = ProcessorModel(model, ChatFormat(processor, "the bench"))
    chat.handle.detach()
    return chat


@contextmanager
def image_folder(given: str | None, count: int) -> Iterator[Path]:
    """The folder that was given, or a temporary one with ``count`` photos."""
    if given is not None:
        if not Path(given).is_dir():
            raise FileNotFoundError(f"--images {given} is no folder")
        yield Path(given)
        return
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            coarse = Image.fromarray(
                rng.integers(0, 256, (PHOTO[1] // 16, PHOTO[0] // 16, 3), dtype=np.uint8)
            )
            coarse.resize(PHOTO, Image.Resampling.BICUBIC).save(Path(folder) / f"{index:05}.jpg", quality=90)
        yield Path(folder)
