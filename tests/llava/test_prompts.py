"""Prompts to ids, against SentencePiece itself; names and stopping."""

from __future__ import annotations

import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer, LlamaConfig

from llava.conversation import conv_templates
from llava.mm_utils import KeywordsStoppingCriteria, get_model_name_from_path, tokenizer_image_token


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint, config=LlamaConfig(), use_fast=False)


@pytest.fixture(scope="module")
def pieces(checkpoint):
    return sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))


def test_ids_are_sentencepieces_with_one_beginning(tokenizer, pieces):
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message("USER", "<image>\nWhat colour is the ball?")
    conversation.append_message("ASSISTANT", None)
    before, after = conversation.get_prompt().split("<image>")
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizer)
    assert ids == [1, *pieces.encode(before), -200, *pieces.encode(after)]
    # the blank before the image is a piece of its own, and so is the one that Llama puts before the newline
    blank, at = pieces.piece_to_id("▁"), ids.index(-200)
    assert ids[at - 1] == blank and ids[at + 1 : at + 3] == [blank, pieces.piece_to_id("<0x0A>")]
    assert ids.count(1) == 1


def test_several_images_and_none(tokenizer, pieces):
    ids = tokenizer_image_token("<image>\n<image>red", tokenizer, image_token_index=-7)
    assert ids == [1, -7, *pieces.encode("\n"), -7, *pieces.encode("red")]
    assert tokenizer_image_token("red", tokenizer) == [1, *pieces.encode("red")]
    assert tokenizer_image_token("red<image>", tokenizer)[-1] == -200
    tensor = tokenizer_image_token("<image>red", tokenizer, return_tensors="pt")
    assert tensor.dtype == torch.long and tensor.tolist() == [1, -200, *pieces.encode("red")]
    with pytest.raises(ValueError, match="return_tensors"):
        tokenizer_image_token("red", tokenizer, return_tensors="np")


def test_the_end_of_an_answer_is_one_id(tokenizer):
    assert tokenizer("red</s>").input_ids[-1] == tokenizer.eos_token_id == 2


def test_model_names():
    assert get_model_name_from_path("/models/llava-v1.5-7b/") == "llava-v1.5-7b"
    assert get_model_name_from_path("out/llava-lora/checkpoint-200") == "llava-lora_checkpoint-200"
    assert get_model_name_from_path("liuhaotian/llava-v1.5-13b") == "llava-v1.5-13b"


def test_keywords_stop_rows(tokenizer):
    prompt = torch.tensor([tokenizer("What colour?").input_ids] * 2)
    stop = KeywordsStoppingCriteria(["###"], tokenizer, prompt)
    (keyword,) = stop.keyword_ids
    assert 1 not in keyword
    other = tokenizer("red").input_ids[1:]
    length = max(len(keyword), len(other))
    rows = torch.tensor([[5] * (length - len(part)) + part for part in (keyword, other)])
    for full in (torch.cat([prompt, rows], dim=1), rows):  # ids with the prompt, and new ones alone
        assert stop(full, None).tolist() == [True, False]
    # the keyword inside a prompt stops nothing
    asked = torch.tensor([tokenizer("###").input_ids + other])
    quiet = KeywordsStoppingCriteria(["###"], tokenizer, asked[:, : -len(other)])
    assert quiet(asked, None).tolist() == [False]


def test_keywords_are_found_in_text(tokenizer):
    stop = KeywordsStoppingCriteria(["lour"], tokenizer, torch.zeros(1, 0, dtype=torch.long))
    ids = torch.tensor([tokenizer("colour").input_ids[1:]])
    assert bool(stop(ids, None)) is ("lour" in tokenizer.decode(ids[0, -stop.max_keyword_len :]))
