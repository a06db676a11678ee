"""Every family, on a tiny random model in float32: packed rows are the stock model, and dropping equals masking.

The reference (:mod:`tests.families.reference`) is the stock model with visual keys hidden above the exit. It
recomputes everything for each generated token, so cached decoding is held against it as well.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dyvte import FixedExit, NoExit, attach
from dyvte.cost.flops import prefill_flops
from dyvte.decoding.attention.logits import causal_logits
from dyvte.engine.processor_model import embedded_call
from dyvte.families.base import adapter_for
from dyvte.gates.supervision import IGNORE_INDEX, supervise
from tests.families.cases import CASES, IMAGE, VIDEO
from tests.families.reference import hiding

TOLERANCE = 2e-5
NO_EXIT = 1e-5
"""Tolerances: caches, and explicit masks of exits, sum in another order; without exit, only the row is packed."""
STEPS = 4
SDPA_ON_CPU = {  # torch's counter lacks it
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *args, **kwargs: (
        sdpa_flop_count(query, key, value)
    )
}
PLACEHOLDERS = [
    IMAGE,
    VIDEO,
]  # a random model would generate them, and recomputing would then miss their images


class Prompts:
    """Two prompts of a case, of different lengths and numbers of images."""

    def __init__(self, case):
        self.case = case
        generator = torch.Generator().manual_seed(1)

        def text(count):
            return torch.randint(10, 90, (count,), generator=generator).tolist()

        image, more = case.image, case.most_images > 1
        first = text(5) + image + text(4) + (image if more else []) + text(6)
        self.rows, self.images = [first, text(3) + image + text(5)], [2 if more else 1, 1]

    def inputs(self, *chosen):
        """Keywords of the model's forward for the chosen prompts, padded on the left."""
        rows = [self.rows[i] for i in chosen]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        pixels = self.case.pixels([self.images[i] for i in chosen])
        return {"input_ids": ids, "attention_mask": mask, **pixels, **self.case.types(ids)}

    def extended(self, inputs, token):
        """The prompts and one more token each (B,)."""
        new = token[:, None]
        more = {"input_ids": new, "attention_mask": torch.ones_like(new)}
        more |= {name: torch.full_like(new, value) for name, value in self.case.extended.items()}
        return {**inputs, **{name: torch.cat([inputs[name], part], 1) for name, part in more.items()}}

    def positions(self, inputs):
        """What ``generate`` gives, so that left padding counts alike in the reference."""
        if self.case.own_positions:
            return {}
        mask = inputs["attention_mask"]
        return {"position_ids": (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0) + self.case.first_position}

    def visual(self, inputs):
        return torch.isin(inputs["input_ids"], torch.tensor(self.case.visual))


@pytest.fixture(scope="module", params=CASES)
def family(request):
    """A model whose random weights are strong enough that everything matters, and its prompts."""
    case = CASES[request.param]
    if case.needs and not hasattr(transformers, case.needs):
        pytest.skip(f"transformers {transformers.__version__} has no {case.needs}")
    torch.manual_seed(0)
    model = case.build().eval().float().requires_grad_(False)  # the counter fails on weights with gradients
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data += 0.05 * noise
        elif parameter.ndim > 1:
            parameter.data = noise * (0.6 / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 0.05)
    adapter_for(model).decoder(model).config._attn_implementation_internal = case.attention
    return model, Prompts(case)


def reference(model, prompts, inputs, exit_layer=None):
    """Logits (B, S, vocabulary) of the reference."""
    visual = None if exit_layer is None else prompts.visual(inputs)
    with hiding(model, exit_layer, visual):
        return model(**inputs, **prompts.positions(inputs), use_cache=False).logits


def batches(prompts):
    """One prompt, and both padded; each by itself where the stock model is wrong in padded batches."""
    return [(0,), (1,)] if prompts.case.alone else [(0,), (0, 1)]


