"""Grouping by modality and length."""

from __future__ import annotations

import random

import pytest
import torch

from dyvte.gates.sampler import ModalityLengthSampler, length_grouped_indices, modality_grouped_indices

BATCH, WORLD = 4, 2
MEGA = BATCH * WORLD


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed(count: int = 103) -> list[int]:
    draw = random.Random(0)
    return [draw.randint(1, 200) * draw.choice([1, 1, -1]) for _ in range(count)]


def megabatches(order: list[int]) -> list[list[int]]:
    return [order[start : start + MEGA] for start in range(0, len(order), MEGA)]


def test_every_sample_comes_once():
    lengths = mixed()
    assert sorted(modality_grouped_indices(lengths, BATCH, WORLD, generator())) == list(range(len(lengths)))


def test_modalities_do_not_share_a_megabatch_before_the_leftover():
    lengths = mixed()
    image = sum(length > 0 for length in lengths)
    full = (image - 1) // MEGA + (len(lengths) - image - 1) // MEGA
    batches = megabatches(modality_grouped_indices(lengths, BATCH, WORLD, generator()))
    assert full > 3
    for batch in batches[:full]:
        assert len({lengths[index] > 0 for index in batch}) == 1
    assert {lengths[index] > 0 for batch in batches[full:] for index in batch} == {True, False}


def test_a_megabatch_is_dealt_evenly_to_processes():
    lengths = [abs(length) for length in mixed(96)]
    for batch in megabatches(
        length_grouped_indices(lengths, BATCH, WORLD, generator(), list(range(len(lengths))))
    ):
        words = [
            sum(lengths[index] for index in batch[part * BATCH : (part + 1) * BATCH]) for part in range(WORLD)
        ]
        assert abs(words[0] - words[1]) <= max(lengths[index] for index in batch)
        for part in range(WORLD):
            own = [lengths[index] for index in batch[part * BATCH : (part + 1) * BATCH]]
            assert own == sorted(own, reverse=True)


def test_one_modality_alone():
    lengths = [-length for length in range(1, 30)]
    assert sorted(modality_grouped_indices(lengths, BATCH, WORLD, generator())) == list(range(29))


def test_length_zero_is_refused():
    with pytest.raises(ValueError, match="length zero"):
        modality_grouped_indices([1, 0], BATCH, WORLD, generator())


def test_order_depends_on_seed_and_epoch_alone():
    def epoch(number: int, seed: int = 3) -> list[int]:
        torch.manual_seed(random.randrange(1000))
        sampler = ModalityLengthSampler(mixed(), BATCH, WORLD, seed)
        sampler.set_epoch(number)
        assert len(sampler) == 103
        return list(sampler)

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=4)
