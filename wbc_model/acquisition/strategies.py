"""Acquisition: which unlabelled cells are worth a label next.

A strategy is a function from the pool's scores, a count and a random generator to `Picks`: so many distinct cells, best first.
Most give every cell a value and take the highest (`@acquisition`); some choose a set, in which a cell's worth depends on the
others (`@batch_acquisition`). `needs` names what a strategy looks at; nothing else is computed. Registering is all it
takes:

    @acquisition("entropy", needs={"probabilities"}, reason="the model is torn between classes")
    def entropy(pool: PoolScores, rng: np.random.Generator) -> Floats: ...

    @batch_acquisition("badge", needs={"probabilities", "embedding"}, reason="...")
    def badge(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks: ...

See docs/decisions/011 for the reasons.
"""

import warnings
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wbc_model.acquisition.colours import whitened
from wbc_model.acquisition.distances import (
    Floats,
    Ints,
    Rows,
    any_highest,
    embedding_distances,
    gradient_distances,
    kmeans_plus_plus,
    nearest_squared,
)
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError

Need = Literal["probabilities", "predicted_loss", "embedding", "colours", "labels", "labelled"]

DIVERSE_FACTOR: Final = 5  # `diverse_loss` spreads its choice over so many times the cells asked for
TYPICAL_NEIGHBOURS: Final = 20  # the numbers of the authors of TypiClust, here and in the next two lines
MAX_CLUSTERS: Final = 500
SMALL_CLUSTER: Final = 5


def _no_rows() -> Rows:
    return np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class Labelled:
    """The labelled pool of L cells: `labels` (L,) as class indices for who needs `labels` or `labelled`; for who needs
    `labelled` also `probabilities` (L, C) and, where the strategy needs the pool's too, `embedding` (L, 512) and `colours`
    (L, 49), float32."""

    labels: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    probabilities: Floats = field(default_factory=lambda: np.empty((0, 0)))
    embedding: Rows = field(default_factory=_no_rows)
    colours: Rows = field(default_factory=_no_rows)

    def counts(self, classes: int) -> Ints:
        """Labelled cells of each class (C,)."""
        return np.bincount(self.labels, minlength=classes)


@dataclass(frozen=True)
class PoolScores:
    """What the model says of each of N cells, in the order of the pool: `probabilities` (N, C), calibrated, `predicted_loss`
    (N,) and, for who needs it, `embedding` (N, 512) float32; `colours` (N, 49) float32, which no model has a say in, for who
    needs them (wbc_model/acquisition/colours.py); and what is labelled already."""

    probabilities: Floats
    predicted_loss: Floats
    embedding: Rows = field(default_factory=_no_rows)
    labelled: Labelled = field(default_factory=Labelled)
    colours: Rows = field(default_factory=_no_rows)

    def __len__(self) -> int:
        return len(self.probabilities)


class Picks(NamedTuple):
    """The chosen cells, best first: indices into the pool (n,), a finite score each (n,), whose meaning is the strategy's, and
    a reason each; no reasons stand for the strategy's own."""

    indices: Ints
    scores: Floats
    reasons: Sequence[str] = ()


Value = Callable[[PoolScores, np.random.Generator], Floats]
Choose = Callable[[PoolScores, int, np.random.Generator], Picks]


@dataclass(frozen=True)
class Strategy:
    """A named way to choose cells; `reason` is what the annotator reads beside a cell. `choose` is given 1 <= count <= N."""

    name: str
    needs: Set[Need]
    reason: str
    choose: Choose


STRATEGIES: Final[dict[str, Strategy]] = {}


def batch_acquisition(name: str, needs: Set[Need], reason: str) -> Callable[[Choose], Choose]:
    """Register a strategy that chooses a set."""

    def register(choose: Choose) -> Choose:
        STRATEGIES[name] = Strategy(name, needs, reason, choose)
        return choose

    return register


