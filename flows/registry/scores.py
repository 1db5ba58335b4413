"""Scores and a calibration that rest on labels which a person has corrected since: marked as out of date, and made again.

The champion's card keeps the validation and test cells that its numbers are from, with the labels that they had then. The
candidate's numbers are made again by the pipeline, whose stages depend on the pools.
"""

import hashlib
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from flows.pipeline.stages import decoded_cells, seen_cells, usable_pools
from flows.registry.champion import FOLDER
from flows.registry.curve import mark_curve
from flows.tracking import BEFORE, CHAMPION, open_tracker, registry_exists
from wbc_model.cells.pools import Pools
from wbc_model.core.errors import counted
from wbc_model.core.files import building
from wbc_model.core.model_card import CARD, ModelCard, PoolName, read_card
from wbc_model.network.card_page import write_card
from wbc_model.params import Params, read_params

if TYPE_CHECKING:
    from flows.tracking import Tracker

MARK: Final = "out_of_date"  # in `metrics.validation` and `metrics.test` of a card: how many of its labels were corrected
RUN_MARK: Final = "wbc.out_of_date"  # a tag of a cycle's run in MLflow: how many of its test labels were corrected
_HELD_OUT: Final[tuple[PoolName, ...]] = ("validation", "test")


def corrected(workspace: Path, card: ModelCard) -> dict[PoolName, int]:
    """How many labels of each held-out pool differ by now from those that a card's numbers rest on; no pool without any."""
    pools = Pools.read(workspace / "data/pools")
    counts: dict[PoolName, int] = {}
    for name in _HELD_OUT:
        if name in card.cells:
            now = pools.named(name)
            counts[name] = int(card.cells[name].relabelled(now["sha256"].tolist(), now["label"].tolist()).sum())
    return {name: count for name, count in counts.items() if count}


def mark(workspace: Path) -> list[str]:
    """Mark the champion's numbers that rest on corrected labels, in its card; returns lines that say which are out of date."""
    folder = workspace / FOLDER
    lines = _candidate(workspace)
    if not (folder / CARD).exists():
        return lines
    card = read_card(folder, verify=False)
    found = corrected(workspace, card)
    metrics = {name: _marked(name, values, found) for name, values in card.metrics.items()}
    if metrics != card.metrics:
        write_card(folder, card.model_copy(update={"metrics": metrics}))
    if found.get("validation"):
        what = "temperature, prediction sets and validation scores"
        again = "calibrate it again" if card.calibrated_on else "`wbc champion --rescore` or the next retraining makes them again"
        labels = counted(found["validation"], "label that was", "labels that were")
        lines.append(f"the champion's {what} rest on {labels} corrected since: {again}")
    if found.get("test"):
        again = "`wbc champion --rescore` or the next retraining makes them again"
        labels = counted(found["test"], "label that was", "labels that were")
        lines.append(f"the champion's test scores rest on {labels} corrected since: {again}")
    return lines


def _marked(name: str, values: Any, found: dict[PoolName, int]) -> Any:
    if name not in _HELD_OUT or not isinstance(values, dict):
        return values
    rest = {key: value for key, value in values.items() if key != MARK}
    count = {str(pool): number for pool, number in found.items()}.get(name, 0)
    return rest | ({MARK: count} if count else {})


def _candidate(workspace: Path) -> list[str]:
    path = workspace / "models/predictions.csv"
    if not path.exists():
        return []
    then = pd.read_csv(path, usecols=["sha256", "label"], dtype=str).set_index("sha256")["label"]
    now = Pools.read(workspace / "data/pools").named("test").set_index("sha256")["label"]
    both = then.index.intersection(now.index)
    count = int((then[both] != now[both]).sum())
    if not count:
        return []
    again = "`dvc repro evaluate` or the next retraining makes it again"
    return [f"metrics.json rests on {counted(count, 'label that was', 'labels that were')} corrected since: {again}"]


def mark_history(workspace: Path) -> list[str]:
    """Mark earlier scores that rest on corrected labels and are not made again: the learning curve's, and MLflow's runs."""
    lines, params = mark_curve(workspace), read_params(workspace / "params.yaml")
    if registry_exists(workspace, params):
        count = mark_runs(workspace, open_tracker(workspace, params))
        if count:
            have = counted(count, "run in MLflow has", "runs in MLflow have")
            lines.append(f"{have} scores on labels that were corrected since: the tag {RUN_MARK} counts these labels")
    return lines


