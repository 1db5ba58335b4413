"""The engine of a study: arms over paired seeds and growing budgets, each training done once and recorded durably.

All arms of a seed have the same splits and the same first labels. They go up the budgets in step: train, evaluate, ask for
the next labels. A training and a query are named by a hash of all that they depend on: parameters, code, cells, labels, seed.
What is recorded under its name is never done again, not even after a kill. It serves a different arm that comes to the same
labels with the same training, and a different study with the same cache.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel
from torch import Tensor

from wbc_model.core.files import file_sha256
from wbc_model.core.lock import locked
from wbc_model.core.model_card import CARD, WEIGHTS
from wbc_model.params import Params
from wbc_model.studies.learner import StudyData, ask, digest, evaluate, fit, random_labels, untrained
from wbc_model.studies.records import Provenance, Records, save_weights
from wbc_model.studies.study import HOME, WARM, Arm, Study, trained_on, value_of

Record = Mapping[str, Any]
RANDOM: Final = "random"


@dataclass(frozen=True)
class _Trained:
    """A training that a warm one begins with: its name, its labels, and the training that it began with itself."""

    key: str
    labelled: tuple[str, ...]
    before: "_Trained | None"

    def path(self) -> list[str]:
        """The names of this training and of all that led to it."""
        return [self.key, *(self.before.path() if self.before else [])]


@dataclass
class _State:
    """An arm on its way through one seed. `params` carry the seed. `before` is what its next training begins with, if warm."""

    arm: Arm
    params: Params
    labelled: list[str]
    before: _Trained | None = None


@dataclass
class Runner:
    """Runs a study seed by seed. `cache` holds records, checkpoints and models that a query still waits for. After each cell of
    the grid `say` gets a line and `on_rows` the rows so far."""

    study: Study
    provenance: Provenance
    cache: Path
    say: Callable[[str], None] = lambda line: None
    on_rows: Callable[[list[dict[str, Any]]], None] = lambda rows: None
    rows: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    trained: int = 0
    reused: int = 0

    def __post_init__(self) -> None:
        self.records = Records(self.cache / "records.jsonl")

    def run_seed(self, seed: int, data: StudyData) -> list[dict[str, Any]]:
        """All arms over all budgets of one seed; returns its rows. What is recorded is not done again."""
        counts = self.study.counts(len(data.pool.frame))
        before = len(self.rows)
        with locked(self.cache / "locks" / f"{data.version}-{seed}"):
            states = [self._begin(arm, data, seed, counts[0]) for arm in self.study.arms]
            for step, count in enumerate(counts):
                more = counts[step + 1] - count if step + 1 < len(counts) else 0
                begun_with = [key for state in states if state.before for key in state.before.path()]
                groups: dict[str, list[_State]] = {}
                for state in states:
                    key = self.training_key(state.params, data, state.labelled, state.before)
                    groups.setdefault(key, []).append(state)
                for key, group in groups.items():
                    self._budget(key, group, data, step, more)
                for key in begun_with:
                    shutil.rmtree(self._model(key), ignore_errors=True)
        return self.rows[before:]

    def _begin(self, arm: Arm, data: StudyData, seed: int, count: int) -> _State:
        """An arm with its first labels: random ones, or what its strategy asks about with the network as it begins."""
        params = arm.params.model_copy(update={"seed": seed})
        if arm.initial == RANDOM:
            return _State(arm, params, random_labels(data, seed, count))
        start = self.training_key(params, data, [])
        key = digest(["first query", self.provenance.query, start, params.acquisition.model_dump(), arm.initial, count])
        record = self.records.get(key)
        if record is None:
            with tempfile.TemporaryDirectory() as folder:
                save_weights(Path(folder) / "model", *untrained(params, data, self.cache / "pretrained"))
                asked = ask(params, data, [], Path(folder) / "model", arm.initial, count)
            record = self.records.add(key, {"kind": "first query", "sha256s": asked})
        return _State(arm, params, list(record["sha256s"]))

    def _model(self, key: str) -> Path:
        """Where the model of a training is kept while a query or a warm training waits for it."""
        return self.cache / "models" / key

    def training_key(self, params: Params, data: StudyData, labelled: Sequence[str], before: _Trained | None = None) -> str:
        """The name of a training: a hash of all that its numbers depend on, the training `before` it where it is warm."""
        weights = params.model.init_weights
        file = file_sha256(Path(weights)) if weights and Path(weights).is_file() else ""
        parts = ["training", self.provenance.train, trained_on(params), file, params.seed, data.version, sorted(labelled)]
        return digest([*parts, before.key] if before else parts)

    def query_key(self, training: str, params: Params, count: int) -> str:
        """The name of a query: the model that asks, how, and for how many cells."""
        return digest(["query", self.provenance.query, training, params.acquisition.model_dump(), params.seed, count])

    def _budget(self, key: str, group: list[_State], data: StudyData, step: int, more: int) -> None:
        """One training for the arms that share it, and the query of each."""
        known, model, first = self.records.get(key), self._model(key), group[0]
        queries = {self.query_key(key, state.params, more): state for state in group} if more else {}
        waiting = [name for name in queries if self.records.get(name) is None]
        goes_on = bool(more) and any(state.arm.start == WARM for state in group)
        trained = _Trained(key, tuple(first.labelled), first.before)
        if known is None or (waiting and not (model / CARD).exists()):
            record = self._train(trained, first.params, data, keep=bool(waiting) or goes_on)
        else:
            record = known
        self.reused += known is not None
        for name in waiting:
            state, start = queries[name], time.perf_counter()
            asked = ask(state.params, data, sorted(state.labelled), model, state.params.acquisition.strategy, more)
            seconds = round(time.perf_counter() - start, 3)
            self.records.add(name, {"kind": "query", "sha256s": asked, "seconds": seconds})
        if not goes_on:
            shutil.rmtree(model, ignore_errors=True)
        for state in group:
            asked_of = self.records.get(self.query_key(key, state.params, more)) if more else None
            self._note(state, record, data, step, asked_of, recorded=known is not None)
            if asked_of is not None:
                state.labelled = [*state.labelled, *asked_of["sha256s"]]
            state.before = trained if state.arm.start == WARM else None

    def _weights(self, trained: _Trained, params: Params, data: StudyData) -> dict[str, Tensor]:
        """The weights of an earlier training, which is done once more where its model is no longer there."""
        from safetensors.torch import load_file

        if not (self._model(trained.key) / CARD).exists():
            self._train(trained, params, data, keep=True)
        return load_file(self._model(trained.key) / WEIGHTS)

    def _train(self, what: _Trained, params: Params, data: StudyData, keep: bool) -> dict[str, Any]:
        """Train, evaluate, keep the model where something waits for it, record."""
        key, checkpoint = what.key, self.cache / "checkpoints" / f"{what.key}.safetensors"
        weights = self._weights(what.before, params, data) if what.before else None
        start = time.perf_counter()
        network, card, history = fit(params, data, sorted(what.labelled), checkpoint, self.cache / "pretrained", weights)
        seconds = round(time.perf_counter() - start, 3)
        device = next(network.parameters()).device
        tests = {name: evaluate(network, card, params, cells) for name, cells in data.tests.items()}
        if keep:
            save_weights(self._model(key), network, card)
        content = {
            "kind": "training",
            "tests": tests,
            "updates": int(history[-1]["update"]),
            "seconds": seconds,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}",
            "facts": dict(self.provenance.facts),
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "history": [{name: _json_number(value) for name, value in row.items()} for row in history],
        }
        record = self.records.add(key, content)
        checkpoint.unlink(missing_ok=True)
        self.trained += 1
        return record

    def _note(
        self,
        state: _State,
        record: Mapping[str, Any],
        data: StudyData,
        step: int,
        asked: Mapping[str, Any] | None,
        recorded: bool,
    ) -> None:
        """Add the rows of one cell of the grid, one per evaluation set."""
        grid_cell = {
            "study": self.study.file.name,
            "arm": state.arm.name,
            "seed": state.params.seed,
            "budget": self.study.file.budgets[step],
            "labels": len(state.labelled),
        }
        steps = [row for row in record["history"] if row.get("validation_loss") is not None]
        best: Record = min(steps, key=lambda row: row["validation_loss"], default={})
        about = {
            **{f"validation_{name}": best.get(f"validation_{name}") for name in ("loss", "macro_f1")},
            **{key: _cell(value_of(state.params, key)) for key in self.study.varied},
            "initial": state.arm.initial,
            "start": state.arm.start,
            "preset": state.params.preset,
            "updates": record["updates"],
            "best_update": best.get("update"),
            "train_seconds": record["seconds"],
            "query_seconds": asked["seconds"] if asked else None,
            "device": record["device"],
            **record["facts"],
            "data_version": data.version,
            "training": record["key"],
        }
        for name, scores in record["tests"].items():
            recalls = {f"recall_{label}": value for label, value in scores["recall"].items()}
            plain = {key: value for key, value in scores.items() if key != "recall"}
            self.rows.append({**grid_cell, "test": name, **plain, **recalls, **about})
        self.history += [{**grid_cell, **row} for row in record["history"]]
        self.on_rows(self.rows)
        home = record["tests"][HOME]
        how = "recorded" if recorded else f"{record['seconds']:.1f} s"
        self.say(
            f"seed {state.params.seed:>2}   {len(state.labelled):>6} labels   accuracy {home['accuracy']:7.2%}   "
            f"macro-F1 {home['macro_f1']:7.2%}   {how:>9}   {state.arm.name}"
        )


def _json_number(value: Any) -> Any:
    """JSON has no NaN; null is read back as missing."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _cell(value: Any) -> Any:
    """A parameter's value as it stands in a table: lists, mappings and sections as JSON."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    return json.dumps(value) if isinstance(value, list | dict) else value


def results_frame(study: Study, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a table in the order of the study: arm, seed, budget, evaluation set."""
    order = {arm.name: place for place, arm in enumerate(study.arms)}
    ordered: list[Any] = sorted(rows, key=lambda row: (order[row["arm"]], row["seed"], row["labels"]))
    frame = pd.DataFrame(ordered)
    for key in study.varied:
        if key in frame and len({type(value) for value in frame[key]}) > 1:
            frame[key] = frame[key].astype(str)  # a column of a table has one type
    return frame
