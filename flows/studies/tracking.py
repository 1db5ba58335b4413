"""A study in MLflow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from wbc_model.studies.study import INITIAL, START, Study, value_of

if TYPE_CHECKING:
    from flows.tracking import Tracker
    from wbc_model.studies.records import Provenance


_STUDY, _ROWS, _COMPLETE = "wbc.study", "wbc.study.rows", "wbc.complete"


@dataclass(frozen=True)
class StudyTracking:
    """One run for the study, one below it for each arm and seed, whose metrics have labels as their step.

    Runs are found again by tags that name their content, so going on with a study logs nothing twice.
    """

    tracker: "Tracker"
    study: Study
    parent: str

    @classmethod
    def open(cls, workspace: Path, study: Study, code: "Provenance") -> "StudyTracking":
        from flows.tracking import open_tracker
        from wbc_model.studies.learner import digest

        tracking = study.base.tracking
        named = tracking.model_copy(update={"experiment": f"{tracking.experiment}-studies"})
        tracker = open_tracker(workspace, study.base.model_copy(update={"tracking": named}))
        key = digest([study.file.model_dump(), study.base.model_dump(), code.train, code.query])
        parent = _run(tracker, {_STUDY: study.file.name, _ROWS: key}, {"mlflow.runName": study.file.name})
        return cls(tracker, study, parent)

    def log_seed(self, rows: pd.DataFrame) -> None:
        """Log the rows of one seed, a run for each arm."""
        for arm in self.study.arms:
            self._log_arm(arm.name, rows[rows["arm"] == arm.name])

    def _log_arm(self, name: str, rows: pd.DataFrame) -> None:
        from mlflow.entities import Metric, Param

        from wbc_model.studies.learner import digest

        client, seed = self.tracker.client, int(rows["seed"].iloc[0])
        names = {"mlflow.runName": f"{name}, seed {seed}"[:250], "mlflow.parentRunId": self.parent}
        run = _run(self.tracker, {_STUDY: self.study.file.name, _ROWS: digest([self.parent, name, rows.to_csv()])}, names)
        found = client.get_run(run)
        if found.data.tags.get(_COMPLETE) == "yes":
            return
        arm = next(arm for arm in self.study.arms if arm.name == name)
        params = {"arm": name, "seed": seed, INITIAL: arm.initial, START: arm.start, "preset": arm.params.preset}
        params |= {key: value_of(arm.params, key) for key in self.study.varied}
        at = int(found.info.start_time)  # the same however often a kill makes this run be logged
        metrics = []
        for row in rows.to_dict("records"):
            numbers = {key: value for key, value in row.items() if _is_metric(str(key), value)}
            metrics += [Metric(f"{row['test']}_{key}", float(value), at, int(row["labels"])) for key, value in numbers.items()]
        client.log_batch(run, metrics, [Param(key, str(value)[:6000]) for key, value in params.items()])
        client.set_tag(run, _COMPLETE, "yes")
        client.set_terminated(run)

    def end(self, out: Path, names: Sequence[str]) -> None:
        """Attach results and report to the study's run and end it."""
        for name in names:
            self.tracker.put(self.parent, out / name)
        self.tracker.put(self.parent, self.study.path)
        self.tracker.client.set_terminated(self.parent)


def _is_metric(key: str, value: Any) -> bool:
    scores = ("accuracy", "macro_f1", "balanced_accuracy", "ece", "ranking_accuracy", "predicted_loss_spread")
    return (key in scores or key.startswith("recall_") or key.endswith("_seconds")) and not pd.isna(value)


def _run(tracker: "Tracker", tags: dict[str, str], names: dict[str, str]) -> str:
    """The run with these tags, made with `names` besides where there is none; returns its id."""
    where = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found = tracker.client.search_runs([tracker.experiment], filter_string=where, max_results=1)
    if found:
        return str(found[0].info.run_id)
    return str(tracker.client.create_run(tracker.experiment, tags={**tags, **names}).info.run_id)
