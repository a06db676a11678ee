"""Choose the exit threshold for a share of answers that may change, or for a cost of the prefill.

The model answers a calibration set once without exit. One supervised pass over these answers then gives, for each
sample and layer, the gate's exit probability and whether an exit there keeps the answer. From that, any threshold can
be evaluated without running the model again.

- *At most x of the answers may change, with confidence c*: thresholds are tested from 1 (never exit, nothing
  changes) downwards, each by an exact binomial test, and the last one before the first failure is taken. Testing in
  a fixed order bounds the probability of a wrong guarantee by 1 - c for any number of thresholds (Learn then Test,
  Angelopoulos et al., arXiv:2110.01052, Section 4; unlike plain conformal risk control, arXiv:2208.02814, it needs no
  monotone loss). The guarantee holds for samples drawn like the calibration set.
- *A mean cost of at most c*: the highest threshold whose mean cost on the calibration set is within c.

Shapes: L layers, n samples, T thresholds.

Called by :mod:`dyvte.engine.calibrate`, :mod:`dyvte.study.gate_sizes` and :mod:`dyvte.study.supervision_modes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

CONFIDENCE = 0.95
GRID = 1000
"""Number of equal steps between 0 and 1 at which thresholds are evaluated."""
DESCENDING = [step / GRID for step in range(GRID, -1, -1)]


@dataclass(frozen=True)
class Outcomes:
    """What every exit would do to every sample of a calibration set.

    Attributes:
        probabilities: (L, n) exit probability that the gate of each layer gives.
        kept: (L, n) bool, whether an exit after that layer keeps the answer.
        costs: (L + 1, n) cost of a prefill with exit after each layer; the last row is without exit.
    """

    probabilities: NDArray
    kept: NDArray
    costs: NDArray

    def __post_init__(self) -> None:
        layers, samples = self.probabilities.shape
        if self.kept.shape != (layers, samples) or self.costs.shape != (layers + 1, samples) or not samples:
            shapes = self.probabilities.shape, self.kept.shape, self.costs.shape
            raise ValueError(f"outcomes need arrays (L, n), (L, n) and (L + 1, n) with samples, got {shapes}")

    def exits(self, threshold: float) -> NDArray:
        """(n,) exit layer of each sample; L for none. A NaN never exits."""
        fires = self.probabilities > threshold
        return np.where(fires.any(0), fires.argmax(0), len(fires))

    def changed(self, threshold: float) -> int:
        """Number of answers that an exit by this threshold changes."""
        never_changed = np.pad(self.kept, ((0, 1), (0, 0)), constant_values=True)
        return int((~self._at(never_changed, threshold)).sum())

    def cost(self, threshold: float) -> float:
        return float(self._at(self.costs, threshold).mean())

    def _at(self, values: NDArray, threshold: float) -> NDArray:
        return np.take_along_axis(values, self.exits(threshold)[None], 0)[0]


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it was chosen for; saved with the gates.

    Attributes:
        threshold: what was chosen.
        changed: share of the calibration answers that change with it.
        cost, full_cost: mean cost with it, and without exit, in ``unit``.
        samples: size of the calibration set.
        target: what was asked for, in words.
    """

    threshold: float
    changed: float
    cost: float
    full_cost: float
    unit: str
    samples: int
    target: str


def threshold_for_change(outcomes: Outcomes, most_changed: float, confidence: float = CONFIDENCE) -> float:
    """The lowest threshold with which, at this confidence, at most ``most_changed`` (a share) of answers change.

    Returns 1, which never exits, when the calibration set is too small for any lower promise.

    Raises:
        ValueError: a share outside [0, 1), or a confidence outside (0, 1).
    """
    if not 0 <= most_changed < 1 or not 0 < confidence < 1:
        raise ValueError(f"need 0 <= most_changed < 1, 0 < confidence < 1, got {most_changed}, {confidence}")
    samples, chosen = outcomes.kept.shape[1], 1.0
    # p-value of "more than most_changed of all answers change", by the number of changes that were seen
    p_values = binom.cdf(np.arange(samples + 1), samples, most_changed)
    for threshold in DESCENDING:
        if p_values[outcomes.changed(threshold)] > 1 - confidence:
            break
        chosen = threshold
    return chosen


def highest_within(outcomes: Outcomes, budget: float) -> float | None:
    """The highest threshold whose mean cost is within the budget; None where no threshold's is."""
    return next((threshold for threshold in DESCENDING if outcomes.cost(threshold) <= budget), None)


def threshold_for_cost(outcomes: Outcomes, budget: float) -> float:
    """As :func:`highest_within`.

    Raises:
        ValueError: no threshold's mean cost is within the budget; the message names the lowest cost.
    """
    if (threshold := highest_within(outcomes, budget)) is None:
        at_once = outcomes.cost(0.0)
        raise ValueError(f"a mean cost of {budget:g} cannot be reached; exits at once cost {at_once:g}")
    return threshold
