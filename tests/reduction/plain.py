"""A plain computation of one prompt: full eager attention, where tokens that left are masked instead of dropped."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class PlainRun:
    """One prompt through a Llama decoder, token by token where a rule acts.

    Attributes:
        hidden: (S, D) states after the layer at hand.
        visual: which tokens are visual; alive: which are still there.
        size: of how many tokens each is the mean.
        last: the last prompt token; what follows it was generated.
        weights: (heads, S, S), keys, values: (heads, S, head_dim) of the layer at hand, after rotary embedding.
        tokens: prompt tokens alive in each layer.
        exit: the layer after which the last visual token left.
    """

    def __init__(self, decoder, embeds: Tensor, visual: Tensor, generated: int):
        self.decoder, self.hidden, self.visual = decoder, embeds.clone(), visual.tolist()
        self.last = len(embeds) - generated - 1
        self.alive = [True] * len(embeds)
        self.size = [1.0] * len(embeds)
        self.tokens: list[int] = []
        self.exit: int | None = None

    def images(self) -> list[int]:
        """The visual tokens that are still there."""
        return [
            t
            for t, (visual, alive) in enumerate(zip(self.visual, self.alive, strict=True))
            if visual and alive
        ]

    def drop(self, tokens) -> None:
        for token in tokens:
            self.alive[token] = False

    def run(self, rule) -> Tensor:
        """The final states (S, D); ``rule(layer, run)`` is asked before the first layer (-1) and after each."""
        acts = any(self.visual) and not self.visual[self.last]
        self._ask(rule, -1, acts)
        for index, layer in enumerate(self.decoder.layers):
            self.tokens.append(sum(self.alive[: self.last + 1]))
            self._layer(layer)
            self._ask(rule, index, acts)
        return self.decoder.norm(self.hidden)

    def _ask(self, rule, index: int, acts: bool) -> None:
        if acts and self.images():
            rule(index, self)
            if not self.images():
                self.exit = index

    def _layer(self, layer) -> None:
        attention, count = layer.self_attn, len(self.hidden)
        states = layer.input_layernorm(self.hidden)
        shape = (1, count, -1, attention.head_dim)
        query, key, value = (
            project(states).view(shape).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        cos, sin = self.decoder.rotary_emb(states[None], position_ids=torch.arange(count)[None])
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        self.heads_of_keys = key[0]
        repeats = query.shape[1] // key.shape[1]
        self.keys, self.values = (s[0].repeat_interleave(repeats, 0) for s in (key, value))
        scores = query[0] @ self.keys.transpose(1, 2) / attention.head_dim**0.5
        scores = scores + torch.tensor(self.size).log()
        seen = torch.ones(count, count).tril().bool() & torch.tensor(self.alive) | torch.eye(count).bool()
        self.weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out = attention.o_proj((self.weights @ self.values).transpose(0, 1).flatten(1))
        hidden = self.hidden + out
        self.hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def nothing(layer: int, run: PlainRun) -> None:
    """The rule of a method that lets all tokens stay."""


def best(tokens: list[int], score: Tensor, count: int) -> list[int]:
    """The ``count`` tokens with the highest scores."""
    return sorted(tokens, key=lambda token: -score[token].item())[:count]


def fastv(k: int, r: float):
    def rule(layer, run):
        if layer == k - 1:
            images = run.images()
            score = run.weights[:, run.last].mean(0)
            run.drop(
                set(images)
                - set(best(images, score, max(1, int(len(images) * (1 - r) + 1e-9)) if r < 1 else 0))
            )

    return rule


def pyramid(ends: list[int], ratio: float):
    def rule(layer, run):
        if layer in ends:
            count = int(sum(run.visual) * ratio ** (ends.index(layer) + 1))
            images = run.images()
            run.drop(set(images) - set(best(images, run.weights[:, run.last].mean(0), max(count, 1))))

    return rule


def withdraw(k: int):
    def rule(layer, run):
        if layer == k - 1:
            run.drop(run.images())

    return rule


def tome(r: int, layers):
    def rule(layer, run):
        if layer not in layers:
            return
        images, key = run.images(), run.heads_of_keys.mean(0)
        pairs = []
        for token in images[::2]:
            near = {
                other: torch.cosine_similarity(key[token], key[other], dim=0).item() for other in images[1::2]
            }
            if near:
                partner = max(near, key=lambda other: near[other])
                pairs.append((near[partner], token, partner))
        before, sizes = run.hidden.clone(), list(run.size)
        groups: dict[int, list[int]] = {}
        for _, token, partner in sorted(pairs, reverse=True)[: min(r, len(images) // 2)]:
            groups.setdefault(partner, [partner]).append(token)
            run.drop([token])
        for partner, members in groups.items():
            run.size[partner] = sum(sizes[m] for m in members)
            run.hidden[partner] = sum(sizes[m] * before[m] for m in members) / run.size[partner]

    return rule


def pool(s: int, sides: list[int]):
    def rule(layer, run):
        if layer != -1:
            return
        images, at = run.images(), 0
        for side in sides:
            grid = torch.tensor(images[at : at + side**2]).view(side, side)
            at += side**2
            for top in range(0, side, s):
                for left in range(0, side, s):
                    block = grid[top : top + s, left : left + s].flatten().tolist()
                    run.hidden[block[0]] = run.hidden[block].mean(0)
                    run.drop(block[1:])

    return rule


def stability(start: int, jump: float, size: float, still: float, patience: int):
    state = {"read": False, "still": 0}

    def output(run, without=None):
        weights = run.weights[:, run.last].clone()
        if without is not None:
            weights[:, without] = 0
        return torch.einsum("hn,hnd->hd", weights, run.values).flatten()

    def rule(layer, run):
        if layer < start:
            return
        full = output(run)
        cut = {token: output(run, token) for token in run.images()}
        cosines = [torch.cosine_similarity(full, other, dim=0).item() for other in cut.values()]
        if not state["read"]:
            if min(cosines) < jump:
                state["read"] = True
                run.drop([token for token, other in cut.items() if (full - other).norm() <= size])
        else:
            state["still"] += min(cosines) >= still
            if state["still"] >= patience:
                run.drop(run.images())

    return rule


def together(*rules):
    def rule(layer, run):
        for one in rules:
            if run.images():
                one(layer, run)

    return rule
