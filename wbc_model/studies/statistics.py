"""The statistics of a study, over paired seeds: areas, labels needed, paired comparisons, the penalty matrix.

A seed is a pair: both arms had its splits and its first labels. All tests are over these pairs. Nothing here looks at more than
the rows of `results.parquet`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from wbc_model.core.errors import WbcError
from wbc_model.studies.study import HOME, Study

Floats = NDArray[np.float64]
ALPHA: Final = 0.05  # of the paired t-tests of the penalty matrix
RESAMPLES: Final = 10_000
NO_SPREAD: Final = 1e-12  # differences that spread no more are all alike
EXACT_WITH_TIES: Final = 14  # pairs up to which every assignment of signs is tried


# --- of arrays ------------------------------------------------------------------------------------------------------------


def area(labels: Floats, values: Floats, log: bool) -> float:
    """Area under a curve over its budgets by trapezoids, over log(labels) where `log`. It is divided by their range, and so a
    mean value of the metric. One budget's area is its value."""
    x = np.log(labels) if log else np.asarray(labels, dtype=np.float64)
    if len(x) == 1:
        return float(values[0])
    return float(np.trapezoid(values, x) / (x[-1] - x[0]))


def labels_needed(labels: Floats, values: Floats, target: float, log: bool) -> float | None:
    """Labels at which a curve first reaches `target`, linear between its budgets (over log(labels) where `log`). A curve that
    begins above it needs the first budget. None where it is not reached."""
    x = np.log(labels) if log else np.asarray(labels, dtype=np.float64)
    reached = np.flatnonzero(np.asarray(values) >= target)
    if not len(reached):
        return None
    at = int(reached[0])
    if at == 0:
        return float(labels[0])
    share = (target - values[at - 1]) / (values[at] - values[at - 1])
    crossing = float(x[at - 1] + share * (x[at] - x[at - 1]))
    return float(np.exp(crossing)) if log else crossing


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method (Scandinavian Journal of Statistics 1979), in the order given."""
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def wilcoxon_p(differences: Floats, alternative: str = "two-sided") -> float:
    """p of Wilcoxon's signed-rank test, exact for few pairs. Pairs without a difference are left out; 1 where none is left."""
    kept = np.round(differences[np.isfinite(differences)], 12)
    kept = kept[kept != 0]
    if not len(kept):
        return 1.0
    tied = len(np.unique(np.abs(kept))) < len(kept)
    method: Any = stats.PermutationMethod(n_resamples=2**EXACT_WITH_TIES) if tied and len(kept) <= EXACT_WITH_TIES else "auto"
    return float(stats.wilcoxon(kept, alternative=alternative, method=method).pvalue)


def smallest_p(pairs: int, alternative: str) -> float:
    """The smallest p that Wilcoxon's test can give with so many pairs."""
    return float((2 if alternative == "two-sided" else 1) / 2**pairs)


def effect_size(differences: Floats) -> float:
    """Cohen's d_z: mean over standard deviation of the paired differences. NaN for fewer than two, infinite without spread."""
    if len(differences) < 2:
        return float("nan")
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if spread < NO_SPREAD:
        return 0.0 if abs(mean) < NO_SPREAD else float(np.copysign(np.inf, mean))
    return mean / spread


