"""What one prefill did: exit layers, gate probabilities, tokens per layer, per sample.

Called from most of the project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dyvte.cost.exits import decoder_flops_by_exit
from dyvte.cost.flops import prefill_flops
from dyvte.cost.kv import kv_bytes
from dyvte.cost.layers import layer_costs
from dyvte.decoding.packed import Layout
from dyvte.decoding.report import PrefillReport, RunInfo

TERA = 1e12


class ExitTrace:
    """Record of one prefill of a batch; policies write to it, reports read it.

    Attributes:
        num_layers: decoder layers.
        exit_layers: one entry per sample, the zero-based exit layer or None when the image stayed to the end.
        prompt_tokens: tokens per sample before any exit, visual ones included.
        visual_tokens: visual tokens per sample.
        vision_flops: FLOPs of tower and projector over the whole batch, where torch counted them.
        scratch: what a policy hands from one of its calls to a later one of the same prefill.

    Args:
        model, run: whose prefill it is, and under what conditions; :meth:`report` needs the model.
    """

    def __init__(self, num_layers: int, layout: Layout, model: Any = None, run: RunInfo | None = None):
        self.num_layers = num_layers
        self._model, self._run = model, run
        self.exit_layers: list[int | None] = [None] * len(layout.lengths)
        self.prompt_tokens = list(layout.lengths)
        self.visual_tokens = list(layout.visual)
        self.vision_flops: int | None = None
        self.scratch: dict[object, Any] = {}
        self._answers: dict[object, tuple[Layout, Tensor]] = {}
        self._tokens: list[tuple[int, ...]] = []
        self._probabilities: list[tuple[int, list[int], Tensor]] = []
        self._flops: list[tuple[int, list[int], int]] = []  # added up when someone asks

    @property
    def num_samples(self) -> int:
        """Samples in the batch."""
        return len(self.exit_layers)

    def record_layer(self, layout: Layout) -> None:
        """Note the tokens that the next layer computes (called by the layer loop)."""
        self._tokens.append(layout.lengths[: self.num_samples])

    def note_answer(self, policy: object, layout: Layout, answer: Tensor) -> None:
        """Keep what a policy's probe gave for the layer just computed, (n,) float32 on the host."""
        self._answers[policy] = layout, answer

    def answer(self, policy: object, layout: Layout) -> Tensor | None:
        """What the policy's probe gave for the layer just computed.

        None where it did not run, or ran on another row than this (another policy has edited it since).
        """
        noted = self._answers.pop(policy, None)
        return noted[1] if noted is not None and noted[0] is layout else None

    def record_gate(self, layer: int, samples: Sequence[int], probabilities: Tensor, flops: int) -> None:
        """Note that a gate of ``flops`` FLOPs gave these exit ``probabilities`` (n,) for these ``samples``."""
        self._probabilities.append((layer, list(samples), probabilities.detach()))
        self._flops.append((layer, list(samples), flops))

    def record_scores(self, layer: int, sample: int, flops: int) -> None:
        """Note that a policy without gates computed ``flops`` FLOPs for a sample to choose tokens after ``layer``."""
        self._flops.append((layer, [sample], flops))

    def record_exit(self, layer: int, samples: Sequence[int]) -> None:
        """Note that the visual tokens of these ``samples`` leave after ``layer``."""
        for sample in samples:
            self.exit_layers[sample] = layer

    @property
    def tokens_per_layer(self) -> Tensor:
        """(layers, samples) long: tokens that each layer computed, and so the KV entries it holds after prefill."""
        return torch.tensor(self._tokens, dtype=torch.long).view(-1, self.num_samples)

    @property
    def exit_probabilities(self) -> Tensor:
        """(layers, samples) float32: exit probability from each gate, NaN where none ran."""
        out = torch.full((self.num_layers, self.num_samples), float("nan"))
        for layer, samples, probabilities in self._probabilities:
            out[layer, samples] = probabilities.float().cpu()
        return out

    @property
    def gate_flops(self) -> Tensor:
        """(layers, samples) long: FLOPs (2 x multiply-accumulate) of the gates, or scores, that decided."""
        out = torch.zeros(self.num_layers, self.num_samples, dtype=torch.long)
        for layer, samples, flops in self._flops:
            out[layer, samples] += flops
        return out

    @property
    def mean_exit_layer(self) -> float:
        """Mean over samples; a sample without exit counts as the number of layers."""
        layers = [self.num_layers if layer is None else layer for layer in self.exit_layers]
        return sum(layers) / len(layers)

    def report(self) -> list[PrefillReport]:
        """One report per sample.

        Raises:
            ValueError: the trace was made without its model, as by :func:`dyvte.decoding.loop.run_layers` alone.
        """
        if self._model is None:
            raise ValueError(
                "this trace does not know its model: report() is for traces of an attached handle"
            )
        costs = layer_costs(self._model)
        flops = prefill_flops(self._model, self)
        held = kv_bytes(costs, self, self._model.dtype)
        full = decoder_flops_by_exit(costs, self.prompt_tokens, self.visual_tokens)[-1].tolist()
        tokens, probabilities = self.tokens_per_layer.T.tolist(), self.exit_probabilities.T.tolist()
        return [
            PrefillReport(
                exit_layer=self.exit_layers[sample],
                tokens_per_layer=tuple(tokens[sample]),
                exit_probabilities=_up_to_last(probabilities[sample]),
                tflops=flops.total[sample] / TERA,
                decoder_tflops=(flops.decoder[sample] + flops.gates[sample]) / TERA,
                full_decoder_tflops=full[sample] / TERA,
                kv_bytes=held[sample],
                prompt_tokens=self.prompt_tokens[sample],
                visual_tokens=self.visual_tokens[sample],
                run=self._run,
            )
            for sample in range(self.num_samples)
        ]


def _up_to_last(probabilities: list[float]) -> tuple[float | None, ...]:
    """Without the NaNs after the last gate that ran; the others become None."""
    ran = [layer for layer, p in enumerate(probabilities) if not math.isnan(p)]
    kept = probabilities[: ran[-1] + 1] if ran else []
    return tuple(None if math.isnan(p) else p for p in kept)
