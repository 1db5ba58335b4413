"""Acquisition strategies: hand-computed cases, and one contract for all."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wbc_model.acquisition import strategies as acquire
from wbc_model.acquisition.strategies import STRATEGIES, Labelled, Picks, PoolScores, Strategy, find_strategy, select
from wbc_model.core.errors import WbcError

POOL = PoolScores(
    probabilities=np.array([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05], [0.4, 0.35, 0.25]]), predicted_loss=np.array([0.1, 3.0, -1.0])
)


def pool_of(
    rows: list[list[float]] | np.ndarray,
    probabilities: np.ndarray | None = None,
    labelled: list[list[float]] | None = None,
    loss: list[float] | None = None,
) -> PoolScores:
    """A pool with these embeddings (and labelled ones, all of class 0); the rest is made up."""
    embedding = np.array(rows, np.float32)
    n = len(embedding)
    known = np.array(labelled or [], np.float32).reshape(-1, embedding.shape[1])
    known_pool = Labelled(np.zeros(len(known), np.int64), np.full((len(known), 5), 0.2), known)
    p = np.full((n, 5), 0.2) if probabilities is None else probabilities
    return PoolScores(p, np.zeros(n) if loss is None else np.array(loss), embedding, known_pool)


def chosen(name: str, pool: PoolScores, count: int, seed: int = 0) -> list[int]:
    return select(find_strategy(name), pool, count, seed).indices.tolist()


# --- one contract ------------------------------------------------------------------------------------------------------------


@st.composite
def pools(draw: st.DrawFn) -> PoolScores:
    """Pools of 0 to 40 cells: with duplicates, collapsed, confident, with and without labelled cells, with empty classes."""
    n, known, seed = draw(st.integers(0, 40)), draw(st.integers(0, 12)), draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    kind = draw(st.sampled_from(["spread", "duplicates", "collapsed", "zero"]))
    total = n + known
    source = {"spread": rng.permutation(total), "duplicates": rng.integers(0, 3, total)}.get(kind, np.zeros(total, np.int64))
    factor = 0.0 if kind == "zero" else 1.0
    embedding = (factor * rng.normal(size=(max(total, 3), 8)).clip(0)).astype(np.float32)[source]
    probabilities = rng.dirichlet(np.full(5, draw(st.sampled_from([0.01, 1.0]))), max(total, 3))[source]
    probabilities = np.nan_to_num(probabilities, nan=0.2)
    losses = rng.normal(size=max(total, 3)).round(1)[source]
    labels = rng.integers(0, draw(st.integers(1, 5)), known)
    known_pool = Labelled(labels, probabilities[n:], embedding[n:], embedding[n:])
    return PoolScores(probabilities[:n], losses[:n], embedding[:n], known_pool, embedding[:n])


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@settings(max_examples=25, deadline=None)
@given(pools(), st.integers(0, 50), st.integers(0, 9))
def test_every_strategy_gives_distinct_cells_and_repeats(name: str, pool: PoolScores, count: int, seed: int):
    before = pool.embedding.copy(), pool.probabilities.copy()
    picks = select(find_strategy(name), pool, count, seed)
    assert len(picks.indices) == len(picks.scores) == len(picks.reasons) == min(count, len(pool))
    assert len(set(picks.indices.tolist())) == len(picks.indices)
    assert set(picks.indices.tolist()) <= set(range(len(pool)))
    assert np.isfinite(picks.scores).all()
    assert all(picks.reasons)
    again = select(find_strategy(name), pool, count, seed)
    assert picks.indices.tolist() == again.indices.tolist()
    assert picks.reasons == again.reasons
    np.testing.assert_array_equal(before[0], pool.embedding)
    np.testing.assert_array_equal(before[1], pool.probabilities)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_what_a_strategy_does_not_name_it_does_not_look_at(name: str):
    """Everything that `needs` leaves out is absent or wrong, and the choice is the same."""
    rng = np.random.default_rng(0)
    labels, p, known_p = rng.integers(0, 5, 20), rng.dirichlet(np.ones(5), 60), rng.dirichlet(np.ones(5), 20)
    loss, h, known_h = rng.normal(size=60), rng.random((60, 8), np.float32), rng.random((20, 8), np.float32)
    needs = STRATEGIES[name].needs
    full = PoolScores(p, loss, h, Labelled(labels, known_p, known_h, known_h), h)
    asked = Labelled(
        labels if needs & {"labels", "labelled"} else np.empty(0, np.int64),
        known_p if "labelled" in needs else np.empty((0, 0)),
        known_h if {"labelled", "embedding"} <= needs else np.empty((0, 0), np.float32),
        known_h if {"labelled", "colours"} <= needs else np.empty((0, 0), np.float32),
    )
    least = PoolScores(
        p if "probabilities" in needs else np.full_like(p, np.nan),
        loss if "predicted_loss" in needs else np.full_like(loss, np.nan),
        h if "embedding" in needs else np.empty((60, 0), np.float32),
        asked,
        h if "colours" in needs else np.empty((60, 0), np.float32),
    )
    assert chosen(name, full, 15) == chosen(name, least, 15)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_collapsed_model_does_not_give_the_first_cells(name: str):
    pool = PoolScores(
        np.full((200, 5), 0.2),
        np.zeros(200),
        np.ones((200, 8), np.float32),
        Labelled(np.array([0]), np.full((1, 5), 0.2), np.ones((1, 8), np.float32), np.ones((1, 8), np.float32)),
        np.ones((200, 8), np.float32),
    )
    indices = chosen(name, pool, 20)
    assert max(indices) > 40
    assert indices != chosen(name, pool, 20, seed=1)


def test_mistakes_are_named():
    with pytest.raises(WbcError, match=r"entropi.*badge, balanced_entropy, .*entropy, .*learning_loss, margin, random"):
        find_strategy("entropi")

    def same_cell(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
        return Picks(np.zeros(count, np.int64), np.zeros(count))

    with pytest.raises(ValueError, match="broken must choose 2 distinct cells"):
        select(Strategy("broken", set(), "", same_cell), POOL, 2, 0)
    nan = Strategy("broken", set(), "", lambda pool, count, rng: Picks(np.arange(count), np.full(count, np.nan)))
    with pytest.raises(ValueError, match="broken must give finite scores"):
        select(nan, POOL, 1, 0)
    with pytest.raises(ValueError, match="k_center needs the embedding"):
        select(find_strategy("k_center"), POOL, 1, 0)


# --- a value for each cell ---------------------------------------------------------------------------------------------------


def test_values_by_hand():
    rng = np.random.default_rng(0)
    entropy = acquire.entropy(POOL, rng)
    assert entropy[0] == pytest.approx(math.log(2))
    assert entropy[1] == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.05)))
    np.testing.assert_allclose(acquire.margin(POOL, rng), [0.0, -0.85, -0.05])
    np.testing.assert_allclose(acquire.learning_loss(POOL, rng), POOL.predicted_loss)


@pytest.mark.parametrize(("name", "order"), [("entropy", [2, 0, 1]), ("margin", [0, 2, 1]), ("learning_loss", [1, 0, 2])])
def test_the_most_valuable_cell_comes_first(name: str, order: list[int]):
    picks = select(find_strategy(name), POOL, 3, seed=0)
    assert picks.indices.tolist() == order
    assert picks.scores.tolist() == sorted(picks.scores, reverse=True)
    assert picks.reasons == (find_strategy(name).reason,) * 3


# --- balanced over classes ---------------------------------------------------------------------------------------------------


def two_classes(first: list[float], second: list[float], labels: list[int]) -> PoolScores:
    """Cells predicted as class 0 with these probabilities, then cells predicted as class 1."""
    p = np.array([[x, 1 - x] for x in first] + [[1 - x, x] for x in second])
    return PoolScores(p, np.zeros(len(p)), labelled=Labelled(np.array(labels, np.int64)))


@pytest.mark.parametrize("name", ["balanced_margin", "balanced_entropy"])
def test_balanced_by_hand(name: str):
    """3 labelled cells of class 0 and 1 of class 1: weights 1/4 and 1/2, so that class 1 gets two cells for each of class 0.

    Places (n + 1)(2j + 1): class 0 at 4, 12, 20; class 1 at 2, 6, 10, 14.
    """
    pool = two_classes([0.9, 0.6, 0.8], [0.95, 0.7, 0.55, 0.99], labels=[0, 0, 0, 1])
    picks = select(find_strategy(name), pool, 7, seed=0)
    assert picks.indices.tolist() == [5, 1, 4, 3, 2, 6, 0]
    assert "predicted Eosinophil, of which 1 labelled" in picks.reasons[0]
    assert "predicted Basophil, of which 3 labelled" in picks.reasons[1]
    assert chosen(name, pool, 4) == [5, 1, 4, 3]


def test_balanced_goes_on_with_what_is_left_and_prefers_a_class_without_labels():
    pool = two_classes([0.6] * 8, [0.9], labels=[0] * 30)
    indices = chosen("balanced_margin", pool, 5)
    assert indices[0] == 8
    assert set(indices[1:]) <= set(range(8))


def test_balanced_is_inverse_proportion():
    rng = np.random.default_rng(0)
    p = np.full((900, 3), 0.1)
    p[np.arange(900), np.repeat([0, 1, 2], 300)] = 0.8
    labels = np.repeat([0, 1, 2], [39, 19, 9])  # weights 1/40, 1/20, 1/10
    pool = PoolScores(p + rng.normal(0, 0.01, p.shape), np.zeros(900), labelled=Labelled(labels))
    picked = np.array(chosen("balanced_entropy", pool, 70)) // 300
    assert np.bincount(picked).tolist() == [10, 20, 40]


def test_rest_margins():
    margins = acquire.rest_margins(np.array([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]]))
    np.testing.assert_allclose(margins, [[0.5, -0.5, -0.6], [0.0, 0.0, -0.2]], atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "positive", "threshold"),
    [
        ([0.8, 0.2, -0.4], [1, 1, 0], -0.1),  # separable: halfway between 0.2 and -0.4
        ([0.8, 0.2, -0.4, -0.8], [1, 0, 1, 1], -0.9),  # one on the wrong side
        ([0.8, 0.2, -0.4, -0.8], [1, 0, 0, 1], 0.5),
        ([0.2, -0.6], [0, 0], 0.6),  # none of the class: above all of them
        ([0.2, -0.6], [1, 1], -0.8),
        ([], [], 0.0),
    ],
)
def test_separation_threshold(scores: list[float], positive: list[int], threshold: float):
    order = np.random.default_rng(0).permutation(len(scores))
    found = acquire.separation_threshold(np.array(scores)[order], np.array(positive, bool)[order])
    assert found == pytest.approx(threshold)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=1, max_size=12, unique_by=lambda pair: pair[0]))
def test_no_threshold_separates_better(pairs: list[tuple[int, bool]]):
    scores, positive = np.array([s / 10 for s, _ in pairs]), np.array([p for _, p in pairs])
    threshold = acquire.separation_threshold(scores, positive)
    wrong = [((scores > t) != positive).sum() for t in (threshold, *np.arange(-1.05, 1.06, 0.1))]
    assert wrong[0] == min(wrong)


def test_rare_threshold_by_hand():
    """Two classes, so that the margin of class 1 is minus that of class 0. Labelled margins of class 0: 0.8, 0.4 (class 0) and
    -0.2 (class 1). Both cuts are at +-0.1; class 1, with one label, has the first turn."""

    def p(margin: float) -> list[float]:
        return [(1 + margin) / 2, (1 - margin) / 2]

    known = Labelled(np.array([0, 0, 1]), np.array([p(0.8), p(0.4), p(-0.2)]))
    pool = PoolScores(np.array([p(m) for m in (0.9, 0.15, -0.05, -0.9, 0.12)]), np.zeros(5), labelled=known)
    picks = select(find_strategy("rare_threshold"), pool, 4, seed=0)
    assert picks.indices.tolist() == [4, 1, 2, 0]
    np.testing.assert_allclose(picks.scores, [-0.02, -0.05, -0.15, -0.8], atol=1e-12)
    assert picks.reasons[:2] == ["near the border of Eosinophil against the rest", "near the border of Basophil against the rest"]


def test_rare_threshold_looks_for_a_class_without_labels():
    """Nothing is labelled as class 2, and the model never predicts it: the cells likeliest of it are still asked for."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([5, 5, 0.2], 300)
    known = Labelled(rng.integers(0, 2, 40), rng.dirichlet([5, 5, 0.01], 40))
    pool = PoolScores(p, np.zeros(300), labelled=known)
    picks = select(find_strategy("rare_threshold"), pool, 30, seed=0)
    own = [i for i, reason in zip(picks.indices, picks.reasons, strict=True) if "Lymphocyte" in reason]
    assert len(own) == 10
    assert p[own, 2].mean() > 5 * p[:, 2].mean()


