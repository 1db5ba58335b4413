"""How far a new site is from the one that a model was trained at, without a label of it."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.metrics import classification_metrics
from wbc_model.evaluation.recolour import Pixels, colour_map, recoloured
from wbc_model.network.predict import Predictions, predict

BATCH: Final = 128
Rows = NDArray[np.float32]


def distances_to(cells: Rows, reference: Rows) -> NDArray[np.float64]:
    """Cosine distance of each embedding (N, D) to the nearest of the reference (M, D), (N,)."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(reference)
    nearest: NDArray[np.float64] = search.kneighbors(cells)[0][:, 0]
    return nearest


def separability(home: Rows, site: Rows, seed: int) -> float | None:
    """Area under the ROC curve of a linear classifier that tells the sites' embeddings apart, five-fold cross-validated: 0.5
    where they look alike, 1 where each cell betrays its site (the proxy of Ben-David et al. 2007 for the distance of domains).
    None where a site has one cell alone, which leaves nothing to validate on."""
    if (folds := min(5, len(home), len(site))) < 2:
        return None
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, which = np.concatenate([home, site]), np.repeat([0, 1], [len(home), len(site)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200, class_weight="balanced"))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(roc_auc_score(which, cross_val_predict(model, rows, which, cv=parts, method="decision_function")))


def measure_shift(home: Predictions, half: Predictions, site: Predictions, temperature: float, seed: int) -> dict[str, Any]:
    """`half` are cells of the old site that are not among `home`; all with embeddings.

    far: share of the new site's cells that are farther from every home cell than 99 % of home's own are; confidence: mean
    highest probability at home and at the site; separability: see there.
    """
    limit = np.quantile(distances_to(half.embedding, home.embedding), 0.99)
    return {
        "far": float((distances_to(site.embedding, home.embedding) > limit).mean()),
        "separability": separability(half.embedding, site.embedding, seed),
        "confidence": {
            "home": float(softmax(half.logits, temperature).max(axis=1).mean()),
            "site": float(softmax(site.logits, temperature).max(axis=1).mean()),
        },
    }


def cost_of_colours(
    network: nn.Module, images: Pixels, labels: NDArray[np.int64], logits: Rows, site: Pixels, autocast: bool = False
) -> dict[str, float]:
    """Balanced accuracy on labelled cells of home, views `images` (N, S, S, 3): as they are, by their `logits`
    (`home`), and in the colours of views of the `site` (`site`). What a network loses by a site's colours alone. `autocast`
    computes in bf16, as the logits were."""
    mapped = recoloured(images, *colour_map(images, site))
    there = predict(network, np.array_split(mapped, -(-len(mapped) // BATCH)), autocast=autocast).logits

    def balanced_accuracy(seen: Rows) -> float:
        return float(classification_metrics(softmax(seen), labels, resamples=0)["balanced_accuracy"])

    return {"home": balanced_accuracy(logits), "site": balanced_accuracy(there)}
