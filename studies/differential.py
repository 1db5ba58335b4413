"""Do the limits of a differential hold the truth on real images? Specimens are put together from labelled cells.

    OMP_NUM_THREADS=1 python studies/differential.py MODEL DATA.csv [--other OTHER.csv ...] [--specimens 500] [--out FILE.md]

The validation cells of DATA give the confusion matrix, as they do in training. Specimens of 100, 200 and 400 cells have a
healthy adult's shares, which vary binomially as a drop of blood does. Their cells are drawn, with replacement, from DATA's test
cells. Then they are drawn from those of the other sets, which the correction was not made for. The study prints how often the
exact and the corrected 95 % limits hold the specimen's true share: over the five classes, for the worst of them, and how wide
they are.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flows.studies.results import publishing
from serving.contract.differential import count_differential
from serving.contract.schemas import Classified
from serving.contract.site import read_site
from serving.inference.classify import Classifier
from wbc_model.cells.manifest import read_cell, read_manifest, root_of
from wbc_model.core.classes import CLASS_INDEX, CLASSES
from wbc_model.evaluation.metrics import confusion_matrix

HEALTHY = np.array([0.005, 0.03, 0.30, 0.06, 0.605])
CELLS = (100, 200, 400)


def confusion_of(classifier: Classifier, data: Path, split: str | None) -> NDArray[np.int64]:
    """Counts (5, 5), true x predicted by the service, of the labelled cells of a manifest's split, or of all."""
    rows = read_manifest(data)
    rows = rows[rows["label"].isin(CLASSES) & ((rows["split"] == split) | (split is None))]
    pairs = []
    for start in tqdm(range(0, len(rows), 64), desc=f"{data.stem} {split or ''}", leave=False, disable=None):
        part = rows.iloc[start : start + 64]
        results = classifier.classify_chunk([read_cell(path, root_of(data)) for path in part["path"]])
        pairs += [(label, one.label) for label, one in zip(part["label"], results, strict=True) if isinstance(one, Classified)]
    true, predicted = np.array([[CLASS_INDEX[name] for name in pair] for pair in pairs]).T
    return confusion_matrix(true, predicted)


def coverage(seen: NDArray[np.int64], known: NDArray[np.int64], cells: int, specimens: int) -> NDArray[np.float64]:
    """(2, 2, 5): of exact and of corrected limits, how often they hold the true share and how many points wide they are."""
    rng, site, total = np.random.default_rng(0), read_site(), np.zeros((2, 2, 5))
    rates = seen / seen.sum(axis=1, keepdims=True)
    for _ in range(specimens):
        drawn = sum(rng.multinomial(count, row) for count, row in zip(rng.multinomial(cells, HEALTHY), rates, strict=True))
        labels = np.repeat(CLASSES, drawn).tolist()
        for place, share in enumerate(count_differential(labels, known, site).classes.values()):
            for kind, limits in enumerate((share.interval, share.corrected or share.interval)):
                total[kind, 0, place] += limits.low <= 100 * HEALTHY[place] <= limits.high
                total[kind, 1, place] += limits.high - limits.low
    return total / specimens


def main() -> None:
    """Measure and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--other", type=Path, nargs="*", default=[])
    parser.add_argument("--specimens", type=int, default=500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    classifier = Classifier.open(options.model)
    known = confusion_of(classifier, options.data, "val")
    card = classifier.card
    lines = [f"Model {card.version}, trained on {card.data_source}; {options.specimens} specimens a row.", ""]
    lines += ["| cells from | accuracy | cells | exact: mean, worst, width | corrected: mean, worst, width |", f"|{'---|' * 5}"]
    for data, split in [(options.data, "test"), *((other, None) for other in options.other)]:
        seen = confusion_of(classifier, data, split)
        for cells in CELLS:
            held = coverage(seen, known, cells, options.specimens)
            shown = [f"{100 * it[0].mean():.1f} %, {100 * it[0].min():.1f} %, {it[1].mean():.1f} points" for it in held]
            accuracy = f"{100 * np.trace(seen) / seen.sum():.1f} %"
            lines.append(f"| {data.stem} | {accuracy} | {cells} | {shown[0]} | {shown[1]} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        with publishing(options.out.parent) as folder:
            (folder / options.out.name).write_text(text)


if __name__ == "__main__":
    main()
