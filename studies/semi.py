"""Few labels: what averaged weights, logit adjustment, strong augmentation and the unlabelled pool bring, over paired seeds.

    OMP_NUM_THREADS=1 python studies/semi.py DATA.csv [--out studies/semi] [--share 0.05] [--seeds 3] [--arms NAME ...]

One training a run on a random share of the training cells, all arms of a seed from the same labels and the same first weights;
the rest of the training cells is the unlabelled pool. Scored on the test cells. A run that is in `runs.csv` already is not
repeated. Writes `runs.csv` and `README.md`. One thread, so that `seconds` (of processor time, training alone) compares.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from wbc_model.cells.manifest import read_manifest
from wbc_model.core.classes import CLASSES
from wbc_model.core.images import preprocess
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.metrics import classification_metrics
from wbc_model.network.predict import predict
from wbc_model.params import Params, read_params
from wbc_model.training.pseudo_labels import UnlabelledCells
from wbc_model.training.train import LabelledCells, Training

OFF = {
    "train.augmentation": "mild",
    "train.ema": 0.0,
    "train.logit_adjustment": 0.0,
    "train.strong_share": 0.0,
    "train.unlabelled_ratio": 0.0,
}
SUPERVISED = {**OFF, "train.ema": 0.99, "train.logit_adjustment": 1.0, "train.strong_share": 0.5}
SEMI = {"train.unlabelled_ratio": 1.0, "train.unlabelled_start_share": 0.4, "train.pseudo_label_threshold": 0.9}
ARMS: dict[str, dict[str, Any]] = {
    "before": OFF,
    "averaged": {**OFF, "train.ema": 0.99},
    "adjusted": {**OFF, "train.ema": 0.99, "train.logit_adjustment": 1.0},
    "supervised": SUPERVISED,
    "supervised, twice as long": {**SUPERVISED, "size.updates": 1000},
    "semi": {**SUPERVISED, **SEMI},
    "semi, half as long again": {**SUPERVISED, **SEMI, "size.updates": 750},
    "semi without adjustment": {**SUPERVISED, **SEMI, "train.logit_adjustment": 0.0},
}
DEFAULT = ["before", "supervised", "supervised, twice as long", "semi, half as long again"]


def changed(params: Params, changes: dict[str, Any]) -> Params:
    """Parameters with some numbers changed, by dotted names; `size` is the chosen preset."""
    document = params.model_dump()
    for key, value in changes.items():
        section, name = key.split(".")
        (document["presets"][params.preset] if section == "size" else document[section])[name] = value
    return Params.model_validate(document)


def load(data: Path, params: Params) -> dict[str, LabelledCells]:
    """The manifest's splits as the network sees them."""
    table = read_manifest(data)
    views = [
        preprocess(Path(file).read_bytes(), params.size.image_size, params.model.view)
        for file in tqdm(table["file"], desc="decode", disable=None)
    ]
    images, labels = np.stack(views), np.array([CLASSES.index(label) for label in table["label"]])
    splits = {}
    for split in ("train", "val", "test"):
        rows = np.flatnonzero(table["split"] == split)
        splits[split] = LabelledCells(images[rows], labels[rows], tuple(table["path"].iloc[rows]))
    return splits


def subset(cells: LabelledCells, rows: np.ndarray) -> LabelledCells:
    return LabelledCells(cells.images[rows], cells.labels[rows], tuple(cells.sha256s[i] for i in rows))


