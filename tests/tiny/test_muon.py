"""Muon beside AdamW in one optimizer."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dyvte.tiny.muon import MuonAdamW, orthogonalize


def test_orthogonalized_matrices_keep_their_directions():
    torch.manual_seed(0)
    for shape in ((3, 8, 5), (2, 5, 8), (4, 6, 6)):
        matrices = torch.randn(shape)
        u, values, vh = torch.linalg.svd(orthogonalize(matrices), full_matrices=False)
        assert values.min() > 0.5 and values.max() < 1.3
        u0, _, vh0 = torch.linalg.svd(matrices, full_matrices=False)
        torch.testing.assert_close(u @ vh, u0 @ vh0, atol=2e-3, rtol=0)


def test_other_groups_take_adamws_steps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    twin = copy.deepcopy(model)
    matrix, rest = model[0].weight, [model[0].bias, *model[1].parameters()]
    ours = MuonAdamW([{"params": [matrix], "muon": True, "lr": 0.1}, {"params": rest}], lr=0.01)
    plain = torch.optim.AdamW([twin[0].bias, *twin[1].parameters()], lr=0.01)
    before = matrix.detach().clone()
    inputs = torch.randn(32, 6)
    for module, optimizer in ((model, ours), (twin, plain)):
        module(inputs).square().sum().backward()
        optimizer.step()
    for parameter, expected in zip(rest, plain.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(parameter, expected)
    moved = matrix.detach() - before + 0.1 * 0.01 * before  # weight decay's share taken off
    assert abs(moved.square().mean().sqrt() / (0.1 * 0.2) - 1) < 0.3


def test_state_survives_saving():
    torch.manual_seed(0)
    runs = []
    for interrupted in (False, True):
        torch.manual_seed(1)
        weight = nn.Parameter(torch.randn(4, 3))
        optimizer = MuonAdamW([{"params": [weight], "muon": True}], lr=0.05)
        for step in range(4):
            if interrupted and step == 2:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = MuonAdamW([{"params": [weight], "muon": True}], lr=0.05)
                optimizer.load_state_dict(saved)
            optimizer.zero_grad()
            (weight.sin().sum() + step * weight.square().sum()).backward()
            optimizer.step()
        runs.append(weight.detach())
    assert torch.equal(*runs)
