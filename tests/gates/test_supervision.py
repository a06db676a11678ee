"""Labels from one forking pass equal those of separate runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from dyvte import ExitGates, FixedExit, NoExit, attach
from dyvte.gates.states import STATES, gather_states
from dyvte.gates.supervision import gate_loss, labels_of, supervise
from tests.conftest import LAYERS

PROMPTS = (
    ([1, 5, 6, "v", "v", "v", 7, 8], [9, 10, 2]),
    ([1, "v", 3, "v", 4, 5, 6, 7], [11, 2]),
    ([1, 20, 21], [22, 2]),  # no image: nothing to learn
    ([1, 4, "v", "v"], [12, 2]),  # the image stands last: its tokens predict the answer
    (["v", "v", "v", "v", 30], [31, 32, 33, 34, 2]),
    ([1, "v", "v", 60, 61], []),  # no answer
)


@pytest.fixture
def batch(hf_llava):
    """A teacher-forced batch, padded on the right; visual tokens get random features."""
    torch.manual_seed(0)
    wide = max(len(p) + len(a) for p, a in PROMPTS)
    ids = torch.zeros(len(PROMPTS), wide, dtype=torch.long)
    labels, visual = torch.full_like(ids, -100), torch.zeros_like(ids, dtype=torch.bool)
    mask = torch.zeros_like(ids)
    for i, (prompt, answer) in enumerate(PROMPTS):
        row = [*prompt, *answer]
        mask[i, : len(row)] = 1
        visual[i, : len(row)] = torch.tensor([t == "v" for t in row])
        ids[i, : len(row)] = torch.tensor([0 if t == "v" else t for t in row])
        labels[i, len(prompt) : len(row)] = torch.tensor(answer, dtype=torch.long)
    embeds = hf_llava.get_input_embeddings()(ids).detach().clone()
    embeds[visual] = torch.randn_like(embeds[visual]) * embeds.std() * 2
    return {"inputs_embeds": embeds, "labels": labels, "visual_mask": visual, "attention_mask": mask}


@torch.no_grad()
def run(model, batch, policy):
    """Per sample mean cross-entropy and argmaxes at the answer, by an ordinary forward under a policy."""
    with attach(model, policy):
        logits = model.model.language_model(
            inputs_embeds=batch["inputs_embeds"],
            attention_mask=batch["attention_mask"],
            visual_mask=batch["visual_mask"],
            use_cache=False,
        ).last_hidden_state
    logits = model.lm_head(logits).double()[:, :-1]
    target = batch["labels"][:, 1:]
    out = []
    for i in range(len(target)):
        at = target[i] != -100
        out.append((cross_entropy(logits[i, at], target[i, at]), logits[i, at].argmax(-1)))
    return out


@pytest.mark.parametrize("alpha", [1.03, 2.0])
def test_all_layer_labels_equal_separate_runs(hf_llava, batch, alpha):
    got = supervise(hf_llava, **batch, alpha=alpha)
    assert got.samples == (0, 1, 4) and got.layers == tuple(range(LAYERS))
    plain = run(hf_llava, batch, NoExit())
    for layer in range(LAYERS):
        with_exit = run(hf_llava, batch, FixedExit(layer))
        for i, sample in enumerate(got.samples):
            (loss, choice), (exit_loss, exit_choice) = plain[sample], with_exit[sample]
            label = bool((choice == exit_choice).all()) and bool(exit_loss < alpha * loss)
            assert got.labels[layer, i] == int(label)
            torch.testing.assert_close(got.loss_with_exit[layer, i], exit_loss, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(got.loss_without_exit[i], loss, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(got.agreement[layer, i], (choice == exit_choice).double().mean())
    assert got.labels[-1].all(), "after the last layer nothing depends on the image any more"
    assert 0 < got.labels.sum() < got.labels.numel(), "labels must differ for this to say anything"


@pytest.mark.parametrize("layer", range(LAYERS))
def test_one_layer_equals_all_layers(hf_llava, batch, gates, layer):
    everything, one = supervise(hf_llava, **batch), supervise(hf_llava, **batch, layers=[layer])
    assert torch.equal(one.labels[0], everything.labels[layer])
    torch.testing.assert_close(one.states[0], everything.states[layer])
    loss, (seen, positive, _) = gate_loss(gates, one)
    expected = cross_entropy(gates(layer, everything.states[layer]), everything.labels[layer])
    torch.testing.assert_close(loss, expected)
    assert seen.tolist() == [3 if i == layer else 0 for i in range(LAYERS)]
    assert positive[layer] == everything.labels[layer].sum()


def test_gradients_reach_the_gates_alone(hf_llava, batch):
    gates = ExitGates(LAYERS, 64, 8)
    loss, _ = gate_loss(gates, supervise(hf_llava, **batch, layers=[1]))
    loss.backward()
    grown = [bool(gate.w1.weight.grad.abs().sum() > 0) for gate in gates.layers]
    assert grown == [False, True, False, False]
    assert all(parameter.grad is None for parameter in hf_llava.parameters())


def test_states_come_from_the_prompt_only(hf_llava, batch):
    """Other answers, same prompts: the states that gates look at stay the same."""
    before = supervise(hf_llava, **batch, states=STATES)
    answers = batch["labels"] != -100
    batch["inputs_embeds"] = batch["inputs_embeds"].masked_fill(answers[..., None], 0.3)
    batch["labels"] = batch["labels"].masked_fill(answers, 50)
    after = supervise(hf_llava, **batch, states=STATES)
    torch.testing.assert_close(after.states, before.states)
    assert not torch.allclose(after.loss_without_exit, before.loss_without_exit)


def test_states_equal_those_at_inference(hf_llava, batch):
    """Training looks at what a prefill of the prompt alone would show."""
    sample = 0
    prompt, _ = PROMPTS[sample]
    seen = []

    class Look(NoExit):
        def edit(self, layer, row, trace):
            seen.append(gather_states(row, STATES))
            return row

    cut = slice(0, len(prompt))
    with attach(hf_llava, Look()), torch.no_grad():
        hf_llava.model.language_model(
            inputs_embeds=batch["inputs_embeds"][sample : sample + 1, cut],
            visual_mask=batch["visual_mask"][sample : sample + 1, cut],
        )
    got = supervise(hf_llava, **batch, states=STATES)
    torch.testing.assert_close(
        torch.cat(seen), got.states[:, got.samples.index(sample)], rtol=1e-4, atol=1e-5
    )


def test_a_batch_that_says_nothing_gives_zero(hf_llava, batch, gates):
    nothing = supervise(hf_llava, **{key: value[2:4] for key, value in batch.items()})
    loss, counts = gate_loss(gates, nothing)
    assert nothing.samples == () and loss == 0 and loss.requires_grad and counts.sum() == 0


def test_bad_settings_are_refused(hf_llava, batch):
    for bad, message in (
        ({"alpha": 0}, "alpha"),
        ({"layers": [9]}, r"0\.\.3"),
        ({"states": ["x"]}, "states"),
    ):
        with pytest.raises(ValueError, match=message):
            supervise(hf_llava, **batch, **bad)


def test_an_exit_that_changes_nothing_may_leave():
    """Very confident answers have a cross-entropy of 0, of which no loss is below any multiple."""
    agreement, zero = torch.ones(2, 1), torch.zeros(2, dtype=torch.float64)
    assert labels_of(agreement, zero[:, None], zero, 1.03).tolist() == [[1], [1]]
    assert labels_of(agreement, zero[:, None] + 1, zero, 1.03).tolist() == [[0], [0]]
    assert labels_of(agreement / 2, zero[:, None], zero, 1.03).tolist() == [[0], [0]]


def test_repeated_layers_count_once(hf_llava, batch):
    once, twice = supervise(hf_llava, **batch, layers=[2]), supervise(hf_llava, **batch, layers=[2, 2])
    assert twice.layers == (2,) and torch.equal(twice.labels, once.labels)
    assert torch.equal(twice.states, once.states)
