"""Ids are those of tokenising the whole prompt, and labels cover exactly the answers with their end marks."""

from __future__ import annotations

import pytest

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.train.dataset import place_images, template_name
from llava.train.targets import render, tokenize

TURNS = [
    {"from": "human", "value": "<image>\nWhat colour is the ball?"},
    {"from": "gpt", "value": "red"},
    {"from": "human", "value": "How many digits?"},
    {"from": "gpt", "value": "Three, four.\nFive 球!"},
]
END = {
    "v1": "</s>", "llava_v1": "</s>", "vicuna_v1_nosys": "</s>", "v1_mmtag": "</s>", "llava_llama_2": " </s>",
    "llava_v0": "###", "mpt": "<|im_end|>", "chatml_direct": "<|im_end|>",
}  # fmt: skip


def answer_text(ids: list[int], labels: list[int], tokenizer) -> list[str]:
    """Text of each run of labelled tokens."""
    runs: list[list[int]] = []
    for index, label in enumerate(labels):
        if label == IGNORE_INDEX:
            continue
        assert label == ids[index]
        if index == 0 or labels[index - 1] == IGNORE_INDEX:
            runs.append([])
        runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("version", list(END))
def test_answers_and_nothing_else_are_labelled(version, tokenizer):
    template = conv_templates[version]
    prompt = render(TURNS, template)
    ids, labels = tokenize(prompt, tokenizer)
    assert ids == tokenizer_image_token(prompt.text, tokenizer)
    assert ids.count(IMAGE_TOKEN_INDEX) == 1 and len(ids) == len(labels)
    texts = [text.strip() for text in answer_text(ids, labels, tokenizer)]
    assert texts == [(turn["value"] + END[version]).strip() for turn in TURNS[1::2]]


def test_prompt_is_the_templates_own(tokenizer):
    conversation = conv_templates["v1"].copy()
    for turn in TURNS:
        conversation.append_message(conversation.roles[turn["from"] == "gpt"], turn["value"])
    assert render(TURNS, conv_templates["v1"]).text == conversation.get_prompt()
    assert conv_templates["v1"].copy().messages == []  # the shared template was not written to


def test_inference_prompt_is_the_masked_part(tokenizer):
    """What is masked before the first answer is the prompt that the model sees when it has to answer."""
    conversation = conv_templates["v1"].copy()
    conversation.append_message("USER", TURNS[0]["value"])
    conversation.append_message("ASSISTANT", None)
    asked = tokenizer_image_token(conversation.get_prompt(), tokenizer)
    ids, labels = tokenize(render(TURNS[:2], conv_templates["v1"]), tokenizer)
    assert ids[: len(asked)] == asked
    assert labels[: len(asked)] == [IGNORE_INDEX] * len(asked)
    assert labels[len(asked) :] == ids[len(asked) :] != []
    assert ids[-1] == tokenizer.eos_token_id


def test_plain_keeps_image_and_caption(tokenizer):
    turns = [
        {"from": "human", "value": "Say what you see.\n<image>"},
        {"from": "gpt", "value": "A red ball."},
    ]
    ids, labels = tokenize(render(turns, conv_templates["plain"]), tokenizer)
    assert ids[:2] == [tokenizer.bos_token_id, IMAGE_TOKEN_INDEX]
    assert ids == tokenizer_image_token("<image>A red ball.\n", tokenizer)
    assert labels == [IGNORE_INDEX] * 2 + ids[2:]


def test_text_only_sample_keeps_a_literal_image_word(tokenizer):
    turns = [{"from": "human", "value": "What is <image>?"}, {"from": "gpt", "value": "red"}]
    prompt = render(turns, conv_templates["v1"])
    ids, _ = tokenize(prompt, tokenizer, has_image=False)
    assert ids == tokenizer(prompt.text).input_ids and IMAGE_TOKEN_INDEX not in ids


def test_leading_answer_is_skipped_and_a_last_question_is_not_labelled(tokenizer):
    greeting = {"from": "gpt", "value": "Hello."}
    assert render([greeting, *TURNS], conv_templates["v1"]) == render(TURNS, conv_templates["v1"])
    ids, labels = tokenize(render(TURNS[:3], conv_templates["v1"]), tokenizer)
    assert answer_text(ids, labels, tokenizer) == ["red</s>"]


def test_template_example_is_no_target(tokenizer):
    """The built-in example of v0 is part of the prompt, not of what is learned."""
    ids, labels = tokenize(render(TURNS, conv_templates["v0"]), tokenizer)
    assert len(answer_text(ids, labels, tokenizer)) == 2


@pytest.mark.parametrize(
    "turns",
    [[], [{"from": "gpt", "value": "a"}], [TURNS[0], TURNS[2]], [{"from": "system", "value": "a"}, TURNS[0]]],
)
def test_malformed_conversations_are_refused(turns):
    if turns and turns[0]["from"] == "system":
        turns = [TURNS[0], *turns]
    with pytest.raises(ValueError, match="turn"):
        render(turns, conv_templates["v1"])


def test_token_across_the_start_of_an_answer_is_refused(tokenizer):
    prompt = render(TURNS[:2], conv_templates["v1"])
    ((start, end),) = prompt.answers
    shifted = type(prompt)(prompt.text, [(start + 2, end)])  # inside " red" or "▁red"
    inside = [
        s for s, e in tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"] if s == start + 2
    ]
    if inside:
        pytest.skip("the tokenizer splits the word there")
    with pytest.raises(ValueError, match="spans the start"):
        tokenize(shifted, tokenizer)


def test_image_is_put_before_its_question():
    template = conv_templates["v1"]
    assert place_images("What?\n<image>", template) == "<image>\nWhat?"
    assert place_images("<image>\nWhat?", template) == "<image>\nWhat?"
    assert place_images("Compare <image> and <image>.", template) == "Compare <image> and <image>."
    assert (
        place_images("<image>\nWhat?", template, use_im_start_end=True) == "<im_start><image><im_end>\nWhat?"
    )
    assert place_images("<image>\nWhat?", conv_templates["v1_mmtag"]) == "<Image><image></Image>\nWhat?"


def test_unknown_version_means_vicuna():
    assert template_name("no such template") == "vicuna_v1"
    assert template_name("plain") == "plain"
