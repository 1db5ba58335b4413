"""Do the limits of kappa and of each reader's confusion hold the truth? Two readers, whose errors are known, are simulated.

    OMP_NUM_THREADS=1 python studies/agreement.py [--simulations 1000] [--out studies/agreement]

In each simulation two readers err in 2 to 20 % of the cells of a kind, most often towards kinds that look like it. They call
1 to 3 % unsure. The cells have the shares of a healthy adult's blood. As in the product, a fifth of the cells is read by both,
and so is each that one of them calls unsure. A third person settles what differs. 5 % of a reader's tasks are known cells.
`n` is the number of cells that were drawn to be read by both. The seeds are the numbers of the simulations.

Further scenarios are harder to estimate: a third person who errs, too, and hard cells that make both readers err.
"""

import argparse
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from flows.studies.results import claim, publishing
from flows.workspace import find_workspace
from serving.labelling.agreement import Kappa, cohen_kappa, kappa_of_class
from serving.labelling.confusion import MIN_OF_KIND, Reading, dawid_skene
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.evaluation.plots import BLUE, GREEN, GREY, ORANGE, RED, SKY, head, in_percent, legend_below, plain, save_figure

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
SHARES: Final = np.array([0.005, 0.03, 0.30, 0.06, 0.605])  # of a healthy adult, as in studies/differential.py
# What each kind is taken for where it is taken for something else, in the order of CLASSES.
LIKENESS: Final = np.array(
    [
        [0, 0.3, 0.1, 0.1, 0.5],
        [0.2, 0, 0.05, 0.05, 0.7],
        [0.1, 0.05, 0, 0.75, 0.1],
        [0.05, 0.02, 0.6, 0, 0.33],
        [0.1, 0.35, 0.2, 0.35, 0],
    ]
)
UNSURE: Final = len(CLASSES)  # the number of this answer
ANSWERS: Final = (*CLASSES, "unsure")
LEAST, MOST = 0.02, 0.20  # a reader's error rates
SECOND, KNOWN = 0.2, 0.05  # shares of the cells that are read twice, and of a reader's tasks that are known cells
HARD: Final = 0.1  # of the cells, in the scenario that has hard ones
SIZES: Final = (50, 100, 200, 500, 1000, 2000)
HARDER_SIZE: Final = 500
AIM: Final = (0.93, 0.99)
FEW: Final = " (too few cells)"
FILES: Final = ("README.md", "results.csv", "coverage.png")
# The columns of the table: a pattern of the names of their intervals, and whether the worst of them is shown.
COLUMNS: Final = {
    "kappa": ("kappa$", False),
    "kappa of a kind": ("kappa of", True),
    "a reader is right": ("right", True),
    "taken for another, or unsure": ("taken|unsure", False),
}


@dataclass(frozen=True)
class Scenario:
    """`third` is how often the third person errs; on hard cells the readers err `harder` times as often as on others."""

    name: str
    third: float = 0.0
    harder: float = 1.0


MAIN: Final = Scenario("as assumed")
HARDER: Final = (
    Scenario("third errs 2 %", third=0.02),
    Scenario("third errs 5 %", third=0.05),
    Scenario("hard cells", harder=5.0),
)


@dataclass(frozen=True)
class Found:
    """One interval of a simulation: what it is of, the truth, its ends."""

    what: str
    truth: float
    low: float
    high: float


def matrix(errors: Floats, unsure: float) -> Floats:
    """A reader's probabilities (5, 6) of each answer, from the error rate (5,) of each kind."""
    rates = errors[:, None] * LIKENESS / LIKENESS.sum(axis=1, keepdims=True) + np.diag(1 - errors - unsure)
    return np.column_stack([rates, np.full(len(CLASSES), unsure)])


def reader(rng: np.random.Generator, scenario: Scenario) -> tuple[Floats, Floats]:
    """Probabilities (5, 6) on easy and on hard cells, whose mixture has error rates of LEAST to MOST, even on a log scale."""
    rate = np.exp(rng.uniform(np.log(LEAST), np.log(MOST)))
    errors, unsure = np.clip(rate * rng.uniform(0.5, 2, len(CLASSES)), LEAST, MOST), rng.uniform(0.01, 0.03)
    easy = errors / (1 - HARD + HARD * scenario.harder)
    return matrix(easy, unsure), matrix(easy * scenario.harder, unsure)


def answered(rates: tuple[Floats, Floats], truth: Numbers, hard: NDArray[np.bool_], rng: np.random.Generator) -> Numbers:
    """A reader's answers (N,) to cells of these kinds."""
    each = np.where(hard[:, None], rates[1][truth], rates[0][truth])
    numbers: Numbers = (rng.random(len(truth))[:, None] > each.cumsum(axis=1)).sum(axis=1).clip(max=UNSURE)
    return numbers


