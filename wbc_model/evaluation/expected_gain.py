"""What the next labels are worth: the expected gain in accuracy of a batch, from the learning curve so far, with its interval.

The error with n labels is taken as e0 (f + (1 - f) (n / n0)^-c): e0 is the error with the n0 labels of now, f the share of it
that no label removes, c how fast the rest falls. Three or four cycles leave these open, so none is fitted as if it were known:
every curve counts by how well it explains the cycles. Test cells are a sample, and two trainings with the same labels differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wbc_model.core.errors import WbcError

Floats = NDArray[np.float64]
MIN_POINTS: Final = 3  # cycles with different numbers of labels, below which nothing is said
_FLOORS: Final = np.linspace(0.0, 0.95, 12)  # f: all equally likely beforehand
_SPEEDS: Final = np.linspace(0.25, 1.5, 11)  # c: 0.5 is the inverse square root, 1 the inverse of the labels
# The spread between trainings with as many labels, in log-odds of the error; all are equally likely beforehand. By
# `python studies/training_spread.py` 10, 30, 50, 70 and 90 % of the arms in studies/*/results.csv are below the first five. The
# last is for trainings that go wrong: there are some in `lossnet` and `arms_low`.
_SPREADS: Final = np.array([0.15, 0.2, 0.27, 0.32, 0.47, 0.7])
_PLACES: Final = np.sinh(np.linspace(-3.2, 3.2, 45))  # of e0 around its estimate: dense in the middle, and far outside


@dataclass(frozen=True)
class Point:
    """A cycle of the learning curve: with so many `labels` the model had `right` of `cells` test cells right."""

    labels: int
    right: int
    cells: int


@dataclass(frozen=True)
class Gain:
    """What `more` labels are expected to add to the accuracy (a share), with the 95 % limits `low` and `high`; all three are None
    where the learning curve has too few points, of which `points` are of use."""

    more: int
    points: int
    expected: float | None = None
    low: float | None = None
    high: float | None = None

    def may_pause(self, worth: float) -> bool:
        """Whether labelling may pause: not even the upper limit reaches the gain that is `worth` a batch."""
        return self.high is not None and self.high < worth


def expected_gain(points: Sequence[Point], more: int) -> Gain:
    """The gain of `more` labels after the last of these points, which are all of the same test cells.

    The limits are those of the curve's gain, not of the difference that one more training happens to show. Raises WbcError for
    a point that cannot be one.
    """
    for point in points:
        if point.labels < 1 or not 0 <= point.right <= point.cells or point.cells < 1:
            raise WbcError(f"no point of a learning curve: {point}")
    different = len({point.labels for point in points})
    if different < MIN_POINTS or more < 1:
        return Gain(more, different)
    errors, floors, speeds, weights = _curves(points)
    most = max(point.labels for point in points)
    gains = errors * (1 - floors) * (1 - ((most + more) / most) ** -speeds)
    order = np.argsort(gains)
    below = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    low, high = np.interp([0.025, 0.975], below, gains[order])
    return Gain(more, different, float(np.average(gains, weights=weights)), float(low), float(high))


def expected_wrong(probabilities: Sequence[float]) -> float:
    """How many cells the model expects to have wrong, from its calibrated probability of the class that it names for each."""
    return float(np.sum(1 - np.asarray(probabilities, np.float64))) if len(probabilities) else 0.0


def _curves(points: Sequence[Point]) -> tuple[Floats, Floats, Floats, Floats]:
    """Every curve that counts: its e0, f and c, and its weight after the points were seen; all of shape (K,)."""
    errors, widths = _errors_now(points)
    grid = np.meshgrid(errors, _FLOORS, _SPEEDS, indexing="ij")
    e0, floors, speeds = (part.ravel() for part in grid)
    most = max(point.labels for point in points)
    likelihood = np.zeros((len(_SPREADS), len(e0)))  # log
    for point in points:
        error = np.clip(e0 * (floors + (1 - floors) * (point.labels / most) ** -speeds), 1e-6, 0.95)
        likelihood += np.stack([_explained(point, error, spread) for spread in _SPREADS])
    weights = np.exp(likelihood - likelihood.max()).sum(axis=0)
    return e0, floors, speeds, weights * np.repeat(widths, len(_FLOORS) * len(_SPEEDS))


def _errors_now(points: Sequence[Point]) -> tuple[Floats, Floats]:
    """Errors with the labels of now that are looked at, around that of the last cycles, and how much log-odds each stands for."""
    most = max(point.labels for point in points)
    last = [point for point in points if point.labels == most]
    cells = sum(point.cells for point in last)
    wrong = sum(point.cells - point.right for point in last) + 0.5
    centre = np.log(wrong / (cells + 1 - wrong))
    step = np.sqrt(1 / wrong + 1 / (cells + 1 - wrong) + 0.1**2) / 2.5  # however many cells: trainings differ
    places = centre + step * _PLACES
    return 1 / (1 + np.exp(-places)), np.gradient(places)


def _explained(point: Point, error: Floats, spread: float) -> Floats:
    """The log-likelihood of a point, up to a constant, for each expected `error`, where trainings differ by `spread`: the
    log-odds of the errors that were counted are normal, with the variance of the counting and of the training."""
    wrong = point.cells - point.right
    counted = np.log((wrong + 0.5) / (point.right + 0.5))
    variance = 1 / (point.cells * error * (1 - error)) + spread**2
    found: Floats = -0.5 * ((counted - np.log(error / (1 - error))) ** 2 / variance + np.log(variance))
    return found