# --- spread over the pool ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(0, 99))
def test_distances_are_those_of_the_whole_matrices(cells: int, seed: int):
    rng = np.random.default_rng(seed)
    h, p = rng.normal(size=(cells, 16)).astype(np.float32), rng.dirichlet(np.ones(5), cells)
    gradients = ((p - np.eye(5)[p.argmax(1)])[:, :, None] * h[:, None, :]).reshape(cells, -1)
    norms, to = acquire.gradient_distances(p, h)
    np.testing.assert_allclose(norms, (gradients**2).sum(1), rtol=1e-5)
    for i in range(cells):
        np.testing.assert_allclose(to(i), ((gradients - gradients[i]) ** 2).sum(1), atol=2e-5 * norms.max())
        np.testing.assert_allclose(acquire.embedding_distances(h)(i), ((h - h[i]) ** 2).sum(1), atol=1e-4)


def test_gradient_embedding_is_the_gradient():
    """The outer product is what autograd gives for the last layer, with the predicted class for a label."""
    import torch

    rng = np.random.default_rng(3)
    h, weights = torch.tensor(rng.normal(size=(6, 8))), torch.tensor(rng.normal(size=(5, 8)), requires_grad=True)
    logits = h @ weights.T
    rows = [
        torch.autograd.grad(
            torch.nn.functional.cross_entropy(logits[i : i + 1], logits[i : i + 1].argmax(1)), weights, retain_graph=True
        )[0]
        for i in range(6)
    ]
    gradients = torch.stack(rows).flatten(1).numpy()
    norms, to = acquire.gradient_distances(logits.softmax(1).detach().numpy(), h.numpy().astype(np.float32))
    np.testing.assert_allclose(norms, (gradients**2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(to(2), ((gradients - gradients[2]) ** 2).sum(1), atol=1e-4 * norms.max())


@pytest.mark.parametrize("seed", range(10))
def test_duplicates_are_at_no_distance(seed: int):
    """Whatever float32 makes of their inner products, which the norms do not always equal."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.random((1, 512)).astype(np.float32), 500, axis=0)
    assert not acquire.embedding_distances(rows)(7).any()
    assert not acquire.gradient_distances(np.repeat(rng.dirichlet(np.ones(5), 1), 500, axis=0), rows)[1](7).any()


def test_kmeans_plus_plus_draws_in_proportion_to_the_squared_distance():
    """Centres 0, 1, 3 on a line, from 0 on: the next is at 1 with probability 1/10, at 3 with 9/10."""
    to = acquire.embedding_distances(np.array([[0.0], [1.0], [3.0]], np.float32))
    second = [acquire.kmeans_plus_plus(to, 0, 2, np.random.default_rng(seed))[0][1] for seed in range(2000)]
    assert np.mean(np.array(second) == 2) == pytest.approx(0.9, abs=0.025)
    indices, squared = acquire.kmeans_plus_plus(to, 2, 3, np.random.default_rng(0))
    assert squared.tolist() == ([0.0, 9.0, 1.0] if indices[1] == 0 else [0.0, 4.0, 1.0])


def test_badge_starts_with_the_longest_gradient_and_leaves_duplicates_to_the_end():
    h = np.repeat(np.eye(3, 8, dtype=np.float32), 4, axis=0)  # 3 kinds of cells, 4 of each
    p = np.tile([0.6, 0.1, 0.1, 0.1, 0.1], (12, 1))
    p[5] = 0.2
    for seed in range(5):
        indices = chosen("badge", pool_of(h, p), 12, seed)
        assert indices[0] == 5
        kinds = [(i // 4, i == 5) for i in indices]
        assert len(set(kinds[:4])) == 4


def test_k_center_by_hand():
    """Labelled at 0; the pool at 1, 4, 10, 6: first 10, then 4 (4 from 0, 6 from 10 gives 4; 6 has 4 as well)."""
    pool = pool_of([[1.0], [4.5], [10.0], [6.0]], labelled=[[0.0]])
    picks = select(find_strategy("k_center"), pool, 4, seed=0)
    assert picks.indices.tolist() == [2, 1, 3, 0]
    np.testing.assert_allclose(picks.scores, [10.0, 4.5, 1.5, 1.0], atol=1e-5)


def test_k_center_without_labels_starts_anywhere_and_then_goes_farthest():
    pool = pool_of([[0.0], [1.0], [10.0]])
    starts = {chosen("k_center", pool, 2, seed)[0]: chosen("k_center", pool, 2, seed)[1] for seed in range(20)}
    assert starts == {0: 2, 1: 2, 2: 0}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(0, 10))
def test_k_center_gets_nearer_and_nearer(seed: int, known: int):
    rng = np.random.default_rng(seed)
    picks = select(find_strategy("k_center"), pool_of(rng.random((40, 8)), labelled=rng.random((known, 8)).tolist()), 40, seed)
    assert all(a >= b for a, b in pairwise(picks.scores.tolist()))


def test_diverse_loss_takes_high_losses_of_every_kind():
    """The 10 cells of highest loss for 2 asked for are 9 of one kind and 1 of another: both kinds are taken."""
    kinds = [[1.0, 0.0]] * 9 + [[0.0, 1.0]] + [[-5.0, -5.0]] * 10
    loss = [9.0] + [5.0] * 9 + [1.0] * 10
    for seed in range(5):
        picks = select(find_strategy("diverse_loss"), pool_of(kinds, loss=loss), 2, seed)
        assert picks.indices.tolist() == [0, 9]
        assert picks.scores.tolist() == [9.0, 5.0]


def test_typicality_by_hand():
    rows = np.array([[0.0], [1.0], [3.0]], np.float32)  # mean distances to the two others: 2, 1.5, 2.5
    np.testing.assert_allclose(acquire.typicality(rows), [1 / 2, 1 / 1.5, 1 / 2.5], rtol=1e-4)
    assert acquire.typicality(rows[:1]).tolist() == [0.0]


def blobs(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Groups of directions far apart, each denser at its middle, which is its first row."""
    rng = np.random.default_rng(seed)
    rows = []
    for kind, size in enumerate(sizes):
        noise = rng.normal(0, 0.02, (size, 8))
        noise[:1] = 0
        rows.append(np.eye(8)[kind] + noise)
    return np.concatenate(rows).astype(np.float32)


def test_typiclust_takes_the_middle_of_the_largest_groups_without_labels():
    """Groups of 20, 40 and 30 cells; the largest one has a label. Lengths do not matter."""
    rows = blobs([20, 40, 30]) * np.random.default_rng(1).uniform(0.1, 9, (90, 1)).astype(np.float32)
    middles = {0, 20, 60}
    pool = pool_of(rows)
    assert chosen("typiclust", pool, 3) == [20, 60, 0]
    known = pool_of(rows, labelled=blobs([0, 1]).tolist())
    picks = chosen("typiclust", known, 2)
    assert picks == [60, 0]
    assert set(picks) < middles


def test_typiclust_goes_round_again_where_more_is_asked_for_than_clusters_and_leaves_crumbs_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(acquire, "MAX_CLUSTERS", 3)
    groups = np.repeat([0, 1, 2], [20, 3, 30])
    indices = chosen("typiclust", pool_of(blobs([20, 3, 30])), 53)
    assert groups[indices[:4]].tolist() == [2, 0, 2, 0]
    assert groups[indices[-3:]].tolist() == [1, 1, 1]


def test_typiclust_beats_chance_at_covering_kinds():
    rows = blobs([200, 200, 10, 10, 10])
    groups = np.repeat(np.arange(5), [200, 200, 10, 10, 10])
    covered = [len(set(groups[chosen("typiclust", pool_of(rows), 5, seed)])) for seed in range(5)]
    by_chance = [len(set(groups[chosen("random", pool_of(rows), 5, seed)])) for seed in range(5)]
    assert np.mean(covered) > np.mean(by_chance)