def true_kappa(readers: list[tuple[Floats, Floats]], kind: int | None = None) -> float:
    """Kappa of two readers over all blood, of cells that neither calls unsure; of one kind against the rest, or of all."""
    kinds = slice(0, len(CLASSES))
    ways = [np.einsum("k,ka,kb->ab", SHARES, readers[0][way][:, kinds], readers[1][way][:, kinds]) for way in (0, 1)]
    table = (1 - HARD) * ways[0] + HARD * ways[1]
    table /= table.sum()
    if kind is not None:
        one = np.arange(len(CLASSES)) == kind
        table = np.array([[table[np.ix_(a, b)].sum() for b in (one, ~one)] for a in (one, ~one)])
    agreed, by_chance = np.trace(table), (table.sum(axis=0) * table.sum(axis=1)).sum()
    return float((agreed - by_chance) / (1 - by_chance))


def labelled(
    n: int, readers: list[tuple[Floats, Floats]], third: float, rng: np.random.Generator
) -> tuple[list[Reading], dict[str, str], Numbers]:
    """The readings, what a third person settled, and both readers' answers (n, 2) to the cells that were drawn for both."""
    total = round(n / SECOND)
    truth, hard = rng.choice(len(CLASSES), total, p=SHARES), rng.random(total) < HARD
    said = np.column_stack([answered(rates, truth, hard, rng) for rates in readers])
    first = rng.integers(0, 2, total)
    both = (np.arange(total) < n) | (said[np.arange(total), first] == UNSURE)
    settled = answered((matrix(np.full(len(CLASSES), third), 0.0),) * 2, truth, hard, rng)
    readings, adjudicated = [], {}
    for cell in range(total):
        name = str(cell)
        readings += [Reading(name, "AB"[who], ANSWERS[said[cell, who]]) for who in (0, 1) if both[cell] or who == first[cell]]
        if both[cell] and (said[cell, 0] != said[cell, 1] or said[cell, 0] == UNSURE):
            adjudicated[name] = ANSWERS[settled[cell]]
    for who, rates in enumerate(readers):
        known = round(KNOWN * int((both | (first == who)).sum()))
        kinds, hard = rng.choice(len(CLASSES), known, p=SHARES), rng.random(known) < HARD
        answers = answered(rates, kinds, hard, rng)
        readings += [Reading(f"known {who} {at}", "AB"[who], ANSWERS[a], CLASSES[kinds[at]]) for at, a in enumerate(answers)]
    return readings, adjudicated, said[:n]


def simulated(n: int, scenario: Scenario, seed: int) -> Iterator[Found]:
    """All intervals of one simulation."""
    rng = np.random.default_rng([n, seed])
    readers = [reader(rng, scenario), reader(rng, scenario)]
    readings, adjudicated, said = labelled(n, readers, scenario.third, rng)
    first, second = ([ANSWERS[a] for a in column] for column in said.T)
    kappas: list[tuple[str, Kappa | None, float]] = [("kappa", cohen_kappa(first, second, CLASSES), true_kappa(readers))]
    for at, name in enumerate(CLASSES):
        kappas.append((f"kappa of {name}", kappa_of_class(first, second, name, CLASSES), true_kappa(readers, at)))
    for what, kappa, truth in kappas:
        if kappa is not None:
            yield Found(what, truth, kappa.low, kappa.high)
    for who, confusion in dawid_skene(readings, adjudicated, CLASSES, "unsure").items():
        easy, hard = readers["AB".index(who)]
        rates = (1 - HARD) * easy + HARD * hard
        for row in confusion.rows:
            enough = "" if row.cells >= MIN_OF_KIND else FEW
            for answer, low, high in zip(confusion.answers, row.low, row.high, strict=True):
                wrong = "taken for another" if answer in CLASSES else "unsure"
                what = f"right at {row.truth}" if answer == row.truth else wrong
                truth = rates[CLASSES.index(row.truth), ANSWERS.index(answer)]
                yield Found(f"{what}{enough}", float(truth), low, high)


def measured(n: int, scenario: Scenario, simulations: int) -> list[dict[str, str | int | float]]:
    """How often each kind of interval held the truth, and how wide it was in the mean."""
    found: dict[str, list[Found]] = defaultdict(list)
    for seed in tqdm(range(simulations), desc=f"{scenario.name}, n {n}", leave=False, disable=None):
        for one in simulated(n, scenario, seed):
            found[one.what].append(one)
    rows: list[dict[str, str | int | float]] = []
    for what in sorted(found):
        truth, low, high = np.array([(one.truth, one.low, one.high) for one in found[what]]).T
        held = float(((low <= truth) & (truth <= high)).mean())
        ends = {"below": float((truth < low).mean()), "above": float((truth > high).mean()), "width": float((high - low).mean())}
        rows.append({"scenario": scenario.name, "n": n, "what": what, "intervals": len(truth), "held": held, **ends})
    return rows


