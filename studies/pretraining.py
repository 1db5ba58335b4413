"""Which self-supervised pre-training: the embeddings that each method learns from the pool, judged with few labels.

    OMP_NUM_THREADS=1 PYTHONPATH=. python studies/pretraining.py [--data FOLDER] [--seeds 1] [--study FILE.yaml]

The methods are the arms of `studies/pretraining.yaml`, and its data are used. A method sees the training cells without labels.
Its embeddings are then frozen and judged on the validation cells, so that the test cells have no part in the choice. A score is
the macro-F1 of logistic regression on 31, 62 and 154 cells drawn at random, which are the same for all methods. Another is that
of the 20 nearest neighbours among all training cells. `none` is the network with its random weights.

A row that was made already is not made again. Writes `runs.csv` and `README.md`.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flows.studies.data import Request, find_data, prepare
from flows.studies.results import CACHE, RUNS, Rows, publishing
from flows.workspace import find_workspace
from wbc_model.core.errors import WbcError
from wbc_model.network.predict import predict
from wbc_model.network.resnet import AttentionResNet18, begin_with
from wbc_model.params import Params
from wbc_model.studies.learner import Cells, StudyData, pretrained_on
from wbc_model.studies.study import HOME, Study, read_study, trained_on
from wbc_model.training.labelled import LabelledCells

DRAWS, NEIGHBOURS = 5, 20
KEY = ("method", "updates", "seed")


def embeddings(params: Params, start: dict[str, torch.Tensor] | None, cells: LabelledCells) -> NDArray[np.float32]:
    """Embeddings (N, 512) by the network that a training begins with."""
    torch.manual_seed(params.seed)
    network = AttentionResNet18(params.model.attention, params.model.lossnet, norm=params.model.norm)
    if start is not None:
        begin_with(network, start)
    seen: NDArray[np.float32] = predict(network, cells.batches(), embeddings=True).embedding
    return seen


def loaded(cells: Cells, params: Params) -> LabelledCells:
    """The cells of a pool as the network sees them."""
    return LabelledCells.load(cells.decoded(params), cells.frame["sha256"].tolist(), cells.frame["label"].tolist())


def judged(params: Params, data: StudyData, counts: list[int], cache: Path) -> dict[str, float]:
    """The scores of one method and seed, and the processor's seconds that its pre-training took."""
    begin = time.process_time()
    start = pretrained_on(params, data, cache)
    found: dict[str, float] = {"seconds": round(time.process_time() - begin)}
    pool, held_out = loaded(data.pool, params), loaded(data.validation, params)
    x, test = embeddings(params, start, pool), embeddings(params, start, held_out)

    def macro_f1(classifier: Any, rows: NDArray[np.int64]) -> float:
        guess = make_pipeline(StandardScaler(), classifier).fit(x[rows], pool.labels[rows]).predict(test)
        return float(f1_score(held_out.labels, guess, average="macro", zero_division=0))

    everything = np.arange(len(pool.labels))
    found["neighbours"] = round(macro_f1(KNeighborsClassifier(NEIGHBOURS, weights="distance"), everything), 4)
    for count in counts:
        draws = [np.random.default_rng(draw).permutation(everything)[:count] for draw in range(DRAWS)]
        scores = [macro_f1(LogisticRegression(C=0.1, max_iter=300, class_weight="balanced"), rows) for rows in draws]
        found |= {f"f1_{count}": round(float(np.mean(scores)), 4), f"sd_{count}": round(float(np.std(scores, ddof=1)), 4)}
    return found


def readme(runs: pd.DataFrame, counts: list[int], data: str) -> str:
    """README.md from the table."""
    head = ["method", "updates", "seed", *(f"{count} labels" for count in counts), f"{NEIGHBOURS} neighbours", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in runs.sort_values(["updates", "seed", f"f1_{counts[-1]}"]).to_dict("records"):
        scores = [f"{100 * row[f'f1_{count}']:.1f} ± {100 * row[f'sd_{count}']:.1f}" for count in counts]
        values = [row["method"], row["updates"], row["seed"], *scores]
        values += [f"{100 * row['neighbours']:.1f}", f"{row['seconds'] / 60:.1f}"]
        lines.append("| " + " | ".join(map(str, values)) + " |")
    text = ["# Self-supervised pre-training: which method", "", (__doc__ or "").split("\n\n")[2], ""]
    text += [f"Data: {data}. Macro-F1 in per cent, mean ± standard deviation over {DRAWS} draws of labels.", "", *lines, ""]
    return "\n".join(text)


def run(study: Study, request: Request, seeds: int, out: Path) -> None:
    """All methods and seeds; `runs.csv` and README.md grow with each row."""
    cache = (request.cache or find_workspace() / CACHE).resolve()
    rows, done = Rows.open("pretraining", out, KEY, ["README.md"], cache), []
    source, counts = find_data(HOME, study.file.data, request), [int(count) for count in study.file.budgets]
    for seed in range(seeds):
        data = prepare(study, {HOME: source}, cache, seed, print)
        for arm in study.arms:
            params = arm.params.model_copy(update={"seed": seed})
            method, updates = params.train.pretraining, params.train.pretraining_updates
            named = {"method": method, "updates": updates if method != "none" else 0, "seed": seed}
            depends_on = [trained_on(params), data.version, counts]
            found = rows.once(named, depends_on, lambda p=params, d=data: judged(p, d, counts, cache / "pretrained"))
            done.append({**named, **found})
            print(done[-1], flush=True)
            table = rows.table(done)
            with publishing(out) as folder:
                table.to_csv(folder / RUNS, index=False)
                (folder / "README.md").write_text(readme(table, counts, study.file.data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("studies/pretraining.yaml"))
    parser.add_argument("--data", type=Path, help="the folder of the study's data, or the data; default: $WBC_REAL_DATA")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("studies/pretraining"))
    parser.add_argument("--cache", type=Path, help="what was done already; default: .wbc/studies")
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    try:
        study = read_study(given.study, find_workspace() / "params.yaml")
        run(study, Request(given.study, data=given.data, cache=given.cache), given.seeds, given.out)
    except WbcError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