def bootstrap_interval(differences: Floats, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean difference under resampling of the pairs. NaN for one pair and for pairs without
    spread, since resampling tells nothing of them."""
    if np.ptp(differences) < NO_SPREAD:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def beats(errors: Floats, others: Floats) -> bool:
    """Whether paired errors (seeds,) are lower than others' by a two-sided paired t-test at ALPHA."""
    difference = others - errors
    if len(difference) < 2 or difference.mean() <= 0:
        return False
    if float(difference.std(ddof=1)) < NO_SPREAD:  # t is infinite, which SciPy warns of
        return True
    return bool(stats.ttest_rel(others, errors).pvalue < ALPHA)


def penalty_matrix(errors: Sequence[Floats]) -> Floats:
    """The pairwise penalty matrix of Ash et al. (BADGE, ICLR 2020), for one data set.

    `errors` has an array (seeds, budgets) per arm. Entry (i, j) grows by 1 / budgets for each budget at which i beats j, so
    it lies in 0..1. The mean of column j says how often j was beaten: lower is better.
    """
    budgets = errors[0].shape[1]
    matrix = np.zeros((len(errors), len(errors)))
    for i, ours in enumerate(errors):
        for j, theirs in enumerate(errors):
            if i != j:
                matrix[i, j] = sum(beats(ours[:, at], theirs[:, at]) for at in range(budgets)) / budgets
    return matrix


# --- of a table of results ------------------------------------------------------------------------------------------------


def curves(results: pd.DataFrame, test: str, metric: str) -> tuple[dict[str, Floats], Floats, list[int], list[float]]:
    """Of one evaluation set: arm -> values (seeds, budgets), the labels (seeds, budgets), the seeds, the budgets.

    Only seeds that every arm has been through are used, so that all comparisons are paired.
    """
    here = results[results["test"] == test]
    arms, budgets = list(dict.fromkeys(here["arm"])), sorted(set(results["budget"]))
    grid = pd.MultiIndex.from_product([arms, budgets])
    wide = here.pivot(index="seed", columns=["arm", "budget"], values=metric).reindex(columns=grid).dropna()
    if wide.empty:
        raise WbcError("no seed has been through all arms and budgets yet: run the study again to go on")
    seeds = [int(seed) for seed in wide.index]
    labels = here[here["arm"] == arms[0]].pivot(index="seed", columns="budget", values="labels").loc[seeds, budgets]
    values = {arm: wide[arm][budgets].to_numpy(dtype=np.float64) for arm in arms}
    return values, labels.to_numpy(dtype=np.float64), seeds, budgets


def areas(values: Mapping[str, Floats], labels: Floats, log: bool) -> dict[str, Floats]:
    """Each arm's area by seed, (seeds,)."""
    return {arm: np.array([area(x, y, log) for x, y in zip(labels, each, strict=True)]) for arm, each in values.items()}


def comparison(arm: str, what: str, difference: Floats, alternative: str) -> dict[str, Any]:
    """One paired comparison of two arms; `difference` (seeds,) is the one minus the other."""
    low, high = bootstrap_interval(difference)
    return {
        "arm": arm,
        "what": what,
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "d_z": effect_size(difference),
        "p": wilcoxon_p(difference, alternative),
    }


def comparisons(study: Study, results: pd.DataFrame, test: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every arm against the reference: by area (one family of tests) and at each budget (another), with `p_holm`."""
    file = study.file
    values, labels, _, _ = curves(results, test, file.metric)
    by_area = areas(values, labels, file.log_budget)
    others = [arm for arm in values if arm != file.reference]
    whole = [comparison(arm, "area", by_area[arm] - by_area[file.reference], file.alternative) for arm in others]
    names = [labels_text(labels[:, at]) for at in range(labels.shape[1])]
    single = [
        comparison(arm, names[at], (values[arm] - values[file.reference])[:, at], file.alternative)
        for arm in others
        for at in range(len(names))
    ]
    frames = []
    for rows in (whole, single):
        frame = pd.DataFrame(rows)
        frame["p_holm"] = holm([row["p"] for row in rows])
        frames.append(frame)
    return frames[0], frames[1]


def own_shares(study: Study, results: pd.DataFrame, test: str) -> pd.DataFrame:
    """What each of the study's `parts` adds by itself, by area: the arm with it against the arm that lacks only it. One family
    of tests, with `p_holm`."""
    file = study.file
    values, labels, _, _ = curves(results, test, file.metric)
    by_area = areas(values, labels, file.log_budget)
    rows = [
        comparison(part, f"{arm} − {other}", by_area[arm] - by_area[other], file.alternative)
        for part, (arm, other) in file.parts.items()
    ]
    return pd.DataFrame(rows).assign(p_holm=holm([row["p"] for row in rows]))


def needed(study: Study, results: pd.DataFrame, test: str) -> list[dict[str, Any]]:
    """Labels that each arm needs for each target: of the mean curve, and how many seeds' own curves get there."""
    file = study.file
    values, labels, _, _ = curves(results, test, file.metric)
    rows = []
    for arm, each in values.items():
        for target in file.targets:
            mean = labels_needed(labels.mean(axis=0), each.mean(axis=0), target, file.log_budget)
            single = [labels_needed(x, y, target, file.log_budget) for x, y in zip(labels, each, strict=True)]
            first = mean is not None and mean <= labels.mean(axis=0)[0]
            reached = sum(one is not None for one in single)
            rows.append({"arm": arm, "target": target, "labels": mean, "at_first": first, "reached": reached, "seeds": len(each)})
    return rows


def labels_text(labels: Floats) -> str:
    """A number of labels; the least and the most where seeds differ."""
    low, high = int(labels.min()), int(labels.max())
    return str(low) if low == high else f"{low}–{high}"


def deviation(values: Floats) -> float | None:
    """The standard deviation over seeds; None for one seed."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def summary(study: Study, results: pd.DataFrame) -> list[dict[str, Any]]:
    """For `--json`: each arm's last budget and its area, on the data's own test split."""
    file = study.file
    values, labels, _, _ = curves(results, HOME, file.metric)
    by_area = areas(values, labels, file.log_budget)
    return [
        {
            "arm": arm,
            "metric": file.metric,
            "labels": round(float(labels[:, -1].mean())),
            "mean": float(each[:, -1].mean()),
            "sd": deviation(each[:, -1]),
            "area": float(by_area[arm].mean()),
            "seeds": len(each),
        }
        for arm, each in values.items()
    ]
