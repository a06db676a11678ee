"""Which keys each query of a decoder layer sees (:class:`LayerRule`): causal, with windows, chunks and blocks.

:mod:`dyvte.families.stack` makes one per layer, :mod:`dyvte.decoding.attention.plan` chooses kernels by it. Masks
must equal those of transformers on an unpadded prompt (``tests/families``).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerRule:
    """The rule of one layer.

    Distances are in *places*: indices of tokens in their unpadded prompt. They differ from rotary positions under
    M-RoPE, and an exit changes no place, so it changes no window.

    Attributes:
        window: a query sees the last ``window`` places, its own included; None: all.
        chunk: a query sees its own chunk of ``chunk`` places; None: all.
        blocks: whether tokens of one block (of an image, say) see each other in both directions.
        window_cuts_blocks: whether window and chunk also limit what tokens of one block see of each other.
        softcap: attention logits become ``softcap * tanh(logits / softcap)``; None: they stay.
    """

    window: int | None = None
    chunk: int | None = None
    blocks: bool = True
    window_cuts_blocks: bool = True
    softcap: float | None = None

    @property
    def local(self) -> bool:
        """Whether the layer has a window or chunks."""
        return self.window is not None or self.chunk is not None

    def sees_all(self, extent: int) -> bool:
        """Whether the rule limits no query of a prompt of ``extent`` places."""
        return not self.local or extent <= (self.window or self.chunk or extent)

    def near(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Which keys are within the query's window or chunk; the places must broadcast."""
        if self.window is not None:
            return keys > queries - self.window
        assert self.chunk is not None, "a rule that is not local limits nothing"
        return keys // self.chunk == queries // self.chunk

    def mask(
        self,
        queries: Tensor,
        keys: Tensor,
        query_blocks: Tensor | None = None,
        key_blocks: Tensor | None = None,
    ) -> Tensor:
        """Which keys each query sees, (..., 1, Q, K) bool.

        Args:
            queries, keys: (..., Q) and (..., K) places.
            query_blocks, key_blocks: the same of their blocks, -1 for tokens without one; None where there are none.
        """
        query, key = queries[..., :, None], keys[..., None, :]
        seen = key <= query
        if self.local and not self.window_cuts_blocks:
            seen = seen & self.near(query, key)
        if self.blocks and query_blocks is not None and key_blocks is not None:
            block = query_blocks[..., :, None]
            seen = seen | ((block == key_blocks[..., None, :]) & (block >= 0))
        if self.local and self.window_cuts_blocks:
            seen = seen & self.near(query, key)
        return seen.unsqueeze(-3)
