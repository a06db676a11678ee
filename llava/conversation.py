"""Prompt templates: how a conversation becomes the text that a checkpoint was trained on.

The strings are protocol, not prose: a model answers well only when it sees them byte for byte.

Called from :mod:`llava.chat_model`, :mod:`llava.convert` and :mod:`llava.train`.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from llava.mm_utils import expand2square

DISPLAY_SHORT_SIDE, DISPLAY_LONG_SIDE = 400, 800


class SeparatorStyle(Enum):
    """How turns are joined; each style is one ``_render_*`` function below."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()
    LLAMA_3 = auto()


@dataclass
class Conversation:
    """A system text, two roles, and the turns so far.

    A message is text, None (an open turn that the model is to fill), or a tuple ``(text, PIL image, mode)``,
    where mode is "Pad", "Crop", "Resize" or "Default" and says how the image is displayed.
    """

    system: str
    roles: tuple[str, str] | list[str]
    messages: Any  # a list of [role, message]; a tuple in templates, which are copied before use
    offset: int
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    skip_next: bool = False  # of LLaVA's own demo; not read here
    system_head: str = ""  # what the system text begins with, whatever it says

    def set_system(self, text: str) -> None:
        """Put another system text in the template's place for it.

        Raises:
            ValueError: the template has none.
        """
        if not self.system:
            raise ValueError("this prompt template has no place for a system message")
        self.system = self.system_head + text

    def append_message(self, role: str, message: Any) -> None:
        """Add a turn; ``message=None`` leaves it open."""
        self.messages.append([role, message])

    def get_prompt(self) -> str:
        """The prompt text; an open last turn ends right after the role's name."""
        turns = [(role, _text(message)) for role, message in self._with_leading_image()]
        return _RENDERERS[self.sep_style](self, turns)

    def _with_leading_image(self) -> list:
        """The turns, with ``<image>`` put in front of a first message that carries its image as a tuple."""
        messages = list(self.messages)
        if not messages or not isinstance(messages[0][1], tuple):
            return messages
        role, message = messages[0]
        text = message[0].replace("<image>", "").strip()
        if "mmtag" in self.version:
            received = [(self.roles[0], "<Image><image></Image>"), (self.roles[1], "Received.")]
            return [*received, (role, text), *messages[1:]]
        return [(role, "<image>\n" + text), *messages[1:]]

    def get_images(self, return_pil: bool = False) -> list:
        """The images in the user's turns, sized for display: base64 PNG text, or PIL with ``return_pil``."""
        images = []
        for _, message in self.messages[self.offset :: 2]:
            if isinstance(message, tuple):
                image = _for_display(message[1], message[2])
                images.append(image if return_pil else _base64_png(image))
        return images

    def copy(self) -> Conversation:
        """A conversation whose turns can change without changing this one's."""
        return replace(self, messages=[list(message) for message in self.messages])

    def dict(self) -> dict[str, Any]:
        """The conversation as plain data, without images."""
        plain = {name: getattr(self, name) for name in ("system", "roles", "offset", "sep", "sep2")}
        return {**plain, "messages": [[role, _text(message)] for role, message in self.messages]}


def _text(message: Any) -> str | None:
    return message[0] if isinstance(message, tuple) else message


def _render_colon(conv: Conversation, turns: list) -> str:
    ends = (conv.sep, conv.sep if conv.sep_style == SeparatorStyle.SINGLE else conv.sep2)
    parts = [f"{role}: {text}{ends[i % 2]}" if text else f"{role}:" for i, (role, text) in enumerate(turns)]
    return conv.system + conv.sep + "".join(parts)


def _render_mpt(conv: Conversation, turns: list) -> str:
    parts = [f"{role}{text}{conv.sep}" if text else role for role, text in turns]
    return conv.system + conv.sep + "".join(parts)


def _render_llama_2(conv: Conversation, turns: list) -> str:
    if turns and (not turns[0][1] or turns[0][0] != conv.roles[0]):
        raise ValueError(f"a {conv.version} conversation must start with a message of {conv.roles[0]}")
    prompt = ""
    for i, (_, text) in enumerate(turns):
        if not text:
            continue
        if i == 0 and conv.system:
            text = f"<<SYS>>\n{conv.system}\n<</SYS>>\n\n{text}"
        prompt += f"{conv.sep}[INST] {text} [/INST]" if i % 2 == 0 else f" {text} {conv.sep2}"
    return prompt.lstrip(conv.sep)


def _render_plain(conv: Conversation, turns: list) -> str:
    ends = (conv.sep, conv.sep2 or "")
    return conv.system + "".join(text + ends[i % 2] for i, (_, text) in enumerate(turns) if text)


_RENDERERS = {
    SeparatorStyle.SINGLE: _render_colon,
    SeparatorStyle.TWO: _render_colon,
    SeparatorStyle.MPT: _render_mpt,
    SeparatorStyle.LLAMA_3: _render_mpt,
    SeparatorStyle.LLAMA_2: _render_llama_2,
    SeparatorStyle.PLAIN: _render_plain,
}


