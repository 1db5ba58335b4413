"""Acquisition strategies against scikit-activeml, an independent implementation, where it has the method."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wbc_model.acquisition import strategies as acquire
from wbc_model.acquisition.strategies import Labelled, PoolScores, find_strategy, select

pytest.importorskip("skactiveml", reason="scikit-activeml is in the dev extra")


def scores_of(n: int, known: int, seed: int, width: int = 8) -> PoolScores:
    rng = np.random.default_rng(seed)
    h, p = rng.normal(size=(n + known, width)).astype(np.float32), rng.dirichlet(np.ones(5), n + known)
    return PoolScores(p[:n], np.zeros(n), h[:n], Labelled(rng.integers(0, 5, known), p[n:], h[n:]))


def with_labels(pool: PoolScores) -> tuple[np.ndarray, np.ndarray]:
    """Pool and labelled cells as scikit-activeml has them: X of all, y with NaN for the pool."""
    y = np.concatenate([np.full(len(pool), np.nan), pool.labelled.labels])
    return np.concatenate([pool.embedding, pool.labelled.embedding]).astype(np.float64), y


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_entropy_and_margin(seed: int):
    from skactiveml.pool import uncertainty_scores

    pool, rng = scores_of(30, 0, seed), np.random.default_rng(0)
    entropy = uncertainty_scores(pool.probabilities, method="entropy")
    np.testing.assert_allclose(acquire.entropy(pool, rng), entropy, rtol=1e-9)
    margin = uncertainty_scores(pool.probabilities, method="margin_sampling")
    np.testing.assert_allclose(acquire.margin(pool, rng) + 1, margin, rtol=1e-9)  # theirs is 1 - gap


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.integers(1, 10))
def test_k_center_makes_the_same_greedy_choice(seed: int, known: int):
    from skactiveml.pool import CoreSet

    pool = scores_of(40, known, seed)
    theirs, distances = CoreSet(random_state=0).query(*with_labels(pool), batch_size=12, return_utilities=True)
    ours = select(find_strategy("k_center"), pool, 12, seed)
    assert ours.indices.tolist() == theirs.tolist()
    np.testing.assert_allclose(ours.scores, np.nanmax(distances, axis=1), rtol=1e-4)


class Known:
    """A classifier for scikit-activeml that returns given probabilities."""

    @staticmethod
    def of(pool: PoolScores) -> object:
        from skactiveml.base import SkactivemlClassifier

        class Given(SkactivemlClassifier):  # type: ignore[misc]
            def fit(self, X: object, y: object) -> "Given":
                return self

            def predict_proba(self, X: object) -> np.ndarray:
                return pool.probabilities

        return Given(classes=list(range(5)), missing_label=np.nan)


@pytest.mark.parametrize("seed", range(6))
def test_badge_draws_with_the_same_probabilities(seed: int):
    """Their draws, step by step: the probabilities that they drew with are those of our distances.

    With one difference: they go on with the minimum of the lengths that the first cell was chosen by, as if the zero gradient
    were a centre as well. The code of the paper's authors does not, nor do we.
    """
    from skactiveml.pool import Badge

    pool = scores_of(30, 0, seed)
    X, y = with_labels(pool)
    path, theirs = Badge(random_state=seed).query(X, y, clf=Known.of(pool), fit_clf=False, batch_size=8, return_utilities=True)
    norms, to = acquire.gradient_distances(pool.probabilities, pool.embedding)
    assert path[0] == norms.argmax() == select(find_strategy("badge"), pool, 1, seed).indices[0]
    np.testing.assert_allclose(np.nan_to_num(theirs[0]), norms / norms.sum(), rtol=1e-4)
    nearest = norms
    for i, cell in enumerate(path[:-1]):
        nearest = np.minimum(nearest, to(cell))
        np.testing.assert_allclose(np.nan_to_num(theirs[i + 1]), nearest / nearest.sum(), atol=1e-5)


def test_badge_picks_as_often():
    """How often each of 12 cells is among 4 picks, over 400 seeds each: the same within chance, with their zero centre."""
    from skactiveml.pool import Badge

    pool, seeds = scores_of(12, 0, 5), range(400)
    X, y = with_labels(pool)
    clf = Known.of(pool)
    theirs, ours = np.zeros(12), np.zeros(12)
    norms, to = acquire.gradient_distances(pool.probabilities, pool.embedding)
    for seed in seeds:
        theirs[Badge(random_state=seed).query(X, y, clf=clf, fit_clf=False, batch_size=4)] += 1 / len(seeds)
        rng = np.random.default_rng(seed)
        drawn, _ = acquire.kmeans_plus_plus(lambda i: np.minimum(norms, to(i)), int(norms.argmax()), 4, rng)
        ours[drawn] += 1 / len(seeds)
    spread = np.sqrt((theirs * (1 - theirs) + ours * (1 - ours)).clip(0) / len(seeds))
    assert (np.abs(theirs - ours) <= 4 * spread + 1e-9).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(0, 999))
def test_typicality_ranks_alike(cells: int, seed: int):
    from skactiveml.pool._typi_clust import _typicality

    rows = scores_of(cells, 0, seed).embedding
    theirs = _typicality(rows.astype(np.float64), np.arange(cells), acquire.TYPICAL_NEIGHBOURS)
    np.testing.assert_allclose(acquire.typicality(rows), theirs, rtol=1e-3)
    assert acquire.typicality(rows).argmax() == theirs.argmax()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("known", [0, 1])
def test_typiclust_picks_the_same_cells_where_clusters_are_plain(seed: int, known: int):
    from skactiveml.pool import TypiClust

    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(4), [30, 22, 15, 9])
    rows = np.eye(4, 8)[kinds] + rng.normal(0, 0.03, (len(kinds), 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    pool = PoolScores(np.full((76, 5), 0.2), np.zeros(76), rows, Labelled(np.zeros(known, np.int64), embedding=rows[:known]))
    X, y = with_labels(pool)
    theirs = TypiClust(random_state=seed, k=20, cluster_algo_dict={"n_init": 10}).query(X, y, batch_size=4 - known)
    ours = select(find_strategy("typiclust"), pool, 4 - known, seed)
    assert ours.indices.tolist() == theirs.tolist()
