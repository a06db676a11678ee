"""The order of samples when batches are grouped by modality and length (LLaVA's rule).

The samples of one mega-batch (``batch_size`` for each of ``world_size`` processes) have about the same length. Image
and text-only samples never share a mega-batch, except the last one, which joins the remainders of both.

Called by :mod:`dyvte.gates.trainer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _deal_evenly(indices: list[int], lengths: list[int], hands: int) -> list[int]:
    """Reorder a mega-batch so that its ``hands`` equal parts hold about the same number of words.

    Each sample, longest first, is added to the part with the fewest words so far. When the number of samples is not
    divisible by the number of parts, samples are dealt in turn.
    """
    if len(indices) % hands != 0:
        return [index for start in range(hands) for index in indices[start::hands]]
    capacity = len(indices) // hands
    parts: list[list[int]] = [[] for _ in range(hands)]
    totals = [0.0] * hands
    for index in indices:
        part = min(range(hands), key=lambda number: totals[number])
        parts[part].append(index)
        totals[part] = totals[part] + lengths[index] if len(parts[part]) < capacity else float("inf")
    return [index for part in parts for index in part]


def length_grouped_indices(
    lengths: list[int],
    batch_size: int,
    world_size: int,
    generator: torch.Generator,
    among: list[int],
) -> list[int]:
    """A shuffle in mega-batches, each sorted from long to short samples and dealt evenly to the processes.

    Args:
        lengths: positive length of every sample.
        among: which samples to order.
    """
    shuffled = [among[position] for position in torch.randperm(len(among), generator=generator).tolist()]
    order: list[int] = []
    for chunk in _chunks(shuffled, batch_size * world_size):
        longest_first = sorted(chunk, key=lambda index: lengths[index], reverse=True)
        order += _deal_evenly(longest_first, lengths, world_size)
    return order


def modality_grouped_indices(
    lengths: list[int], batch_size: int, world_size: int, generator: torch.Generator
) -> list[int]:
    """As :func:`length_grouped_indices`, with text-only samples (negative lengths) kept apart.

    Raises:
        ValueError: when a length is zero, which has no modality.
    """
    if any(length == 0 for length in lengths):
        raise ValueError("a sample of length zero has no modality: remove empty conversations from the data")
    sizes = [abs(length) for length in lengths]
    image = [index for index, length in enumerate(lengths) if length > 0]
    text = [index for index, length in enumerate(lengths) if length < 0]
    if not image or not text:
        return length_grouped_indices(sizes, batch_size, world_size, generator, image or text)
    batches, rest = [], []
    for among in (image, text):
        order = length_grouped_indices(sizes, batch_size, world_size, generator, among)
        chunks = _chunks(order, batch_size * world_size)
        batches += chunks[:-1]
        rest += chunks[-1]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [index for number in shuffled for index in batches[number]] + sorted(rest)


@dataclass(eq=False)
class ModalityLengthSampler(Sampler[int]):
    """Yields :func:`modality_grouped_indices`, the same on every process, new in each epoch."""

    lengths: list[int]
    batch_size: int
    world_size: int
    seed: int
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the dataloader before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(modality_grouped_indices(self.lengths, self.batch_size, self.world_size, generator))