def mark_runs(workspace: Path, tracker: "Tracker") -> int:
    """Tag the run of each cycle, by the test labels that it was scored on, with how many of them were corrected since; returns
    how many runs have such."""
    test = Pools.read(workspace / "data/pools").named("test")
    count = 0
    for run, then in tracker.scored_cells():
        both = then.merge(test, on="sha256", suffixes=("_then", ""))
        others = int((both["label_then"] != both["label"]).sum())
        tracker.mark_run(run, RUN_MARK, others)
        count += others > 0
    return count


def renew(workspace: Path, tracker: "Tracker", params: Params) -> list[str]:
    """Make the champion's numbers again where they rest on corrected labels; returns what was done.

    Another temperature gives other answers: then it is another version, with the same weights, and champion in the place of the
    one that it was made from.
    """
    folder = workspace / FOLDER
    if not (folder / CARD).exists():
        return []
    old = read_card(folder)
    found = corrected(workspace, old)
    if old.calibrated_on:  # on a site's cells, which the pools do not hold
        found.pop("validation", None)
    if not found:
        return []
    mark_runs(workspace, tracker)
    present = tracker.alias(CHAMPION)
    with building(folder) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        card = _recalibrated(workspace, temporary, old) if "validation" in found else old
        write_card(temporary, card)
        write_card(temporary, _scored(workspace, temporary, card))
    if present is not None and card.version != old.version:
        run = tracker.retraining(f"scores-{datetime.now(UTC):%Y%m%d-%H%M%S}", params)
        version = tracker.register(run, folder)
        tags = tracker.version_tags(present)
        before = {BEFORE: tags[BEFORE]} if BEFORE in tags else {}
        reason = f"version {present} with numbers made again after labels were corrected"
        tracker.tag_version(version, {"wbc.gate": "promoted", "wbc.gate.reason": reason, **before})
        tracker.set_alias(CHAMPION, version)
        tracker.client.set_terminated(run)
    counts = ", ".join(f"{count} of {name}" for name, count in found.items())
    return [f"the champion's numbers were made again, as labels were corrected ({counts}): version {card.version}"]


def _recalibrated(workspace: Path, directory: Path, card: ModelCard) -> ModelCard:
    """The card with temperature, prediction sets, out-of-distribution scores and metrics of the validation pool as it is now."""
    from wbc_model.core.probabilities import softmax
    from wbc_model.evaluation.calibrate import calibrated_temperature, conformal_threshold, fit_out_of_distribution
    from wbc_model.evaluation.metrics import classification_metrics
    from wbc_model.network.model_directory import load_model
    from wbc_model.network.predict import predict
    from wbc_model.training.labelled import LabelledCells

    pools = usable_pools(workspace)
    decoded = decoded_cells(workspace, card.input_size, card.view)
    frame = pools.frames["validation"]
    cells = LabelledCells.load(decoded, frame["sha256"].tolist(), frame["label"].tolist())
    seen = predict(load_model(directory)[0], cells.batches())
    temperature, why_not = calibrated_temperature(seen.logits, cells.labels)
    probabilities = softmax(seen.logits, temperature)
    new = card.model_copy(
        update={
            "temperature": temperature,
            "uncalibrated": why_not,
            "conformal_threshold": conformal_threshold(probabilities, cells.labels, card.conformal_coverage),
            "out_of_distribution": fit_out_of_distribution(seen, cells.labels, decoded.appearance(cells.sha256s)),
            "metrics": {**card.metrics, "validation": classification_metrics(probabilities, cells.labels)},
            "cells": {**card.cells, **seen_cells(pools, ("validation",))},
        }
    )
    fitted = new.model_dump_json(include={"temperature", "conformal_threshold", "out_of_distribution"}, by_alias=True)
    suffix = hashlib.sha256(fitted.encode()).hexdigest()[:6]
    return new.model_copy(update={"version": f"{card.version.split('+')[0]}+{suffix}"})


def _scored(workspace: Path, directory: Path, card: ModelCard) -> ModelCard:
    """The card with the scores of the test pool as it is now."""
    from wbc_model.evaluation.evaluate import frame_metrics, predict_directory

    pools = usable_pools(workspace)
    frame = predict_directory(directory, decoded_cells(workspace, card.input_size, card.view), pools.frames["test"])
    cells = {**card.cells, **seen_cells(pools, ("test",))}
    return card.model_copy(update={"metrics": {**card.metrics, "test": frame_metrics(frame)}, "cells": cells})
