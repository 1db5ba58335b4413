"""Acquisition strategies: values by hand, one contract for all."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wbc_model.acquire import STRATEGIES, PoolScores, Strategy, find_strategy, select
from wbc_model.errors import WbcError

POOL = PoolScores(
    probabilities=np.array([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05], [0.4, 0.35, 0.25]]), predicted_loss=np.array([0.1, 3.0, -1.0])
)


def test_values_by_hand():
    rng = np.random.default_rng(0)
    entropy = find_strategy("entropy").value(POOL, rng)
    assert entropy[0] == pytest.approx(math.log(2))
    assert entropy[1] == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.05)))
    np.testing.assert_allclose(find_strategy("margin").value(POOL, rng), [0.0, -0.85, -0.05])
    np.testing.assert_allclose(find_strategy("learning_loss").value(POOL, rng), POOL.predicted_loss)


@pytest.mark.parametrize(("name", "first"), [("entropy", 2), ("margin", 0), ("learning_loss", 1)])
def test_the_most_valuable_cell_comes_first(name: str, first: int):
    order, values = select(find_strategy(name), POOL, 3, seed=0)
    assert order[0] == first
    assert list(values) == sorted(values, reverse=True)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(STRATEGIES)), st.integers(0, 40), st.integers(0, 50), st.integers(0, 9))
def test_every_strategy_gives_distinct_cells_and_repeats(name: str, cells: int, count: int, seed: int):
    rng = np.random.default_rng(seed)
    pool = PoolScores(rng.dirichlet(np.ones(5), cells), rng.normal(size=cells).round(1))
    order, values = select(find_strategy(name), pool, count, seed)
    assert len(order) == len(values) == min(count, cells)
    assert len(set(order.tolist())) == len(order)
    again, _ = select(find_strategy(name), pool, count, seed)
    assert order.tolist() == again.tolist()


def test_ties_are_broken_at_random():
    pool = PoolScores(np.full((200, 5), 0.2), np.zeros(200))
    order, _ = select(find_strategy("learning_loss"), pool, 20, seed=0)
    assert order.max() > 40  # not simply the first twenty


def test_mistakes_are_named():
    with pytest.raises(WbcError, match=r"entropi.*entropy, learning_loss, margin, random"):
        find_strategy("entropi")
    broken = Strategy("broken", set(), "", lambda pool, rng: np.full(len(pool), np.nan))
    with pytest.raises(ValueError, match="broken must return one finite value"):
        select(broken, POOL, 1, 0)