def run(splits: dict[str, LabelledCells], params: Params, share: float) -> dict[str, Any]:
    """One training and its numbers on the test cells."""
    cells = splits["train"]
    order = np.random.default_rng(params.seed).permutation(len(cells.labels))
    count = round(share * len(order))
    labelled, rest = subset(cells, order[:count]), subset(cells, order[count:])
    row = {name: i for i, name in enumerate(rest.sha256s)}
    pool = UnlabelledCells(rest.sha256s, lambda wanted: rest.images[[row[name] for name in wanted]])
    with tempfile.TemporaryDirectory() as folder:
        training = Training(params, labelled, splits["val"], Path(folder) / "checkpoint", pool)
        start = time.process_time()
        network = training.fit()
        seconds = time.process_time() - start
    test = splits["test"]
    metrics = classification_metrics(softmax(predict(network, test.batches()).logits), test.labels, resamples=0)
    recalls = {f"recall_{name}": round(one["recall"], 4) for name, one in metrics["per_class"].items()}
    pseudo = training.pseudo.weights > 0
    right = float((training.pseudo.labels.numpy() == rest.labels)[pseudo.numpy()].mean()) if pseudo.any() else None
    return {
        "labels": count,
        "basophils": int((labelled.labels == CLASSES.index("Basophil")).sum()),
        **{name: round(metrics[name], 4) for name in ("accuracy", "macro_f1", "balanced_accuracy")},
        **recalls,
        "updates": training.progress.update,
        "best_update": training.progress.best_update,
        "pseudo_labels": int(pseudo.sum()),
        "pseudo_labels_right": right if right is None else round(right, 4),
        "seconds": round(seconds),
    }


def report(out: Path, data: Path, share: float) -> None:
    """README.md from runs.csv: means over seeds, and paired differences to the arm `supervised`."""
    runs = pd.read_csv(out / "runs.csv")
    lines = [
        "| arm | seeds | macro-F1 | least, most | balanced accuracy | basophil recall | minus `supervised`, paired | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = runs[runs["arm"] == "supervised"].set_index("seed")["macro_f1"]
    for arm in [name for name in ARMS if name in set(runs["arm"])]:
        rows = runs[runs["arm"] == arm].set_index("seed")
        f1 = 100 * rows["macro_f1"]
        difference = (f1 - 100 * base).dropna()
        spread = f" ± {difference.std(ddof=1):.2f}" if len(difference) > 1 else ""
        paired = "" if arm == "supervised" or difference.empty else f"{difference.mean():+.2f}{spread} (n = {len(difference)})"
        around = f" ± {f1.std(ddof=1):.2f}" if len(f1) > 1 else ""
        numbers = [f"{f1.mean():.2f}{around}", f"{f1.min():.2f}, {f1.max():.2f}", f"{100 * rows['balanced_accuracy'].mean():.2f}"]
        numbers += [f"{100 * rows['recall_Basophil'].mean():.1f}", paired, f"{rows['seconds'].mean():.0f}"]
        lines.append(f"| {arm} | {', '.join(map(str, rows.index))} | " + " | ".join(numbers) + " |")
    preset = runs["preset"].iloc[0]
    head = f"# `{data.name}` with {share:.0%} of the labels ({runs['labels'].iloc[0]}), preset {preset}\n\n"
    head += (
        f"`python studies/semi.py {data.name}`: mean ± standard deviation over seeds, in per cent, on the test cells; every run\n"
        "is in `runs.csv`. The arms of a seed share labels and first weights. Seconds: one thread's processor time, training\n"
        "with its looks at the validation pool.\n\n"
    )
    notes = out / "NOTES.md"
    tail = "\n" + notes.read_text() if notes.exists() else ""
    (out / "README.md").write_text(head + "\n".join(lines) + "\n" + tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("studies/semi"))
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", default=DEFAULT, choices=list(ARMS))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out / "runs.csv"
    base = read_params(arguments.params)
    splits = load(arguments.data.resolve(), base)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for arm in arguments.arms:
            done = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["arm", "seed"])
            if ((done["arm"] == arm) & (done["seed"] == seed)).any():
                continue
            params = changed(base, ARMS[arm]).model_copy(update={"seed": seed})
            row = {"arm": arm, "seed": seed, "preset": params.preset, **run(splits, params, arguments.share)}
            print(json.dumps(row), flush=True)
            line = pd.DataFrame([row])
            line.to_csv(table, mode="a", header=not table.exists(), index=False)
            report(arguments.out, arguments.data, arguments.share)


if __name__ == "__main__":
    main()