@torch.no_grad()
def test_no_exit_is_the_stock_model(family):
    model, prompts = family
    for chosen in batches(prompts):
        inputs = prompts.inputs(*chosen)
        real = inputs["attention_mask"].bool()
        expected = reference(model, prompts, inputs)[real]
        stock = model(**inputs, **prompts.positions(inputs), use_cache=False).logits[real]
        torch.testing.assert_close(stock, expected, rtol=0, atol=NO_EXIT)
        with attach(model, NoExit()):
            ours = model(**inputs, use_cache=False).logits[real]
        torch.testing.assert_close(ours, expected, rtol=0, atol=NO_EXIT)
    # detached again, bit for bit
    assert torch.equal(model(**inputs, **prompts.positions(inputs), use_cache=False).logits[real], stock)


class Watch(NoExit):
    """Notes the attention weights of every layer, (1, heads, T, T)."""

    def __init__(self):
        self.weights = {}

    def observes(self, layer, layout):
        return True

    def observe(self, layer, inputs, trace):
        count = inputs.query.shape[2]
        self.weights[layer] = causal_logits(inputs, torch.arange(count), 0, count).softmax(-1)[None]


@torch.no_grad()
def test_observed_attention_is_the_stock_model_s(family):
    model, prompts = family
    inputs, config = prompts.inputs(0), adapter_for(model).decoder(model).config
    kernel, config._attn_implementation_internal = config._attn_implementation_internal, "eager"
    try:
        expected = model(**inputs, use_cache=False, output_attentions=True).attentions
    finally:
        config._attn_implementation_internal = kernel
    watch = Watch()
    with attach(model, watch):
        model(**inputs, use_cache=False)
    assert len(expected) == len(watch.weights)
    for layer, weights in watch.weights.items():
        torch.testing.assert_close(weights, expected[layer], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_dropping_equals_masking(family):
    model, prompts = family
    for chosen in batches(prompts):
        inputs = prompts.inputs(*chosen)
        visual, real = prompts.visual(inputs), inputs["attention_mask"].bool()
        without = reference(model, prompts, inputs)
        for layer in prompts.case.exits:
            expected = reference(model, prompts, inputs, layer)
            assert (expected - without)[:, -1].abs().max() > 0.01, (
                "the exit must matter for this to say anything"
            )
            with attach(model, FixedExit(layer)) as handle:
                ours = model(**inputs, use_cache=False).logits
            text = real & ~visual
            torch.testing.assert_close(ours[text], expected[text], rtol=0, atol=TOLERANCE)
            tokens = handle.traces[-1].tokens_per_layer
            full, left = real.sum(1), text.sum(1)
            assert torch.equal(
                tokens, torch.stack([full if i <= layer else left for i in range(len(tokens))])
            )


@torch.no_grad()
@pytest.mark.parametrize("exits", [False, True], ids=["no exit", "exit"])
def test_cached_generation_equals_recomputing(family, exits):
    model, prompts = family
    layer = prompts.case.exits[0] if exits else None
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "suppress_tokens": PLACEHOLDERS}
    for chosen in batches(prompts):
        inputs = prompts.inputs(*chosen)
        with attach(model, FixedExit(layer) if exits else NoExit()):
            out = model.generate(
                **inputs, max_new_tokens=STEPS, output_logits=True, return_dict_in_generate=True, **options
            )
        tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
        for step in range(STEPS):
            expected = reference(model, prompts, inputs, layer)[:, -1]
            torch.testing.assert_close(out.logits[step], expected, rtol=0, atol=TOLERANCE)
            expected[:, PLACEHOLDERS] = -torch.inf
            assert torch.equal(expected.argmax(-1), tokens[:, step])
            inputs = prompts.extended(inputs, tokens[:, step])


