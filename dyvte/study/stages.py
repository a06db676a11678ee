"""Three stages of inference, found in the numbers.

The rule: the layers are cut into three runs, each at least one layer long. Among all such cuts, take the one with the
least sum of squared distances from the runs' means, over the curves of ``image_self`` and ``cross`` mass, each scaled
to mean 0 and variance 1 over the layers (``text_self`` is 1 minus ``cross`` and would say the same again). Of equal
cuts the earliest is taken.

Called by :mod:`dyvte.study.attention` and :mod:`dyvte.study.plot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

NAMES = ("early fusion", "intra-modality modelling", "multimodal reasoning")


@dataclass(frozen=True)
class Stages:
    """Where the stages begin, and how distinct they are.

    Attributes:
        starts: the first layer of the second and of the third stage.
        explained: share of the curves' variance over the layers that the cut explains, between 0 and 1. It says
            how step-like the curves are; three runs explain a part of any curve.
        cross: mean cross-attention mass in each stage.
        as_in_paper: whether cross-attention falls from the first stage to the second and rises to the third.
    """

    starts: tuple[int, int]
    explained: float
    cross: tuple[float, float, float]
    as_in_paper: bool


def find_stages(image_self: Sequence[float] | NDArray, cross: Sequence[float] | NDArray) -> Stages | None:
    """The stages of a model from two curves over its layers; None where a layer has no value or there are too few.

    Args:
        image_self, cross: (L,) mean mass of each layer.
    """
    curves = np.array([image_self, cross], dtype=np.float64)
    if curves.shape[1] < len(NAMES) or not np.isfinite(curves).all():
        return None
    spread = curves.std(1, keepdims=True)
    scaled = (curves - curves.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    total = float((scaled**2).sum())
    cuts = list(combinations(range(1, curves.shape[1]), 2))
    errors = [
        float(sum(((run - run.mean(1, keepdims=True)) ** 2).sum() for run in np.split(scaled, cut, axis=1)))
        for cut in cuts
    ]
    best = int(np.argmin(errors))
    first, second, third = (float(part.mean()) for part in np.split(curves[1], cuts[best]))
    return Stages(
        starts=cuts[best],
        explained=1 - errors[best] / total if total else 1.0,
        cross=(first, second, third),
        as_in_paper=first > second and second < third,
    )