def _for_display(image, mode: str):
    """Pad or squeeze as ``mode`` says, then fit into 400 x 800 pixels, never enlarging."""
    if mode == "Pad":
        image = expand2square(image, (122, 116, 104))
    elif mode == "Resize":
        image = image.resize((336, 336))
    elif mode not in ("Crop", "Default"):
        raise ValueError(f"unknown image mode {mode!r}: use Pad, Crop, Resize or Default")
    width, height = image.size
    ratio = max(width, height) / min(width, height)
    short = max(1, int(min(DISPLAY_LONG_SIDE / ratio, DISPLAY_SHORT_SIDE, width, height)))
    long = max(1, int(short * ratio))
    return image.resize((short, long) if height > width else (long, short))


def _base64_png(image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _polite(person: str) -> str:
    return (
        f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
    )


_VISION_ABILITY = (
    "able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. "
    f"The assistant is {_VISION_ABILITY}"
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LLAVA_LLAMA_2 = f"You are a helpful language and vision assistant. You are {_VISION_ABILITY}"
_LLAMA_2_SAFETY = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while "
    "being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, "
    "dangerous, or illegal content. Please ensure that your responses are socially unbiased and "
    "positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
    "something not correct. If you don't know the answer to a question, please don't share false "
    "information."
)
_MPT_HELPFUL = (
    "A conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)
_V0_EXAMPLE = (
    ("Human", "What are the key differences between renewable and non-renewable energy sources?"),
    (
        "Assistant",
        "Renewable energy sources are those that can be replenished naturally in a relatively short "
        "amount of time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy "
        "sources, on the other hand, are finite and will eventually be depleted, such as coal, oil, and "
        "natural gas. Here are some key differences between renewable and non-renewable energy sources:\n"
        "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable "
        "energy sources are finite and will eventually run out.\n"
        "2. Environmental impact: Renewable energy sources have a much lower environmental impact than "
        "non-renewable sources, which can lead to air and water pollution, greenhouse gas emissions, and "
        "other negative effects.\n"
        "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically "
        "have lower operational costs than non-renewable sources.\n"
        "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote "
        "locations than non-renewable sources.\n"
        "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
        "different situations and needs, while non-renewable sources are more rigid and inflexible.\n"
        "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
        "non-renewable "
        "sources are not, and their depletion can lead to economic and social instability.\n",
    ),
)


def _single(system: str, version: str = "Unknown", messages: tuple = ()) -> Conversation:
    return Conversation(system, ("Human", "Assistant"), messages, len(messages), version=version)


def _two(system: str, version: str) -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), (), 0, SeparatorStyle.TWO, " ", "</s>", version)


def _llama_2(system: str, sep: str) -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), (), 0, SeparatorStyle.LLAMA_2, sep, "</s>", "llama_v2")


def _chatml(system: str, version: str = "mpt") -> Conversation:
    roles = ("<|im_start|>user\n", "<|im_start|>assistant\n")
    head = "<|im_start|>system\n"
    return Conversation(
        head + system, roles, (), 0, SeparatorStyle.MPT, "<|im_end|>", None, version, system_head=head
    )


def _llama_3_header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _llama_3(system: str, answer_role: str, style: SeparatorStyle, sep: str, version: str) -> Conversation:
    roles = (_llama_3_header("user"), _llama_3_header(answer_role))
    head = "<|begin_of_text|>" + _llama_3_header("system")
    return Conversation(head + system, roles, (), 0, style, sep, None, version, system_head=head)


_v0 = _single(_polite("human"), messages=_V0_EXAMPLE)
_vicuna_v1 = _two(_polite("user"), "v1")
_plain = Conversation("", ("", ""), (), 0, SeparatorStyle.PLAIN, "\n")
_direct = _chatml("Answer the questions.")

conv_templates: dict[str, Conversation] = {
    "default": _v0,
    "v0": _v0,
    "v1": _vicuna_v1,
    "vicuna_v1": _vicuna_v1,
    "vicuna_v1_nosys": _two("", "v1_nosys"),
    "llama_2": _llama_2(_LLAMA_2_SAFETY, "<s>"),
    "mistral_instruct": _llama_2("", ""),
    "chatml_direct": _direct,
    "mistral_direct": _direct,
    "hermes-2": _chatml("Answer the questions.", "hermes-2"),
    "Hermes-2": _direct,
    "yi_34b_chatml_direct": _chatml("Answer the questions.", "mpt-yi-34b"),
    "plain": _plain,
    "v0_plain": _plain,
    "llava_v0": _single(_polite("human")),
    "v0_mmtag": _single(_MMTAG, "v0_mmtag"),
    "llava_v1": _two(_polite("human"), "v1"),
    "v1_mmtag": _two(_MMTAG, "v1_mmtag"),
    "llava_llama_2": _llama_2(_LLAVA_LLAMA_2, "<s>"),
    "mpt": _chatml(_MPT_HELPFUL),
    "llama3": _llama_3(_polite("user"), "assistant", SeparatorStyle.MPT, "<|eot_id|>", "llama3"),
    # the answer's header says "system" in the checkpoints that use this template
    "llama_3": _llama_3(_LLAVA_LLAMA_2, "system", SeparatorStyle.LLAMA_3, "<|end_of_text|>", "llama_v3"),
}

default_conversation = conv_templates["vicuna_v1"]
