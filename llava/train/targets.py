"""A conversation -> token ids and labels, by template.

The prompt is tokenized as in ``tokenizer_image_token``: each piece of text between two images separately, with one
BOS in front. A token belongs to an answer when its characters lie in one, and an answer's characters are those that
the template adds when the answer is filled in. Ids and labels therefore agree, whatever the tokenizer does around
separators. A token that crosses the start of an answer is an error.

Called by :mod:`llava.train.dataset`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dyvte.engine.instructions import check_turns
from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle

Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation, and the character spans [start, end) of the answers in it."""

    text: str
    answers: list[Span]


def render(turns: list[dict], template: Conversation) -> Prompt:
    """Render ``[{"from": "human" | "gpt", "value": str}, ...]`` with a template.

    The first turn is skipped when it is not from the human, as LLaVA does.

    Raises:
        ValueError: when no turn is left, a turn that is skipped holds an image, or speakers do not alternate.
    """
    if template.sep_style == SeparatorStyle.PLAIN:
        return _render_plain(turns, template)
    check_turns(turns)
    turns = turns[turns[0]["from"] != "human" :]
    conversation = template.copy()
    first, answers = len(conversation.messages), []
    for index, turn in enumerate(turns):
        if index % 2 == 0:
            conversation.append_message(conversation.roles[0], turn["value"])
            continue
        conversation.append_message(conversation.roles[1], None)
        opened = conversation.get_prompt()
        conversation.messages[first + index][1] = turn["value"]
        filled = conversation.get_prompt()
        assert filled.startswith(opened), f"template {template.version!r} rewrites the prompt when answered"
        answers.append((len(opened), len(filled)))
    return Prompt(conversation.get_prompt(), answers)


def _render_plain(turns: list[dict], template: Conversation) -> Prompt:
    """Alignment data: the image and its caption alone."""
    if len(turns) != 2 or DEFAULT_IMAGE_TOKEN not in turns[0]["value"]:
        raise ValueError("the plain template needs two turns, an image and its caption")
    text = DEFAULT_IMAGE_TOKEN + turns[1]["value"] + template.sep
    return Prompt(text, [(len(DEFAULT_IMAGE_TOKEN), len(text))])


def tokenize(prompt: Prompt, tokenizer, has_image: bool = True) -> tuple[list[int], list[int]]:
    """Token ids and labels of a prompt, both of length S; labels are ``IGNORE_INDEX`` outside of answers.

    With ``has_image`` every ``<image>`` becomes one ``IMAGE_TOKEN_INDEX``; else it is ordinary text.

    Raises:
        ValueError: when a token holds characters of both a question and an answer, or the tokenizer cannot
            say where its tokens lie in the text.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no character offsets: use a tokenizers-backed one")
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for index, chunk in enumerate(prompt.text.split(DEFAULT_IMAGE_TOKEN) if has_image else [prompt.text]):
        encoded = tokenizer(chunk, return_offsets_mapping=True)
        chunk_ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        has_bos = int(bool(chunk_ids) and chunk_ids[0] == tokenizer.bos_token_id)
        front = [IMAGE_TOKEN_INDEX] if index > 0 else chunk_ids[:has_bos]
        ids += front + chunk_ids[has_bos:]
        labels += [IGNORE_INDEX] * len(front)
        labels += _label(chunk_ids[has_bos:], spans[has_bos:], position, prompt.answers)
        position += len(chunk) + len(DEFAULT_IMAGE_TOKEN)
    return ids, labels


def _label(ids: list[int], spans: list[Span], position: int, answers: list[Span]) -> list[int]:
    """Labels of the tokens of a piece of text that begins at character ``position`` of the prompt."""
    labels = [IGNORE_INDEX] * len(ids)
    for answer_start, answer_end in answers:
        low, high = answer_start - position, answer_end - position
        for index, (start, end) in enumerate(spans):
            if low <= start < high:
                labels[index] = ids[index]
            elif start < low < end:
                raise ValueError(
                    f"token {ids[index]} spans the start of an answer, so no label is right: "
                    "use a template whose answers start at a token of their own"
                )
    return labels
