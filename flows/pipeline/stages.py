"""The bodies of the pipeline's stages: files of a workspace in, files of a workspace out. `dvc.yaml` calls them by `wbc`."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from flows.progress import TrainingLines, noted
from flows.site import site_of
from flows.workspace import after_cycle, nameless, workspace_or_none
from wbc_model.cells.decoded import DecodedCells
from wbc_model.cells.manifest import Source, source_of
from wbc_model.cells.pools import Pools
from wbc_model.cells.rejections import quarantined
from wbc_model.cells.store import ImageStore
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic
from wbc_model.core.images import View
from wbc_model.core.model_card import ModelCard, PoolName, read_card
from wbc_model.evaluation.leakage import digests, leakage
from wbc_model.params import Params, check_paths, read_params


def usable_pools(workspace: Path) -> Pools:
    """The pools without what is in quarantine, was drawn for the test pool, or is none of the five classes."""
    return usable(Pools.read(workspace / "data/pools"), workspace)


def usable(pools: Pools, workspace: Path) -> Pools:
    """These pools without what is in quarantine, was drawn for the test pool, or is none of the five classes. Nothing may be
    learned from that, and it is not asked about."""
    return pools.without(quarantined(workspace / "data") | pools.out_of_use())


def decoded_cells(workspace: Path, size: int, view: View) -> DecodedCells:
    """The workspace's cells as the network sees them."""
    return DecodedCells(ImageStore(workspace / "data/images"), workspace / ".wbc/decoded", size, view)


def _newest_label(pools: Pools) -> str:
    """When the newest label was given that a model is made from, as ISO 8601 in UTC; empty where no label has a time."""
    given = pd.concat([pools.frames[name]["labelled_at"] for name in ("labelled", "validation")])
    newest = pd.to_datetime(given, utc=True, format="ISO8601", errors="coerce").max()
    return "" if pd.isna(newest) else newest.isoformat()


def train(workspace: Path) -> dict[str, Any]:
    """Train on the labelled pool, calibrate on the validation pool: `models/candidate`, `models/history.csv`."""
    from wbc_model.evaluation.reference import measured_reference
    from wbc_model.network.model_directory import save_model
    from wbc_model.training.labelled import LabelledCells, check_trainable
    from wbc_model.training.pretrain import pretrained
    from wbc_model.training.pseudo_labels import UnlabelledCells
    from wbc_model.training.train import Training
    from wbc_model.training.validation import calibrated_card

    params, whole = read_params(workspace / "params.yaml"), Pools.read(workspace / "data/pools")
    check_paths(params, workspace, fills_pools=False)
    pools = usable(whole, workspace)
    decoded = decoded_cells(workspace, params.size.image_size, params.model.view)
    sets = {name: pools.frames[name] for name in ("labelled", "validation")}
    labelled, validation = (LabelledCells.load(decoded, f["sha256"].tolist(), f["label"].tolist()) for f in sets.values())
    check_trainable(labelled, validation)
    params = params.for_labels(len(labelled.labels))
    checkpoint = workspace / ".wbc/checkpoint.safetensors"
    unlabelled = UnlabelledCells(tuple(pools.frames["unlabelled"]["sha256"]), decoded.read)
    if params.train.unlabelled_ratio:
        decoded.prepare(unlabelled.sha256s)
    pool = UnlabelledCells(labelled.sha256s + unlabelled.sha256s, decoded.read)
    start = pretrained(params, pool, workspace / ".wbc/pretrained")
    training = Training.of_pools(params, labelled, validation, checkpoint, unlabelled, start)
    said = TrainingLines(params.size.updates)
    if not training.fabric.is_global_zero:
        training.fit()
        return {}
    network = training.fit(noted(workspace, said.validated), said.updated)
    shown = decoded.appearance(validation.sha256s)
    card = calibrated_card(network, validation, params, shown)
    card = _provenance(card, pools, whole.version())
    reference = measured_reference(network, card, validation.images, shown)
    card = save_model(workspace / "models/candidate", network, card, reference)
    history = pd.DataFrame(training.progress.history)
    write_atomic(workspace / "models/history.csv", history.drop(columns="images_per_second").to_csv(index=False))
    checkpoint.unlink(missing_ok=True)
    return {
        "model": "models/candidate",
        "version": card.version,
        "uncalibrated": card.uncalibrated,
        "labels": len(labelled.labels),
        "updates": training.progress.update,
        "best_update": training.progress.best_update,
        "validation": card.metrics["validation"],
        "images_per_second": float(history["images_per_second"].median()),
    }


