"""How far trainings with as many labels differ: the standard deviation over seeds of the log-odds of the test errors.

    python studies/training_spread.py [studies/NAME/results.csv ...]

By default it reads every study in this folder. `wbc_model/evaluation/expected_gain.py` takes its spreads from here. A row counts
where an arm has three seeds or more with the same number of labels, on the site's own test cells. The seeds of a study ask for
different labels, too. So the spread of one workspace is rather smaller.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

LEAST_SEEDS = 3
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


def spreads(results: Path) -> pd.DataFrame:
    """One row per arm and number of labels of a study: `study`, `arm`, `labels`, `seeds`, `spread`."""
    rows = pd.read_csv(results)
    if not {"arm", "labels", "n", "accuracy"} <= set(rows):
        return pd.DataFrame()
    if "test" in rows:
        rows = rows[rows["test"] == "home"]
    wrong = (1 - rows["accuracy"]) * rows["n"]
    rows = rows.assign(odds=np.log((wrong + 0.5) / (rows["n"] - wrong + 0.5)))
    found = rows.groupby(["arm", "labels"])["odds"].agg(seeds="size", spread="std").reset_index()
    return found[found["seeds"] >= LEAST_SEEDS].assign(study=results.parent.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*")
    given = parser.parse_args()
    files = given.results or sorted(Path(__file__).parent.glob("*/results.csv"))
    table = pd.concat([spreads(path) for path in files], ignore_index=True)
    print("study            arms" + "".join(f"{share:>8.0%}" for share in SHARES))
    for name, rows in [*table.groupby("study"), ("all", table)]:
        print(f"{name:<15} {len(rows):>5}" + "".join(f"{spread:8.2f}" for spread in rows["spread"].quantile(list(SHARES))))


if __name__ == "__main__":
    main()
