"""Which self-supervised pre-training: the embeddings that each method learns from the pool, judged with few labels.

    OMP_NUM_THREADS=1 PYTHONPATH=. python studies/pretraining.py DATA.csv [--updates 400] [--seeds 1] [--methods NAME ...]

A method sees the training cells without their labels. Its embeddings are then frozen and judged on the validation cells (the
test cells have no part in the choice): macro-F1 of logistic regression on 31, 62 and 154 cells drawn at random, the same draws
for all methods, and of the 20 nearest neighbours among all training cells. `none` is the network with its random weights.

A run that is in `runs.csv` already is not repeated. Writes `runs.csv` and `README.md`.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from semi import changed, load
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wbc_model.network.predict import predict
from wbc_model.network.resnet import AttentionResNet18, begin_with
from wbc_model.params import Params, read_params
from wbc_model.training.pretrain import METHODS, pretrained
from wbc_model.training.pseudo_labels import UnlabelledCells
from wbc_model.training.train import LabelledCells

COUNTS, DRAWS, NEIGHBOURS = (31, 62, 154), 5, 20


def embeddings(params: Params, start: dict[str, torch.Tensor] | None, cells: LabelledCells) -> NDArray[np.float32]:
    """Embeddings (N, 512) by the network that a training begins with."""
    torch.manual_seed(params.seed)
    network = AttentionResNet18(params.model.attention, params.model.lossnet, norm=params.model.norm)
    if start is not None:
        begin_with(network, start)
    seen: NDArray[np.float32] = predict(network, cells.batches(), embeddings=True).embedding
    return seen


def judged(params: Params, start: dict[str, torch.Tensor] | None, splits: dict[str, LabelledCells]) -> dict[str, float]:
    """The figures of one row."""
    pool, held_out = splits["train"], splits["val"]
    x, test = embeddings(params, start, pool), embeddings(params, start, held_out)

    def macro_f1(classifier: Any, rows: NDArray[np.int64]) -> float:
        guess = make_pipeline(StandardScaler(), classifier).fit(x[rows], pool.labels[rows]).predict(test)
        return float(f1_score(held_out.labels, guess, average="macro", zero_division=0))

    everything = np.arange(len(pool.labels))
    found = {"neighbours": macro_f1(KNeighborsClassifier(NEIGHBOURS, weights="distance"), everything)}
    for count in COUNTS:
        draws = [np.random.default_rng(draw).permutation(everything)[:count] for draw in range(DRAWS)]
        scores = [macro_f1(LogisticRegression(C=0.1, max_iter=300, class_weight="balanced"), rows) for rows in draws]
        found |= {f"f1_{count}": float(np.mean(scores)), f"sd_{count}": float(np.std(scores, ddof=1))}
    return found


def report(out: Path, data: Path) -> None:
    """README.md from runs.csv."""
    runs = pd.read_csv(out / "runs.csv", keep_default_na=False)
    head = ["method", "updates", "seed", *(f"{count} labels" for count in COUNTS), f"{NEIGHBOURS} neighbours", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in runs.sort_values(["updates", "seed", "f1_154"]).to_dict("records"):
        scores = [f"{100 * row[f'f1_{count}']:.1f} ± {100 * row[f'sd_{count}']:.1f}" for count in COUNTS]
        values = [
            row["method"],
            row["updates"],
            row["seed"],
            *scores,
            f"{100 * row['neighbours']:.1f}",
            f"{row['seconds'] / 60:.1f}",
        ]
        lines.append("| " + " | ".join(map(str, values)) + " |")
    text = ["# Self-supervised pre-training: which method", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    text += [f"Data: {data.name}. Macro-F1 in per cent, mean ± standard deviation over {DRAWS} draws of labels.", "", *lines, ""]
    (out / "README.md").write_text("\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=["none", *METHODS], choices=["none", *METHODS])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=NUMBER", help="such as train.learning_rate=0.003")
    parser.add_argument("--out", type=Path, default=Path("studies/pretraining"))
    parser.add_argument("--cache", type=Path, help="keep the weights here, and go on with those that are here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    base = read_params(Path("params.yaml"))
    base = changed(base, {key: float(value) for key, value in (pair.split("=") for pair in arguments.set)})
    splits = load(arguments.data, base)
    pool = splits["train"]
    place = {name: row for row, name in enumerate(pool.sha256s)}
    cells = UnlabelledCells(pool.sha256s, lambda wanted: pool.images[[place[name] for name in wanted]])
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "runs.csv"
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for method in arguments.methods:
                updates = arguments.updates if method != "none" else 0
                done = (
                    pd.read_csv(path, keep_default_na=False)
                    if path.exists()
                    else pd.DataFrame(columns=["method", "updates", "seed"])
                )
                if ((done["method"] == method) & (done["updates"] == updates) & (done["seed"] == seed)).any():
                    continue
                params = changed(base, {"train.pretraining": method, "train.pretraining_updates": max(updates, 1)})
                params = params.model_copy(update={"seed": seed})
                begin = time.process_time()
                start = pretrained(params, cells, arguments.cache or Path(folder))
                row = {"method": method, "updates": updates, "seed": seed, "seconds": round(time.process_time() - begin)}
                row |= {name: round(value, 4) for name, value in judged(params, start, splits).items()}
                pd.concat([done, pd.DataFrame([row])]).to_csv(path, index=False)
                report(arguments.out, arguments.data)
                print(row, flush=True)


if __name__ == "__main__":
    main()