def _provenance(card: ModelCard, pools: Pools, version: str) -> ModelCard:
    """The card with what the model is made from; `version` names the pools as data/versions.csv does, quarantine and all.

    All of it is read from the pools: a clone in which the training is repeated writes the same card (decision 044).
    """
    sources = sorted(set(pools.frames["labelled"]["source"]))
    return card.model_copy(
        update={
            "pool_version": version,
            "data_source": ", ".join(sources),
            "rendered": any("rendered" in source for source in sources),
            "created_at": _newest_label(pools),
            "cells": seen_cells(pools, ("labelled", "validation")),
        }
    )


def seen_cells(pools: Pools, names: Iterable[PoolName]) -> dict[PoolName, CellFilter]:
    """The cells of some pools with their labels, as a model's card keeps them."""
    return {name: CellFilter.of(*(pools.frames[name][column].tolist() for column in ("sha256", "label"))) for name in names}


def _model(workspace: Path) -> Path:
    """The candidate's directory; in a site that has trained none the champion's, which was adapted to it."""
    candidate, champion = workspace / "models/candidate", workspace / "models/champion"
    return champion if not candidate.exists() and champion.exists() and site_of(workspace) is not None else candidate


def evaluate(workspace: Path) -> dict[str, Any]:
    """Evaluate the candidate on the test pool: `metrics.json`, `plots/`, `models/predictions.csv`."""
    from wbc_model.evaluation.evaluate import frame_metrics, plot_frame, predict_directory
    from wbc_model.evaluation.none_of_five import flagged_cells
    from wbc_model.evaluation.plots import NOT_REAL, plot_history

    candidate = _model(workspace)
    if not candidate.is_dir():
        raise WbcError("there is no model in models/candidate to evaluate: `wbc train` makes one, `dvc pull` brings one back")
    card = read_card(candidate)
    whole = Pools.read(workspace / "data/pools")
    test = usable(whole, workspace).frames["test"]
    if test.empty:
        raise WbcError("the test pool is empty: `wbc labels test --draw N` draws cells for it, blind, from the unlabelled pool")
    decoded = decoded_cells(workspace, card.input_size, card.view)
    frame = predict_directory(candidate, decoded, test)
    metrics = frame_metrics(frame)
    others = whole.without(quarantined(workspace / "data")).none_of_five()
    if len(others):  # what the out-of-distribution score is for
        metrics["out_of_distribution"] = flagged_cells(candidate, decoded, others, test)
    note = f" ({NOT_REAL})" if card.rendered else ""
    plot_frame(frame, metrics, workspace / "plots", f"Test pool, model {card.version}{note}")
    if (history := workspace / "models/history.csv").exists():  # a model that was adapted has none here
        plot_history(pd.read_csv(history), workspace / "plots/history.png", f"Training of model {card.version}{note}")
    write_atomic(workspace / "models/predictions.csv", frame.to_csv(index=False, float_format="%.6f"))
    write_atomic(workspace / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return {**metrics, "wrote": ["metrics.json", "plots/", "models/predictions.csv"]}


def query(workspace: Path, count: int | None = None) -> dict[str, Any]:
    """Queue the cells most worth a label: `data/queue.csv`. Before there is any model their colours decide. A cell that people
    could not name is not asked about again."""
    from wbc_model.acquisition.query import Question
    from wbc_model.acquisition.query import query as query_pool
    from wbc_model.acquisition.queue import first_query

    params, pools = read_params(workspace / "params.yaml"), usable_pools(workspace)
    count = query_size(params, pools, after_cycle(workspace)) if count is None else count
    asked_of = pools.frames["unlabelled"]
    asked_of = asked_of[~asked_of["sha256"].isin(nameless(workspace))]
    candidate = _model(workspace)
    if not candidate.exists():
        decoded = decoded_cells(workspace, params.size.image_size, params.model.view)
        queue = first_query(decoded, asked_of, count, params.seed)
        return _write_queue(workspace, queue, pools, "colour_cover")
    card = read_card(candidate)
    decoded = decoded_cells(workspace, card.input_size, card.view)
    autocast, asked = params.size.precision == "bf16-mixed", params.acquisition
    how = Question(asked.strategy, count, params.seed, autocast, asked.candidates)
    queue = query_pool(candidate, decoded, asked_of, how, pools.frames["labelled"])
    return _write_queue(workspace, queue, pools, asked.strategy)


def _write_queue(workspace: Path, queue: pd.DataFrame, pools: Pools, strategy: str) -> dict[str, Any]:
    from flows.labels import write_queue

    write_queue(workspace, queue)
    return {"wrote": "data/queue.csv", "cells": len(queue), "pool": len(pools.frames["unlabelled"]), "strategy": strategy}


def label_target(params: Params, pools: Pools, after_cycle: int) -> int:
    """How many labelled cells are wanted: by `retrain.ask` so many more than there were before this retraining; else what
    `retrain.until` says, a share of the training cells up to 1, a count above."""
    labelled, until = pools.frames["labelled"], params.retrain.until
    total = len(labelled) + len(pools.frames["unlabelled"])
    if params.retrain.ask is not None:
        return min(total, int((labelled["cycle"] <= after_cycle).sum()) + params.retrain.ask)
    return min(total, round(until * total) if until <= 1 else round(until))


def query_size(params: Params, pools: Pools, after_cycle: int) -> int:
    """Cells a query asks for: what is missing to the target, spread evenly over the rounds that are left (`retrain.ask` is asked
    at once).

    The round is read off the pool: labels of cycle k were given in the k-th round after `after_cycle`.
    """
    labelled = pools.frames["labelled"]
    missing = label_target(params, pools, after_cycle) - len(labelled)
    done = int(labelled["cycle"].max()) if len(labelled) else 0
    rounds_left = max(1, params.retrain.cycles - (done - after_cycle)) if params.retrain.ask is None else 1
    return max(0, -(-missing // rounds_left))


def why_nothing_is_asked(workspace: Path) -> str:
    """The line for an empty queue, with the way to ask for more."""
    params, frames = read_params(workspace / "params.yaml"), usable_pools(workspace).frames
    have, waiting = len(frames["labelled"]), len(frames["unlabelled"])
    if not waiting:
        return f"nothing is asked: all {have} training cells are labelled; `wbc ingest` takes more in"
    if set(frames["unlabelled"]["sha256"]) <= nameless(workspace):
        return f"nothing is asked: nobody could name the {waiting} cells that are left; Disputes on the page /label lists them"
    return (
        f"nothing is asked: {have} of {have + waiting} training cells are labelled, and retrain.until is {params.retrain.until}; "
        "`wbc retrain --ask N` asks for N more"
    )


def evaluate_model(model: Path, data: Path | Source, plots: Path | None, own_statistics: bool = False) -> dict[str, Any]:
    """Any model directory on any labelled data; `own_statistics` as in `evaluate_data`."""
    from flows.exchange.handed_out import hand_out_folder
    from flows.workspace import label_names
    from wbc_model.evaluation.evaluate import evaluate_data, plot_frame

    origin = source_of(data)
    metrics, frame = evaluate_data(model, origin, own_statistics, label_names())
    card = read_card(model)
    if plots is not None:
        with tempfile.TemporaryDirectory(prefix="wbc-plots-") as built:
            learned = ", which learned from rendered cells" if card.rendered else ""
            plot_frame(frame, metrics, Path(built), f"{origin.name}, model {card.version}{learned}")
            hand_out_folder(Path(built), plots, workspace_or_none())
    statistics = "data" if own_statistics else "model"
    seen = seen_before(card, digests(frame, origin)["sha256"].tolist())
    return {"model": str(model), "data": origin.shown, "statistics": statistics, **metrics, "seen_before": seen}


def seen_before(card: ModelCard, sha256s: list[str]) -> dict[str, Any]:
    """Whether the model was made from some of these cells, with the `warnings` in words. Its card tells; for one that does not
    say, the pools of the workspace that we stand in."""
    found = leakage(sha256s, card.cells, {} if card.cells else _pools_of(card))
    return {**found.to_dict(), "warnings": list(found.lines())}


def _pools_of(card: ModelCard) -> dict[PoolName, CellFilter]:
    """The pools of the workspace that we stand in, where a version of them made the model; else none."""
    workspace = workspace_or_none()
    if workspace is None:
        return {}
    versions = workspace / "data/versions.csv"
    known = pd.read_csv(versions, dtype=str)["version"].tolist() if versions.exists() else []
    if not card.pool_version or card.pool_version not in known:
        return {}
    return seen_cells(Pools.read(workspace / "data/pools"), ("labelled", "validation"))