def acquisition(name: str, needs: Set[Need], reason: str) -> Callable[[Value], Value]:
    """Register a strategy that gives every cell a value (N,), higher meaning more worth a label."""

    def register(value: Value) -> Value:
        def choose(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
            values = value(pool, rng)
            order = ranked(values, rng)[:count]
            return Picks(order, values[order])

        batch_acquisition(name, needs, reason)(choose)
        return value

    return register


def find_strategy(name: str) -> Strategy:
    """The strategy of that name; raises WbcError listing those that there are."""
    if name not in STRATEGIES:
        raise WbcError(f"params.yaml: acquisition.strategy: {name!r} is unknown; there are {', '.join(sorted(STRATEGIES))}")
    return STRATEGIES[name]


def select(strategy: Strategy, pool: PoolScores, count: int, seed: int) -> Picks:
    """The `count` cells (fewer where the pool has fewer) that the strategy chooses, best first, with a reason each.

    Ties, and a model that takes all cells for alike, are broken at random but repeatably by `seed`. Raises ValueError for a
    strategy that lacks what it needs or breaks the contract.
    """
    count = max(0, min(count, len(pool)))
    if count == 0:
        return Picks(np.empty(0, np.int64), np.empty(0))
    if "embedding" in strategy.needs and len(pool.embedding) != len(pool):
        raise ValueError(f"strategy {strategy.name} needs the embedding of each of the {len(pool)} cells")
    if "colours" in strategy.needs and len(pool.colours) != len(pool):
        raise ValueError(f"strategy {strategy.name} needs the colours of each of the {len(pool)} cells")
    picks = strategy.choose(pool, count, np.random.default_rng(seed))
    reasons = picks.reasons or (strategy.reason,) * count
    if not len(set(picks.indices.tolist())) == len(picks.indices) == len(picks.scores) == len(reasons) == count:
        raise ValueError(f"strategy {strategy.name} must choose {count} distinct cells, with a score and a reason each")
    if not np.isfinite(picks.scores).all():
        raise ValueError(f"strategy {strategy.name} must give finite scores")
    return picks._replace(reasons=reasons)


def ranked(values: Floats, rng: np.random.Generator) -> Ints:
    """Indices (N,) from the highest value to the lowest, ties in random order."""
    return np.lexsort([rng.permutation(len(values)), -values])


# --- a value for each cell ---------------------------------------------------------------------------------------------------


@acquisition("random", needs=set(), reason="drawn at random")
def random_value(pool: PoolScores, rng: np.random.Generator) -> Floats:
    """The baseline that every other strategy has to beat."""
    return rng.random(len(pool))


@acquisition("entropy", needs={"probabilities"}, reason="the model is torn between classes")
def entropy(pool: PoolScores, rng: np.random.Generator) -> Floats:
    """Shannon entropy of the prediction in nats (Settles 2009, section 3.1)."""
    p = np.clip(pool.probabilities, 1e-12, 1.0)
    value: Floats = -(p * np.log(p)).sum(axis=1)
    return value


@acquisition("margin", needs={"probabilities"}, reason="two classes are almost equally likely")
def margin(pool: PoolScores, rng: np.random.Generator) -> Floats:
    """Minus the gap between the two most likely classes (Scheffer et al., IDA 2001)."""
    top = np.sort(pool.probabilities, axis=1)
    value: Floats = top[:, -2] - top[:, -1]
    return value


@acquisition("learning_loss", needs={"predicted_loss"}, reason="LossNet expects the model to be wrong")
def learning_loss(pool: PoolScores, rng: np.random.Generator) -> Floats:
    """The loss that LossNet predicts (Yoo & Kweon, CVPR 2019). They look at a random part of the pool only, of ten times the
    cells asked for: that is `acquisition.candidates`."""
    return pool.predicted_loss


# --- balanced over classes ---------------------------------------------------------------------------------------------------


def _balanced(values: Floats, reason: str, pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
    """Share `count` among the predicted classes in inverse proportion to how many labelled cells each has.

    The weight of a class with n labelled cells is 1 / (n + 1). Each cell goes to the class with the highest
    weight / (cells given so far + 1/2) (Sainte-Laguë's method). That class takes its cell of highest value, until it has none
    left. So the j-th best cell (from 0) of its class stands at (n + 1) (2 j + 1), and this number sorts the queue; of equals the
    class with fewer labels comes first. A shorter queue is the beginning of a longer one.
    """
    predicted = pool.probabilities.argmax(axis=1)
    labels = pool.labelled.counts(pool.probabilities.shape[1])
    best_first = ranked(values, rng)
    place = np.empty(len(pool), np.int64)
    for c in np.unique(predicted):
        members = best_first[predicted[best_first] == c]
        place[members] = np.arange(len(members))
    n = labels[predicted]
    order = np.lexsort([rng.permutation(len(pool)), n, (n + 1) * (2 * place + 1)])[:count]
    reasons = [f"{reason}; predicted {CLASSES[predicted[i]]}, of which {n[i]} labelled" for i in order]
    return Picks(order, values[order], reasons)


@batch_acquisition("balanced_entropy", needs={"probabilities", "labels"}, reason="the model is torn between classes")
def balanced_entropy(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
    """Entropy within each predicted class, more from classes with few labels: see `_balanced`."""
    return _balanced(entropy(pool, rng), "the model is torn between classes", pool, count, rng)


@batch_acquisition("balanced_margin", needs={"probabilities", "labels"}, reason="two classes are almost equally likely")
def balanced_margin(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
    """Margin within each predicted class, more from classes with few labels: see `_balanced`."""
    return _balanced(margin(pool, rng), "two classes are almost equally likely", pool, count, rng)


def rest_margins(probabilities: Floats) -> Floats:
    """One-versus-rest margin scores (N, C): p_k - max over j != k of p_j, in -1..1, positive where k is predicted."""
    top = np.sort(probabilities, axis=1)
    rest: Floats = np.where(probabilities == top[:, -1:], top[:, -2:-1], top[:, -1:])
    return probabilities - rest


def separation_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The threshold on scores (L,) in -1..1 that puts most labelled cells on their side: halfway between the labelled scores
    around the best cut, the highest of equally good ones; -1 and 1 stand at the ends."""
    order = np.argsort(-scores, kind="stable")
    edges = np.concatenate([[1.0], scores[order], [-1.0]])
    right = np.concatenate([[0], np.cumsum(np.where(positive[order], 1, -1))])  # cells on their side, up to a constant
    best = int(right.argmax())
    return float(edges[best] + edges[best + 1]) / 2


@batch_acquisition("rare_threshold", needs={"probabilities", "labelled"}, reason="near the border of a class against the rest")
def rare_threshold(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
    """Cells nearest to where each class is best separated from the rest (after DIRECT: Nuggehalli, Zhang, Jain & Nowak,
    arXiv:2312.09196, ICML 2025).

    As there, every class has the cells in the order of a margin score, and the cut with most labelled cells on the right side.
    The budget is the same for each class. Unlike there, the whole budget goes to the cells around the cut. DIRECT spends half of
    it before, on narrowing the cut down with an annotator who answers at once. The classes take turns, the one with the fewest
    labels first. A class without labels has its cut above all labelled cells: its turn goes to the likeliest of it.
    """
    margins, known = rest_margins(pool.probabilities), pool.labelled
    classes = margins.shape[1]
    known_margins = rest_margins(known.probabilities) if len(known.labels) else np.empty((0, classes))
    cuts = [separation_threshold(known_margins[:, k], known.labels == k) for k in range(classes)]
    gaps = np.abs(margins - cuts)
    nearest = [iter(ranked(-gaps[:, k], rng).tolist()) for k in range(classes)]
    turns = np.argsort(known.counts(classes), kind="stable").tolist()
    chosen: dict[int, int] = {}
    while len(chosen) < count:
        for k in turns[: count - len(chosen)]:
            chosen[next(cell for cell in nearest[k] if cell not in chosen)] = k
    indices, by = np.array(list(chosen), np.int64), list(chosen.values())
    return Picks(indices, -gaps[indices, by], [f"near the border of {CLASSES[k]} against the rest" for k in by])


# --- spread over the pool ----------------------------------------------------------------------------------------------------


@batch_acquisition(
    "badge", needs={"probabilities", "embedding"}, reason="would move the model far, and elsewhere than the others of this queue"
)
def badge(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
    """BADGE (Ash et al., ICLR 2020, algorithm 1): k-means++ on gradient embeddings, from the longest one on, as in the authors'
    code. Score: the gradient's distance to the nearest gradient chosen before it; its length for the first."""
    norms, to = gradient_distances(pool.probabilities, pool.embedding)
    first = any_highest(norms, rng)
    indices, squared = kmeans_plus_plus(to, first, count, rng)
    squared[0] = norms[first]
    return Picks(indices, np.sqrt(squared))


def _farthest_first(rows: Rows, labelled: Rows, count: int, rng: np.random.Generator) -> Picks:
    """Always the cell farthest from all labelled and chosen ones; without a labelled cell the first is drawn at random. Score:
    that distance (for such a first cell, the largest distance from it)."""
    to = embedding_distances(rows)
    nearest = nearest_squared(rows, labelled) if len(labelled) else np.full(len(rows), np.inf)
    chosen: list[int] = []
    squared: list[float] = []
    for _ in range(count):
        chosen.append(any_highest(nearest, rng))
        squared.append(float(nearest[chosen[-1]]))
        nearest = np.minimum(nearest, to(chosen[-1]))
        nearest[chosen] = -1.0
    if np.isinf(squared[0]):
        squared[0] = float(to(chosen[0]).max())
    return Picks(np.array(chosen, np.int64), np.sqrt(squared))


@batch_acquisition("k_center", needs={"embedding", "labelled"}, reason="unlike every cell that is labelled or in this queue")
def k_center(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
    """CoreSet's greedy k-center (Sener & Savarese, ICLR 2018, algorithm 1) on the network's embedding: see `_farthest_first`."""
    return _farthest_first(pool.embedding, pool.labelled.embedding, count, rng)


@batch_acquisition("colour_cover", needs={"colours", "labelled"}, reason="coloured unlike all that is labelled or in this queue")
def colour_cover(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
    """Greedy k-center on the cells' colours, for the first query, when no network has learnt anything yet. A class of 2 % of the
    cells has little chance to be among 31 that are drawn at random."""
    rows = whitened(np.concatenate([pool.colours, pool.labelled.colours]) if len(pool.labelled.labels) else pool.colours)
    return _farthest_first(rows[: len(pool)], rows[len(pool) :], count, rng)


@batch_acquisition(
    "diverse_loss", needs={"predicted_loss", "embedding"}, reason="LossNet expects the model to be wrong, in different ways"
)
def diverse_loss(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
    """Among the DIVERSE_FACTOR x count cells of highest predicted loss (Yoo & Kweon, CVPR 2019), what k-means++ picks in the
    embedding. It begins with the highest loss. The filter before the spread is that of Zhdanov 2019 (arXiv:1901.05954), with
    k-means++ in place of k-means. Score: the predicted loss."""
    top = ranked(pool.predicted_loss, rng)[: DIVERSE_FACTOR * count]
    picked, _ = kmeans_plus_plus(embedding_distances(pool.embedding[top]), 0, count, rng)
    return Picks(top[picked], pool.predicted_loss[top[picked]])


def typicality(rows: Rows) -> Floats:
    """The typicality (Hacohen et al. 2022) of each of the rows (n, D): 1 / mean distance to its TYPICAL_NEIGHBOURS nearest
    others; 0 for a row alone."""
    from sklearn.neighbors import NearestNeighbors

    neighbours = min(TYPICAL_NEIGHBOURS, len(rows) - 1)
    if neighbours == 0:
        return np.zeros(len(rows))
    distances, _ = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(rows).kneighbors()
    value: Floats = 1.0 / (distances.mean(axis=1) + 1e-5)  # as the authors' code keeps duplicates finite
    return value


def _clusters(rows: Rows, clusters: int, rng: np.random.Generator) -> Ints:
    """Cluster (N,) of each row by k-means, in mini-batches where there are more than 50 clusters, as the authors of TypiClust."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    seed = int(rng.integers(2**31))
    if clusters <= 50:
        means = KMeans(clusters, n_init=1, random_state=seed)
    else:
        means = MiniBatchKMeans(clusters, n_init=1, batch_size=5000, init_size=3 * clusters, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters leave clusters empty, no more
        return np.asarray(means.fit_predict(rows), dtype=np.int64)


@batch_acquisition("typiclust", needs={"embedding", "labelled"}, reason="typical of a group of cells with few labels or none")
def typiclust(pool: PoolScores, count: int, rng: np.random.Generator) -> Picks:
    """TypiClust (Hacohen, Dekel & Weinshall, ICML 2022, algorithm 1), meant for the first query, when little or nothing is
    labelled: k-means on L2-normalised embeddings with a cluster for each labelled cell and each cell asked for; from the
    clusters with the fewest labels, largest first, the most typical cell. Score: typicality.

    As in the authors' code there are at most MAX_CLUSTERS, and those of up to SMALL_CLUSTER cells wait until last. Where more
    cells are asked for than there are clusters, each gives its next typical one. Takes a second copy of the embeddings.
    """
    rows = np.concatenate([pool.labelled.embedding.reshape(-1, pool.embedding.shape[1]), pool.embedding])
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    known = len(rows) - len(pool)
    clusters = _clusters(rows, min(known + count, MAX_CLUSTERS, len(rows)), rng)
    sizes, labels = np.bincount(clusters), np.bincount(clusters[:known], minlength=clusters.max() + 1)
    own, typical, turn = clusters[known:], np.empty(len(pool)), np.empty(len(pool), np.int64)
    for cluster in np.unique(own):
        members = np.flatnonzero(own == cluster)
        typical[members] = typicality(rows[known + members])
        turn[members[ranked(typical[members], rng)]] = np.arange(len(members))
    keys = [rng.permutation(sizes.size)[own], -sizes[own], labels[own], turn, sizes[own] <= SMALL_CLUSTER]
    order = np.lexsort(keys)[:count]
    return Picks(order, typical[order])
