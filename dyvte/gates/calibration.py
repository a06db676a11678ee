"""Choose the exit threshold in units that people think in: how many answers may change, or what a prefill may cost.

A calibration set is answered once without exit; one supervised pass over these answers then tells, for each sample
and layer, what the gate says there and whether an exit there would have kept the answer. Every threshold can be
judged from that without running the model again.

- *At most x of the answers may change, with confidence c*: thresholds are tested from 1 (never exit, nothing
  changes) downwards, each by an exact binomial test, and the last one before the first failure is taken. Testing in
  a fixed order keeps the chance of a wrong promise below 1 - c whatever the number of thresholds (Learn then Test,
  Angelopoulos et al., arXiv:2110.01052, Section 4; it needs no monotone loss, which plain conformal risk control,
  arXiv:2208.02814, does). The promise is for samples drawn like the calibration set.
- *A mean cost of at most c*: the highest threshold that keeps to it on the calibration set.

Shapes: L layers, n samples, T thresholds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

CONFIDENCE = 0.95
GRID = 1000
"""Thresholds that are judged: this many equal steps between 0 and 1."""


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
        """How many answers change."""
        never = np.ones((1, self.kept.shape[1]), dtype=bool)
        return int((~self._at(np.concatenate([self.kept, never]), threshold)).sum())

    def cost(self, threshold: float) -> float:
        """Mean cost."""
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

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def threshold_for_change(outcomes: Outcomes, most_changed: float, confidence: float = CONFIDENCE) -> float:
    """The lowest threshold with which, at this confidence, at most ``most_changed`` (a share) of answers change.

    Returns 1, which never exits, when the calibration set is too small for any lower promise.

    Raises:
        ValueError: a share outside [0, 1), or a confidence outside (0, 1).
    """
    if not 0 <= most_changed < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"need 0 <= most_changed < 1 and 0 < confidence < 1, got {most_changed} and {confidence}"
        )
    samples, chosen = outcomes.kept.shape[1], 1.0
    # p-value of "more than most_changed of all answers change", by the number of changes that were seen
    p_values = binom.cdf(np.arange(samples + 1), samples, most_changed)
    for threshold in _descending():
        if p_values[outcomes.changed(threshold)] > 1 - confidence:
            break
        chosen = threshold
    return chosen


def threshold_for_cost(outcomes: Outcomes, budget: float) -> float:
    """The highest threshold whose mean cost is within the budget.

    Raises:
        ValueError: no threshold is; the message names the lowest cost there is.
    """
    for threshold in _descending():
        if outcomes.cost(threshold) <= budget:
            return threshold
    raise ValueError(
        f"a mean cost of {budget:g} cannot be reached; exits at once cost {outcomes.cost(0.0):g}"
    )


def _descending() -> list[float]:
    return [step / GRID for step in range(GRID, -1, -1)]
