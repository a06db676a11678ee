"""transformers' own LLaVA behind the engine's interface, with words for tokens: what a family has to write."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from dyvte import ExitGates, LearnedExit, NoExit, attach
from dyvte.engine.model import Batch, ChatModel
from dyvte.gates.supervision import IGNORE_INDEX, Embedded
from tests.conftest import IMAGE, PATCHES

PAD, BEGIN, END = 0, 1, 2


class WordsModel(ChatModel):
    """``LlavaForConditionalGeneration``; answers read as the numbers of their tokens."""

    end_token_ids = (END,)

    def __init__(self, model, policy):
        self.model, self.handle = model, attach(model, policy)

    def prompt(self, question, history=()):
        text = question.text.replace("<image>", "")
        return "<image> " * len(question.images) + text

    def batch(self, prompts, images):
        rows = [[BEGIN, *(token for word in prompt.split() for token in _tokens(word))] for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        if not images:
            return Batch(ids, mask)
        pixels = [np.asarray(image.resize((28, 28)), dtype=np.float32) / 128 - 1 for image in images]
        return Batch(ids, mask, {"pixel_values": torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2)})

    def generate(self, batch, generation, streamer=None):
        inputs = self.place(batch).inputs()
        output = self.model.generate(**inputs, **generation.arguments(), pad_token_id=PAD, streamer=streamer)
        return output[:, batch.input_ids.shape[1] :]

    def decode(self, ids):
        return [" ".join(str(token) for token in row if token not in (PAD, END)) for row in ids.tolist()]

    def embed(self, batch, answers, answer_mask):
        batch = self.place(batch)
        ids = torch.cat([batch.input_ids, answers], 1)
        embeds, visual = self.model.get_input_embeddings()(ids), ids == IMAGE
        if batch.images:
            features = self.model.get_image_features(**batch.images, return_dict=True).pooler_output
            embeds = embeds.masked_scatter(visual[..., None], torch.cat(tuple(features)))
        labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
        return Embedded(
            embeds,
            torch.cat([labels, answers.where(answer_mask, IGNORE_INDEX)], 1),
            visual,
            torch.cat([batch.attention_mask.bool(), answer_mask], 1),
        )

    def training_data(self, data_path, image_folder, max_length=2048):
        raise NotImplementedError

    def embed_samples(self, batch):
        raise NotImplementedError


def _tokens(word):
    return [IMAGE] * PATCHES if word == "<image>" else [3 + zlib.crc32(word.encode()) % (IMAGE - 3)]


def opener_of(model):
    """An opener that finds this model under every path."""

    def open_words_model(options):
        gates = options.gates and LearnedExit(ExitGates.from_pretrained(Path(options.gates)))
        return WordsModel(model, gates or NoExit())

    return open_words_model
