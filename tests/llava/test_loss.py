"""The training loss, of which only the logits of answers are computed, equals transformers' own LLaVA's."""

from __future__ import annotations

import copy

import pytest
import torch

from llava.constants import IGNORE_INDEX


def answers(inputs: dict, image_ids: tuple[int, ...]) -> torch.Tensor:
    """Labels as training writes them: no loss on images, on padding, and on two of three text tokens."""
    ids, text = inputs["input_ids"], inputs["attention_mask"].bool()
    for image in image_ids:
        text = text & (ids != image)
    return torch.where(text & (ids % 3 == 0), ids, IGNORE_INDEX)


def loss_and_gradients(
    model, inputs: dict, names: list[str], **more
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model = copy.deepcopy(model).train()
    loss = model(**inputs, **more).loss
    loss.backward()
    parameters = dict(model.named_parameters())
    return loss.detach(), [parameters[name].grad for name in names]


NAMES = {
    "model.layers.0.self_attn.q_proj.weight": "model.language_model.layers.0.self_attn.q_proj.weight",
    "model.layers.3.mlp.down_proj.weight": "model.language_model.layers.3.mlp.down_proj.weight",
    "model.mm_projector.0.weight": "model.multi_modal_projector.linear_1.weight",
    "model.norm.weight": "model.language_model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("total", [None, 40])
def test_loss_and_gradients_equal_transformers(llava, hf_llava, prompts, side, total):
    more = {} if total is None else {"num_items_in_batch": torch.tensor(total)}
    ours, theirs = prompts.ours(side), prompts.hf(side)
    ours["labels"], theirs["labels"] = (
        answers(ours, (-200,)),
        answers(theirs, (hf_llava.config.image_token_id,)),
    )
    loss, gradients = loss_and_gradients(llava, ours, list(NAMES), **more)
    expected, references = loss_and_gradients(hf_llava, theirs, list(NAMES.values()), **more)
    torch.testing.assert_close(loss, expected)
    for name, gradient, reference in zip(NAMES, gradients, references, strict=True):
        assert reference.abs().sum() > 0, name
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5, msg=name)


def test_logits_are_those_of_answers(llava, prompts):
    inputs = prompts.ours()
    inputs["labels"] = answers(inputs, (-200,))
    model = copy.deepcopy(llava).train()
    with torch.no_grad():
        output = model(**inputs)
        everywhere = llava(**inputs)  # evaluation: all logits
    spliced = llava.splice_images(
        inputs["input_ids"], inputs["attention_mask"], inputs["labels"], inputs["images"]
    )
    predicts = spliced.labels[:, 1:] != IGNORE_INDEX
    torch.testing.assert_close(output.logits, everywhere.logits[:, :-1][predicts])
    torch.testing.assert_close(output.loss, everywhere.loss)


def test_a_tuple_where_one_is_asked_for(llava, prompts):
    inputs = prompts.ours()
    inputs["labels"] = answers(inputs, (-200,))
    model = copy.deepcopy(llava).train()
    with torch.no_grad():
        loss, logits, *_ = model(**inputs, return_dict=False)
        output = model(**inputs)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
