"""Questions answered by several methods, compared at equal cost, with intervals by paired bootstrap.

Every resample draws questions with replacement, within each benchmark, and the same ones for all methods. Scores and
costs of a resample are means over its questions, and over benchmarks the mean of these. Intervals are percentiles.

*At equal cost* a family of settings (fixed exit layers, thresholds of gates) is a curve: between two settings that
are neighbours in cost its score is interpolated, which is what a random choice between the two for each question
gives. Below the cheapest setting, and above the most expensive, the curve has the score of that setting.

Shapes: R resamples after the sample itself (which comes first), n questions, P settings.

Called by :mod:`dyvte.study.dynamic`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
ROUNDING = 1e-9
"""Relative difference of two means that are equal but for the order of summation."""


@dataclass(frozen=True)
class Interval:
    """A number of the sample, and its confidence interval."""

    value: float
    low: float
    high: float


class Resamples:
    """The same resampled questions for every method.

    Args:
        sizes: benchmark -> number of questions.
        count: R.
        seed: of the draws.
    """

    def __init__(self, sizes: Mapping[str, int], count: int = 2000, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._weights = {
            name: np.concatenate([np.ones((1, n)), generator.multinomial(n, np.full(n, 1 / n), size=count)])
            / n
            for name, n in sorted(sizes.items())
        }

    def means(self, values: Mapping[str, NDArray]) -> NDArray:
        """Mean over the questions of each benchmark, then over benchmarks.

        Args:
            values: benchmark -> (n,).

        Returns:
            (R + 1,).
        """
        return np.mean([self._weights[name] @ value for name, value in values.items()], axis=0)


def interval(values: NDArray, confidence: float = CONFIDENCE) -> Interval:
    """Percentile interval of (R + 1,) values, of which the first is the sample's."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return Interval(float(values[0]), float(low), float(high))


def score_at(costs: NDArray, scores: NDArray, at: NDArray) -> NDArray:
    """A curve's score at each resample's own cost.

    Args:
        costs, scores: (R + 1, P) of the curve's settings, in any order.
        at: (R + 1,) costs.
    """
    order = np.argsort(costs, axis=1, kind="stable")
    costs, scores = np.take_along_axis(costs, order, 1), np.take_along_axis(scores, order, 1)
    return np.array([np.interp(x, c, s) for x, c, s in zip(at, costs, scores, strict=True)])


def best_cheaper(costs: NDArray, scores: NDArray, most: NDArray) -> tuple[NDArray, NDArray]:
    """In each resample, the setting with the highest score among those that cost at most ``most``.

    Of equal scores the cheapest is taken. Where every setting costs more, it is the cheapest of all.

    Args:
        costs, scores: (R + 1, P) of the settings.
        most: (R + 1,) costs.

    Returns:
        (R + 1,) indices of settings, and (R + 1,) bool, whether one costs no more.
    """
    fits = costs <= most[:, None] * (1 + ROUNDING)
    highest = np.where(fits, scores, -np.inf).max(1, keepdims=True)
    chosen = np.where(fits & (scores == highest), costs, np.inf).argmin(1)
    any_fits = np.asarray(fits.any(1))
    return np.where(any_fits, chosen, costs.argmin(1)), any_fits
