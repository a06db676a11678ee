"""Which keys the queries of a decoder layer see, beside those of their own sequence that came before them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerRule:
    """The rule of one layer.

    Distances are in *places*: where a token stood in its unpadded prompt. They differ from rotary positions under
    M-RoPE, and an exit changes no place, so it changes no window.

    Attributes:
        window: only the last ``window`` places, its own included; None for all.
        chunk: only the query's own chunk of ``chunk`` places; None for all.
        blocks: whether tokens of one block (of an image, say) see each other in both directions.
        window_cuts_blocks: whether window and chunk also hold within a block.
        softcap: attention scores are squeezed into -softcap .. softcap by a tanh; None: they are not.
    """

    window: int | None = None
    chunk: int | None = None
    blocks: bool = True
    window_cuts_blocks: bool = True
    softcap: float | None = None

    @property
    def local(self) -> bool:
        """Whether the layer looks at a part of the prompt only."""
        return self.window is not None or self.chunk is not None

    def sees_all(self, extent: int) -> bool:
        """Whether the rule limits no query of a prompt of ``extent`` places."""
        return not self.local or extent <= (self.window or self.chunk or extent)

    def near(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Which keys are within window or chunk: places that broadcast -> bool."""
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