@torch.no_grad()
def test_beams_without_exit_are_the_stock_models(family):
    model, prompts = family
    if prompts.case.alone or not prompts.case.beams:
        pytest.skip(
            "the stock model is wrong in padded batches, which beams of two prompts are, or has no beams"
        )
    inputs = prompts.inputs(0, 1)
    options = {
        "max_new_tokens": STEPS,
        "num_beams": 3,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    options["suppress_tokens"] = PLACEHOLDERS
    stock = model.generate(**inputs, **options)
    with attach(model, NoExit()):
        assert torch.equal(model.generate(**inputs, **options), stock)


@torch.no_grad()
def test_flops_are_those_of_torchs_counter(family):
    """Eager attention, into which torch's counter sees; the counter's own breakdown by module."""
    model, prompts = family
    decoder = adapter_for(model).decoder(model)
    own = decoder.config._attn_implementation_internal
    decoder.config._attn_implementation_internal = "eager"
    if hasattr(decoder.config, "_experts_implementation_internal"):
        decoder.config._experts_implementation_internal = (
            "eager"  # the counter does not see into grouped products
        )
    try:
        inputs = prompts.inputs(0)
        with attach(model, FixedExit(prompts.case.exits[0])) as handle:
            model(**inputs)  # the tower is counted now, and its count kept
            with FlopCounterMode(display=False, custom_mapping=SDPA_ON_CPU) as counter:
                model(**inputs)
            report = prefill_flops(model, handle.traces[-1])
    finally:
        decoder.config._attn_implementation_internal = own
    names = {id(module): name for name, module in model.named_modules()}
    counts = {name: sum(parts.values()) for name, parts in counter.get_flop_counts().items()}
    root = type(model).__name__
    layers = sum(counts.get(f"{root}.{names[id(layer)]}", 0) for layer in decoder.layers)
    assert report.decoder[0] == layers
    text = (decoder, model.get_output_embeddings())
    vision = counts["Global"] - sum(counts.get(f"{root}.{names[id(part)]}", 0) for part in text)
    assert report.vision[0] + report.projector[0] == vision > 0
    assert handle.traces[-1].report()[0].full_decoder_tflops > report.decoder[0] / 1e12


@torch.no_grad()
def test_labels_equal_separate_runs(family):
    """Positions, blocks and features of the family's own code reach the labels: exits agree with ``FixedExit``."""
    model, prompts = family
    answer = torch.randint(10, 90, (4, 2), generator=torch.Generator().manual_seed(5))
    for chosen in batches(prompts):
        inputs = prompts.inputs(*chosen)
        asked = inputs["input_ids"].shape
        for token in answer[:, : len(chosen)]:
            inputs = prompts.extended(inputs, token)
        labels = inputs["input_ids"].clone()
        labels[:, : asked[1]] = IGNORE_INDEX
        as_prompt = {name: torch.zeros_like(inputs[name]) for name in prompts.case.extended}
        for name in as_prompt:
            as_prompt[name][:, : asked[1]] = inputs[name][:, : asked[1]]
        with attach(model, NoExit()) as handle:
            found = supervise(model, **vars(embedded_call(handle, model, {**inputs, **as_prompt}, labels)))
        for layer in range(len(found.layers)):
            with attach(model, FixedExit(layer)):
                logits = model(**inputs, use_cache=False).logits[:, asked[1] - 1 : -1]
            losses = torch.nn.functional.cross_entropy(
                logits.double().transpose(1, 2), labels[:, asked[1] :], reduction="none"
            )
            torch.testing.assert_close(found.loss_with_exit[layer], losses.mean(1), rtol=1e-4, atol=1e-4)
        with attach(model, NoExit()):
            logits = model(**inputs, use_cache=False).logits[:, asked[1] - 1 : -1]
        losses = torch.nn.functional.cross_entropy(
            logits.double().transpose(1, 2), labels[:, asked[1] :], reduction="none"
        )
        torch.testing.assert_close(found.loss_without_exit, losses.mean(1), rtol=1e-4, atol=1e-4)
