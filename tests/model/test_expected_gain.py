"""The expected gain of more labels: right on curves that are worked out by hand, honest about its limits in simulation."""

import numpy as np
import pytest

from wbc_model.core.errors import WbcError
from wbc_model.evaluation.expected_gain import MIN_POINTS, Gain, Point, expected_gain, expected_wrong

SPREADS = [0.15, 0.2, 0.27, 0.32, 0.47]  # by `python studies/training_spread.py`


def exact(labels: int, error: float, cells: int = 1_000_000) -> Point:
    return Point(labels, cells - round(error * cells), cells)


def test_the_gain_of_a_curve_that_is_worked_out_by_hand() -> None:
    """error = 2 % + 4 / labels: from 600 to 800 labels it falls by 4/600 - 4/800 = 1/600."""
    gain = expected_gain([exact(n, 0.02 + 4 / n) for n in (100, 150, 200, 300, 400, 600)], 200)
    assert gain.low is not None and gain.high is not None and gain.expected is not None  # noqa: PT018
    assert gain.low < 1 / 600 < gain.high
    assert gain.expected == pytest.approx(1 / 600, rel=0.35)
    assert gain.points == 6


def test_without_a_floor_the_gain_is_the_inverse_laws() -> None:
    """error = 6 / sqrt(labels): from 400 to 900 labels it falls from 0.30 to 0.20."""
    gain = expected_gain([exact(n, 6 / np.sqrt(n)) for n in (121, 144, 196, 225, 289, 361, 400)], 500)
    assert gain.expected == pytest.approx(6 / 20 - 6 / 30, rel=0.35)
    assert gain.low < 0.1 < gain.high  # type: ignore[operator]


def test_few_points_say_nothing_and_it_says_so() -> None:
    two = [Point(50, 550, 600), Point(100, 570, 600)]
    assert expected_gain(two, 50) == Gain(50, 2)
    assert expected_gain([*two, Point(100, 565, 600)], 50).expected is None, "the same number of labels twice is one point"
    assert expected_gain([*two, Point(150, 580, 600)], 50).expected is not None
    assert not Gain(50, 2).may_pause(0.005), "what cannot be said is no reason to pause"
    assert expected_gain([], 10).points == 0 < MIN_POINTS


def test_a_flat_curve_may_pause_and_a_steep_one_may_not() -> None:
    flat = expected_gain([Point(n, right, 4000) for n, right in ((500, 3900), (1000, 3940), (1500, 3941), (2000, 3941))], 500)
    steep = expected_gain([Point(n, right, 400) for n, right in ((30, 280), (60, 320), (90, 340))], 30)
    assert flat.may_pause(0.005)
    assert not steep.may_pause(0.005)
    assert steep.expected > 0.01  # type: ignore[operator]


def test_more_test_cells_make_the_limits_no_wider() -> None:
    def width(cells: int) -> float:
        gain = expected_gain([exact(n, 0.02 + 4 / n, cells) for n in (50, 100, 150, 200)], 50)
        return gain.high - gain.low  # type: ignore[operator]

    assert width(10_000) < width(200)


@pytest.mark.parametrize("point", [Point(0, 1, 2), Point(5, 3, 2), Point(5, -1, 2), Point(5, 0, 0)])
def test_what_is_no_point_is_named(point: Point) -> None:
    with pytest.raises(WbcError, match="no point of a learning curve"):
        expected_gain([point], 5)


def test_the_true_gain_lies_within_the_limits_as_often_as_they_state() -> None:
    """500 curves with floors, speeds and test pools of many kinds, and with the spreads between trainings of our studies."""
    chance, inside, runs = np.random.default_rng(7), 0, 500
    for _ in range(runs):
        floor, speed, start = chance.uniform(0, 0.03), chance.uniform(0.3, 1.3), chance.uniform(0.05, 0.3)
        labels, cells = np.array([60, 150, 240, 330])[: chance.integers(3, 5)], int(chance.choice([200, 600, 2000]))

        def error(n: float, floor: float = floor, speed: float = speed, start: float = start) -> float:
            return float(floor + start * (n / 60) ** -speed)

        points, spread = [], chance.choice(SPREADS)
        for n in labels:
            odds = np.log(error(n) / (1 - error(n))) + spread * chance.normal()
            points.append(Point(int(n), cells - int(chance.binomial(cells, 1 / (1 + np.exp(-odds)))), cells))
        gain = expected_gain(points, 90)
        inside += gain.low <= error(labels[-1]) - error(labels[-1] + 90) <= gain.high  # type: ignore[operator]
    assert 0.93 <= inside / runs <= 0.995


def test_the_model_expects_as_many_errors_as_its_probabilities_leave_open() -> None:
    assert expected_wrong([0.9, 0.6, 1.0]) == pytest.approx(0.5)
    assert expected_wrong([]) == 0
