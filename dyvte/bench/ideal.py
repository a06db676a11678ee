"""The shortest time that an exit could take, computed from measured times of the layers.

Transformers' own forward runs the prompts with and without their images in the same rounds as the variants, with a
clock at every layer. An exit after layer l takes at best the layers 0..l of the first and the layers above l of
the second. When samples of a batch exit at different layers, each layer counts by the share of samples that still
have their image there: a straight line between the two measured times.

Called by :mod:`dyvte.bench.decode`, :mod:`dyvte.bench.graphed` and :mod:`dyvte.bench.prefill`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dyvte.cost.flops import layer_flops


@dataclass(frozen=True)
class Probe:
    """One run of transformers' own forward.

    Attributes:
        layers: seconds per layer.
        total: seconds of the whole forward: embedding mask, norm and language head too.
    """

    layers: list[float]
    total: float

    @property
    def parts(self) -> list[float]:
        """Seconds per layer and, last, of everything else."""
        return [*self.layers, self.total - sum(self.layers)]


def image_shares(exits: Sequence[int | None], num_layers: int) -> list[float]:
    """Share of samples that compute their image in layer 0, 1, ..., and, last, at the end of the decoder."""
    return [
        sum(exit_layer is None or exit_layer >= layer for exit_layer in exits) / len(exits)
        for layer in range(num_layers + 1)
    ]


def ideal_seconds(with_image: Probe, text_only: Probe, exits: Sequence[int | None]) -> float:
    """Seconds that exits after these layers (one per sample, None: never) would take at best."""
    shares = image_shares(exits, len(with_image.layers))
    parts = zip(shares, with_image.parts, text_only.parts, strict=True)
    return sum(share * whole + (1 - share) * short for share, whole, short in parts)


def ideals(probes: Sequence[tuple[Probe, Probe]], exits: Sequence[int | None] | None) -> list[float] | None:
    """:func:`ideal_seconds` of each round's probes; None for a method that is no exit."""
    return None if exits is None else [ideal_seconds(*pair, exits) for pair in probes]


def decoder_flops(config, tokens_per_layer: Sequence[Sequence[int]]) -> int:
    """FLOPs of all layers for [layer][sample] tokens."""
    return sum(layer_flops(config, tokens) for row in tokens_per_layer for tokens in row)
