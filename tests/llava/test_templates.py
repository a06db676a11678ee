"""Prompts byte for byte, and what belongs to a conversation."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from llava.conversation import SeparatorStyle, conv_templates, default_conversation

USER_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
HUMAN_SYSTEM = USER_SYSTEM.replace("curious user", "curious human").replace("the user's", "the human's")
VISION_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
MMTAG_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to "
    "understand the visual content that the user provides, and assist the user with a variety of tasks using "
    "natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
DIRECT = (
    "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|>"
    "<|im_start|>assistant\nA1<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n"
)


def llama_3(system, role, end):
    def header(name):
        return f"<|start_header_id|>{name}<|end_header_id|>\n\n"

    return (
        f"<|begin_of_text|>{header('system')}{system}{end}{header('user')}<image>\nQ1{end}"
        f"{header(role)}A1{end}{header('user')}Q2{end}{header(role)}"
    )


TWO_TURNS = "USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"
HASHES = "###Human: <image>\nQ1###Assistant: A1###Human: Q2###Assistant:"
EXPECTED = {
    "vicuna_v1": f"{USER_SYSTEM} {TWO_TURNS}",
    "v1": f"{USER_SYSTEM} {TWO_TURNS}",
    "vicuna_v1_nosys": f" {TWO_TURNS}",
    "llava_v1": f"{HUMAN_SYSTEM} {TWO_TURNS}",
    "llava_v0": HUMAN_SYSTEM + HASHES,
    "v0_mmtag": MMTAG_SYSTEM + HASHES,
    "v1_mmtag": f"{MMTAG_SYSTEM} {TWO_TURNS}",
    "llava_llama_2": (
        f"[INST] <<SYS>>\n{VISION_SYSTEM}\n<</SYS>>\n\n<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST]"
    ),
    "mistral_instruct": "[INST] <image>\nQ1 [/INST] A1 </s>[INST] Q2 [/INST]",
    "chatml_direct": DIRECT,
    "mistral_direct": DIRECT,
    "hermes-2": DIRECT,
    "Hermes-2": DIRECT,
    "yi_34b_chatml_direct": DIRECT,
    "mpt": DIRECT.replace(
        "Answer the questions.",
        "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest "
        "answers.",
    ),
    "llama3": llama_3(USER_SYSTEM, "assistant", "<|eot_id|>"),
    "llama_3": llama_3(VISION_SYSTEM, "system", "<|end_of_text|>"),
    "plain": "<image>\nQ1\nA1Q2\n",
    "v0_plain": "<image>\nQ1\nA1Q2\n",
}


def render(name):
    conversation = conv_templates[name].copy()
    user, assistant = conversation.roles
    for role, text in ((user, "<image>\nQ1"), (assistant, "A1"), (user, "Q2"), (assistant, None)):
        conversation.append_message(role, text)
    return conversation.get_prompt()


@pytest.mark.parametrize("name", EXPECTED)
def test_two_turns(name):
    assert render(name) == EXPECTED[name]


def test_v0_starts_with_its_example():
    prompt = render("v0")
    question = "What are the key differences between renewable and non-renewable energy sources?"
    assert prompt.startswith(f"{HUMAN_SYSTEM}###Human: {question}###Assistant: Renewable energy sources are")
    assert prompt.endswith(
        "6. Sustainability: Renewable energy sources are more sustainable over the long term, "
        "while non-renewable sources are not, and their depletion can lead to economic and social "
        "instability.\n" + HASHES
    )
    assert conv_templates["v0"].offset == 2
    assert render("default") == prompt


def test_llama_2_carries_its_safety_text():
    prompt = render("llama_2")
    assert prompt.startswith(
        "[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as"
    )
    assert "while being safe.  Your answers should not include" in prompt


def test_every_template_is_covered():
    assert set(conv_templates) == set(EXPECTED) | {"v0", "default", "llama_2"}
    versions = {
        name: conv_templates[name].version for name in ("v1", "llava_v1", "plain", "mpt", "llama3", "llama_3")
    }
    assert versions == {
        "v1": "v1",
        "llava_v1": "v1",
        "plain": "Unknown",
        "mpt": "mpt",
        "llama3": "llama3",
        "llama_3": "llama_v3",
    }
    assert default_conversation is conv_templates["vicuna_v1"]
    assert conv_templates["v0_mmtag"].version == "v0_mmtag"


def test_copies_do_not_share_messages():
    one, two = conv_templates["v1"].copy(), conv_templates["v1"].copy()
    one.append_message("USER", "hello")
    assert list(two.messages) == [] and list(conv_templates["v1"].messages) == []
    assert one.dict()["messages"] == [["USER", "hello"]]


def test_llama_2_needs_a_first_message_of_the_user():
    conversation = conv_templates["llava_llama_2"].copy()
    conversation.append_message("ASSISTANT", "hello")
    with pytest.raises(ValueError, match="USER"):
        conversation.get_prompt()


def test_a_message_with_its_image():
    image = Image.new("RGB", (1200, 300), (9, 9, 9))
    conversation = conv_templates["v1"].copy()
    conversation.append_message("USER", ("what <image> is it?", image, "Crop"))
    conversation.append_message("ASSISTANT", None)
    assert conversation.get_prompt() == f"{USER_SYSTEM} USER: <image>\nwhat  is it? ASSISTANT:"
    (shown,) = conversation.get_images(return_pil=True)
    assert shown.size == (800, 200)
    (encoded,) = conversation.get_images()
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (800, 200)
    assert conversation.dict()["messages"][0] == ["USER", "what <image> is it?"]

    tagged = conv_templates["v1_mmtag"].copy()
    tagged.append_message("USER", ("what is it?", image, "Pad"))
    assert tagged.get_prompt().endswith(
        "USER: <Image><image></Image> ASSISTANT: Received.</s>USER: what is it? "
    )
    assert tagged.get_images(return_pil=True)[0].size == (400, 400)


def test_every_style_is_rendered():
    assert {template.sep_style for template in conv_templates.values()} == set(SeparatorStyle)


@pytest.mark.parametrize("name", conv_templates)
def test_another_system_text_takes_the_place_of_the_templates_own(name):
    conversation = conv_templates[name].copy()
    if not conversation.system:
        with pytest.raises(ValueError, match="no place for a system message"):
            conversation.set_system("Be brief.")
        return
    conversation.append_message(conversation.roles[0], "What?")
    before = conversation.get_prompt()
    own = conversation.system.removeprefix(conversation.system_head)
    conversation.set_system("Be brief.")
    assert conversation.get_prompt() == before.replace(own, "Be brief.") and not own.startswith("<|")