def pooled(table: pd.DataFrame, pattern: str) -> tuple[float, float, float]:
    """Of the rows whose name matches and that are shown: the share held over all intervals, the worst row's, the mean width.

    A row of few intervals is no worst one.
    """
    rows = table[table["what"].str.match(pattern) & ~table["what"].str.endswith(FEW)]
    weights = rows["intervals"] / rows["intervals"].sum()
    return (
        float((rows["held"] * weights).sum()),
        float(rows["held"][weights > 0.02].min()),
        float((rows["width"] * weights).sum()),
    )


def line(table: pd.DataFrame, name: str) -> str:
    """One line of Markdown: how often the limits of one scenario and size held the truth, and how wide they are."""
    texts = [name]
    for pattern, has_worst in COLUMNS.values():
        held, worst, width = pooled(table, pattern)
        texts.append(f"{100 * held:.1f}" + (f" (worst {100 * worst:.1f})" if has_worst else "") + f"; {width:.2f}")
    return "| " + " | ".join(texts) + " |"


def readme(results: pd.DataFrame, simulations: Sequence[int], notes: str) -> str:
    """README.md from the table, and what people noted in NOTES.md."""
    columns = "| {} | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (1 + len(COLUMNS))
    main, others = (results[(results["scenario"] == MAIN.name) == is_main] for is_main in (True, False))
    lines = [columns.format("cells read by both")] + [line(rows, str(n)) for n, rows in main.groupby("n")]
    more = [columns.format("scenario")] + [line(rows, str(name)) for name, rows in others.groupby("scenario", sort=False)]
    count = simulations[0]
    text = (
        f"`python studies/agreement.py --simulations {count}`: how many per cent of the 95 % limits held the truth, with the "
        "worst kind in brackets. After the semicolon: how wide the limits are in the mean; kappa and rates go to 1. Each line "
        f"has {count:,} simulations, with the seeds 0 to {count - 1}. Rates are of rows of {MIN_OF_KIND} cells or more. "
        "`results.csv` has each kind, both ends, and the rows of fewer cells."
    )
    above = "# Limits of agreement, simulated\n\n" + textwrap.fill(text, 120) + "\n\n"
    harder = f"Harder to estimate: {HARDER_SIZE} cells read by both, {simulations[1]:,} simulations each.\n\n"
    parts = [above + "\n".join(lines), "![held over n](coverage.png)", harder + "\n".join(more), notes.strip()]
    return "\n\n".join(part for part in parts if part) + "\n"


def plot(results: pd.DataFrame, path: Path) -> None:
    """How often the limits held the truth, over the number of cells that both read."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    main = results[results["scenario"] == MAIN.name]
    sizes = sorted(set(main["n"]))
    axes.axhspan(*AIM, color=GREEN, alpha=0.12, label="aim: 93 to 99 %")
    axes.axhline(0.95, color=GREY, linewidth=1, linestyle="--")
    for (name, (pattern, _)), colour in zip(COLUMNS.items(), (BLUE, SKY, RED, ORANGE), strict=True):
        axes.plot(sizes, [pooled(main[main["n"] == n], pattern)[0] for n in sizes], "o-", color=colour, label=name)
    axes.set(xscale="log", xlabel="cells read by both", ylabel="limits that hold the truth", ylim=(0.88, 1.0))
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    plain(axes)
    in_percent(axes)
    legend_below(figure, columns=3)
    head(figure, "Simulated readers: how often stated 95 % limits hold the truth")
    save_figure(figure, path)


def main() -> None:
    """Simulate, and write the table, the picture and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("studies/agreement"))
    given = parser.parse_args()
    fewer = max(1, given.simulations // 4)
    try:
        claim([given.out / name for name in FILES], find_workspace())
        rows = [row for n in SIZES for row in measured(n, MAIN, given.simulations)]
        rows += [row for scenario in HARDER for row in measured(HARDER_SIZE, scenario, fewer)]
        results = pd.DataFrame(rows)
        notes = (given.out / "NOTES.md").read_text() if (given.out / "NOTES.md").exists() else ""
        with publishing(given.out) as folder:
            (folder / "results.csv").write_text(results.to_csv(index=False, float_format="%.4f"))
            plot(results, folder / "coverage.png")
            (folder / "README.md").write_text(readme(results, (given.simulations, fewer), notes))
    except WbcError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
