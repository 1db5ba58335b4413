"""MLflow: a run for each retraining, one below it for each cycle, and the registered model with its aliases.

Everything may be repeated: runs are found again by their tags, and what a kill left half logged is logged over.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from flows.artifacts import FOLDER, database_of, located, make_database, make_relative
from flows.away import bound_waiting, one_try
from flows.descriptions import EXPERIMENT_KIND, NOTE, REGISTERED_MODEL, mlmodel, model_note, source_tags
from flows.identity import check_own_names, workspace_name
from wbc_model.core.errors import WbcError
from wbc_model.core.files import replace_directory
from wbc_model.core.model_card import CARD, WEIGHTS, ModelCard, read_card
from wbc_model.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

RUN, CYCLE, COMPLETE, WEIGHTS_TAG = "wbc.retraining", "wbc.cycle", "wbc.complete", "wbc.weights_sha256"
PACKAGED: Final = "wbc.packaged"
BEFORE: Final = "wbc.gate.before"
WORKSPACE: Final = "wbc.workspace"
MLMODEL: Final = "MLmodel"
_OF_THE_REGISTRY: Final = (MLMODEL, "registered_model_meta")  # files that MLflow has beside those of the model
POOLS_NAME: Final = "wbc.pools_name"
COMMIT: Final = "wbc.commit"  # of a cycle's run: the commit that has its pools and its model, where there is one
_OF_THE_RUN: Final = (RUN, CYCLE, POOLS_NAME, "wbc.preset", "wbc.strategy", "wbc.seed")  # what a version takes over from its run
_OPEN: Final = ("RUNNING", "SCHEDULED")  # MLflow's states of a run that has not ended
_FIRST_DESCRIPTION: Final = "Leukocyte classification"  # of registered models that earlier versions made
CHAMPION, CHALLENGER = "champion", "challenger"
# What a registered model is: two versions that agree in this are one.
_IDENTITY: Final = {
    *("version", "classes", "input_size", "view", "normalisation", "architecture", "out_of_distribution", "sha256"),
    *("temperature", "conformal_coverage", "conformal_threshold", "calibrated_on"),
}
_DIGITS: Final = 6  # at the end of a workspace's name, by which it is known
_LONGEST: Final = 5000  # characters of a description
_BATCH: Final = 1000  # metrics that MLflow takes in one call
_SYSTEM_SECONDS: Final = 2


def packaged_digest(card: ModelCard) -> str:
    """Sixteen hex digits of all that a model answers by: its files and its calibration, not where and when it was made."""
    return hashlib.sha256(card.model_dump_json(include=_IDENTITY, by_alias=True).encode()).hexdigest()[:16]


def absolute_uri(uri: str, workspace: Path) -> str:
    """The tracking URI with a SQLite file or a plain path resolved against the workspace."""
    prefix = "sqlite:///"
    if uri.startswith(prefix):
        return prefix + str(workspace / uri.removeprefix(prefix))
    return uri if "://" in uri else str(workspace / uri)


@dataclass(frozen=True)
class CycleRecord:
    """What is logged of a cycle: `metrics` as in metrics.json, the pools' version by name and hash, `at` in milliseconds."""

    cycle: int
    labels: int
    metrics: Mapping[str, Any]
    pools_name: str
    pools_version: str
    at: int


@dataclass(frozen=True)
class Tracker:
    """The experiment of a workspace in an MLflow store."""

    client: "MlflowClient"
    experiment: str
    model_name: str
    workspace: Path
    uri: str

    def retraining(self, key: str, params: Params) -> str:
        """The run of the retraining `key`, begun where there is none; returns its id."""
        found = self._find({RUN: key, CYCLE: "none"})
        if found:
            return found
        run = self._create({RUN: key, CYCLE: "none", "mlflow.runName": f"retraining {key}", **_searched(params)})
        self._log_params(run, params)
        return run

    @contextmanager
    def running(self, run: str) -> Iterator[None]:
        """Have a run count as running while the block runs, and as failed or killed where the block ends by an exception."""
        from mlflow.exceptions import MlflowException

        self.client.update_run(run, status="RUNNING")
        try:
            yield
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            with suppress(MlflowException), one_try():  # it is what went wrong, perhaps: the next start closes the runs
                key = self.client.get_run(run).data.tags[RUN]
                for one in self._unended():
                    if one.data.tags.get(RUN) == key:
                        self.client.set_terminated(one.info.run_id, status)
            raise

    def wait(self, run: str, note: str) -> None:
        """Let a run count as scheduled: it goes on when people have answered."""
        self.describe(run, note)
        self.client.update_run(run, status="SCHEDULED")

    def close_abandoned(self, key: str) -> int:
        """End the runs of other retrainings than `key` that never ended, as their process was killed; returns how many.

        Only whoever has the workspace's lock may call this. Of a store that several workspaces share, another workspace's runs
        stay as they are.
        """
        others = [run for run in self._unended() if run.data.tags.get(RUN, key) != key]
        if database_of(self.uri, self.workspace) is None:  # a moved workspace keeps the digits at the end of its name
            mine = workspace_name(self.workspace)[-_DIGITS:]
            others = [run for run in others if run.data.tags.get(WORKSPACE, "").endswith(mine)]
        for run in others:
            self.client.set_terminated(run.info.run_id, "KILLED")
        return len(others)

    def _unended(self) -> "list[Run]":
        where = [f"attributes.status = '{status}'" for status in _OPEN]
        return [run for one in where for run in self.client.search_runs([self.experiment], one, max_results=1000)]

    def describe(self, run: str, note: str) -> None:
        """Give a run its description, in Markdown."""
        self.client.set_tag(run, NOTE, note)

    def cycle(self, parent: str, key: str, cycle: int) -> str:
        """The run of one cycle below its retraining; returns its id."""
        tags = {RUN: key, CYCLE: str(cycle)}
        return self._find(tags) or self._create(
            tags | {"mlflow.parentRunId": parent, "mlflow.runName": f"cycle {cycle:02d}"},
        )

    def _find(self, tags: Mapping[str, str]) -> str | None:
        where = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        runs = self.client.search_runs([self.experiment], filter_string=where, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _create(self, tags: Mapping[str, str]) -> str:
        tags = {**source_tags(self.workspace), WORKSPACE: workspace_name(self.workspace), **tags}
        return str(self.client.create_run(self.experiment, tags=tags).info.run_id)

    def _log_params(self, run: str, params: Params) -> None:
        from mlflow.entities import Param

        dump = params.model_dump()
        del dump["retrain"]["runner"]  # where the work is done: it may go on elsewhere
        dump["presets"] = {params.preset: dump["presets"][params.preset]}
        self.client.log_batch(run, params=[Param(key, str(value)) for key, value in _flat(dump)])

    @contextmanager
    def system_metrics(self, run: str) -> Iterator[None]:
        """Log CPU, memory, disk, network and GPU of this machine to the run while the block runs."""
        import mlflow

        with mlflow.start_run(run_id=run, log_system_metrics=True):
            yield

    def is_complete(self, run: str) -> bool:
        """Whether `log_cycle` has come to its end for this run."""
        return self.client.get_run(run).data.tags.get(COMPLETE) == "yes"

    def log_cycle(self, run: str, parent: str, record: CycleRecord, params: Params) -> None:
        """Log a finished cycle: parameters, training curve, test metrics, the pools as dataset input, plots, the model."""
        from mlflow.entities import Metric

        if self.is_complete(run):
            return
        workspace = self.workspace
        self._log_params(run, params)
        scores = _scores(record.metrics)
        metrics = [Metric(name, value, record.at, 0) for name, value in [*scores.items(), ("labels", record.labels)]]
        self.client.log_batch(run, metrics=metrics)
        self.log_history(run, pd.read_csv(workspace / "models/history.csv").to_dict("records"), record.at)
        # The retraining's own run shows the learning curve: its steps are labels.
        self.client.log_batch(parent, metrics=[Metric(name, value, record.at, record.labels) for name, value in scores.items()])
        self._log_pools(run, record)
        self._tell_cycle(run, record, params)
        self._put_model(run, workspace / "models/candidate")
        self.put(run, workspace / "plots", "plots")
        for name in ("models/predictions.csv", "models/history.csv", "metrics.json"):
            self.put(run, workspace / name)
        self.client.set_tag(run, COMPLETE, "yes")
        self.client.set_terminated(run)

    def log_history(self, run: str, rows: Iterable[Mapping[Any, Any]], at: int | None = None) -> None:
        """Log rows of a training's history, step by step, that the run does not have yet: while it trains, and once more at its
        end. A step is an update; `at` is in milliseconds, now by default."""
        from mlflow.entities import Metric

        known = {metric.step for metric in self.client.get_metric_history(run, "validation_loss")}
        moment = int(time.time() * 1000) if at is None else at
        metrics = [
            Metric(str(name), float(value), moment, int(row["update"]))
            for row in rows
            if int(row["update"]) not in known
            for name, value in row.items()
            if name != "update" and not pd.isna(value)
        ]
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + _BATCH])

    def show_history(self, run: str, rows: Iterable[Mapping[Any, Any]]) -> None:
        """As `log_history`, while a training is under way: no training waits for a server that is away. What is missing then is
        logged at its end."""
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException), one_try():
            self.log_history(run, rows)

    def _tell_cycle(self, run: str, record: CycleRecord, params: Params) -> None:
        """The description of a cycle's run, and its tags to search by."""
        card = read_card(self.workspace / "models/candidate", verify=False)
        tags = {"wbc.labels": str(record.labels), **_made_of(card), POOLS_NAME: record.pools_name, **_searched(params)}
        self.tag_run(run, tags | {NOTE: model_note(card, record.metrics, record.pools_name)})

    def tag_run(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run, all of them or none."""
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])

    def _place(self, run: str) -> str:
        return located(str(self.client.get_run(run).info.artifact_uri), self.workspace)

    def _repository(self, run: str) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(self._place(run), self.uri, self.uri)

    def folder(self, run: str, name: str) -> Path | None:
        """A folder among the files of a run, where they are kept on this machine and it is there."""
        path = Path(self._place(run).removeprefix("file://")) / name
        return path if path.is_dir() else None

    def sizes(self, run: str, folder: str) -> list[int]:
        """Bytes of each file in a folder among the files of a run, wherever they are kept; empty where there is none."""
        return [int(file.file_size or 0) for file in self._repository(run).list_artifacts(folder) if not file.is_dir]

    def put(self, run: str, path: Path, folder: str | None = None) -> None:
        """Copy a file, or what is in a folder, to the files of a run; what DVC's cache has too is stored once."""
        from flows.artifacts import share

        repository = self._repository(run)
        put = repository.log_artifacts if path.is_dir() else repository.log_artifact
        put(str(path), folder)
        if folder is not None and (there := self.folder(run, folder)) is not None:
            share(there, self.workspace)

    def drop(self, run: str, folder: str) -> None:
        """Delete a folder of the files of a run."""
        self._repository(run).delete_artifacts(folder)

    def scored_cells(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Every finished cycle's run, and the cells that it was scored on with the labels that they had (sha256, label)."""
        from mlflow.exceptions import MlflowException

        where = f"tags.`{COMPLETE}` = 'yes'"
        for run in self.client.search_runs([self.experiment], where, max_results=50_000):
            with tempfile.TemporaryDirectory() as place:
                try:
                    path = self._repository(run.info.run_id).download_artifacts("predictions.csv", place)
                except (MlflowException, OSError):  # somebody deleted the run's files
                    continue
                yield str(run.info.run_id), pd.read_csv(path, usecols=["sha256", "label"], dtype=str)

    def mark_run(self, run: str, tag: str, count: int) -> None:
        """Have `tag` say a count; without one the run does not have it."""
        if count:
            self.client.set_tag(run, tag, str(count))
        elif tag in self.client.get_run(run).data.tags:
            self.client.delete_tag(run, tag)

    def has_tag(self, tag: str) -> bool:
        """Whether any run of the experiment has this tag."""
        return bool(self.client.search_runs([self.experiment], f"tags.`{tag}` != ''", max_results=1))

    def runs_with_models(self, last: int) -> list[str]:
        """The finished runs of cycles that a model may lie in, but for those of the `last` retrainings."""
        finished = self.client.search_runs(
            [self.experiment], f"tags.`{COMPLETE}` = 'yes'", order_by=["attributes.start_time DESC"], max_results=50_000
        )
        keys = list(dict.fromkeys(run.data.tags.get(RUN, "") for run in finished))
        return [str(run.info.run_id) for run in finished if run.data.tags.get(RUN, "") in keys[last:]]

    def aliases(self) -> dict[str, str]:
        """Every alias of the registered model, with the version that it names."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_registered_model(self.model_name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {str(name): str(version) for name, version in found.items()}

    def log_packaged(self, run: str, model: Path) -> None:
        """Let the run's model be the one that is served: the candidate, and its int8 graph where it has one."""
        digest = packaged_digest(read_card(model))
        if self.client.get_run(run).data.tags.get(PACKAGED) == digest:
            return
        self._put_model(run, model)
        self.client.set_tag(run, PACKAGED, digest)

    def _put_model(self, run: str, model: Path) -> None:
        """Copy a model directory to the files of a run, with the MLmodel file by which MLflow loads it."""
        self.put(run, model, "model")
        with tempfile.TemporaryDirectory(prefix="wbc-mlmodel-") as folder:
            path = Path(folder) / MLMODEL
            path.write_text(mlmodel(run, read_card(model, verify=False)), encoding="utf-8")
            self._repository(run).log_artifact(str(path), "model")

    def _log_pools(self, run: str, record: CycleRecord) -> None:
        import mlflow.data
        from mlflow.entities import DatasetInput, InputTag

        labelled = self.workspace / "data/pools/labelled.csv"
        frame = pd.read_csv(labelled, dtype=str, keep_default_na=False)
        names = {"name": record.pools_name, "digest": record.pools_version}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a path can be read as several kinds of source; MLflow takes the right one
            dataset = mlflow.data.from_pandas(frame, source=str(labelled), targets="label", **names)  # type: ignore[attr-defined]
        entity = dataset._to_mlflow_entity()
        self.client.log_inputs(run, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])

    def end_retraining(self, parent: str, artifacts: list[Path]) -> None:
        """Attach the retraining's reports and end its run."""
        for path in artifacts:
            if path.exists():
                self.put(parent, path)
        self.client.set_terminated(parent)

    # --- the registered model ------------------------------------------------------------------------------------------

    def register(self, run: str, model: Path) -> str:
        """The registered version of a packaged model, made where there is none from the files that `run` logs; returns its
        number. The same packaged model is one version, however often it was trained."""
        self._registered_model()
        card = read_card(model)
        known = self.same_model(card)
        if known is not None:
            return known
        self.log_packaged(run, model)
        source = f"{self.client.get_run(run).info.artifact_uri}/model"
        learned = {"wbc.labels": str(card.cells["labelled"].count)} if "labelled" in card.cells else {}
        found = self.client.get_run(run).data.tags.items()
        from_run = {name: value for name, value in found if name in _OF_THE_RUN and value != "none"}
        tags = {WEIGHTS_TAG: card.sha256[WEIGHTS], PACKAGED: packaged_digest(card), **learned, **from_run, **_made_of(card)}
        made = self.client.create_model_version(self.model_name, source, run_id=run, tags=tags, description=model_note(card))
        return str(made.version)

    def _registered_model(self) -> None:
        """Have the registered model, with its description."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_registered_model(self.model_name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.create_registered_model(self.model_name, description=REGISTERED_MODEL)
            return
        if found.description == _FIRST_DESCRIPTION:
            self.client.update_registered_model(self.model_name, REGISTERED_MODEL)

    def same_model(self, card: ModelCard) -> str | None:
        """The newest registered version that is this very packaged model, or None."""
        digest, weights = packaged_digest(card), card.sha256.get(WEIGHTS)
        alike = [version for version in self.versions() if version.tags.get(WEIGHTS_TAG) == weights]
        return next((str(one.version) for one in alike if self.digest(str(one.version)) == digest), None)

    def digest(self, version: str) -> str:
        """`packaged_digest` of a registered version; empty where its files are gone."""
        noted = self.client.get_model_version(self.model_name, version).tags.get(PACKAGED)
        if noted:
            return str(noted)
        try:  # registered before the digest was a tag
            return packaged_digest(self.card(version))
        except WbcError:
            return ""

    def card(self, version: str) -> ModelCard:
        """The card of a registered version, without its other files; raises WbcError where it cannot be had."""
        with tempfile.TemporaryDirectory(prefix="wbc-card-") as folder:
            return read_card(self._download(version, Path(folder), CARD).parent, verify=False)

    def _download(self, version: str, folder: Path, name: str = "") -> Path:
        """A registered version's folder, or one file of it, copied below `folder`; raises WbcError."""
        import mlflow.artifacts
        from mlflow.exceptions import MlflowException

        source = located(str(self.client.get_model_version(self.model_name, version).source), self.workspace)
        try:
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{source}/{name}".rstrip("/"), dst_path=str(folder)))
        except (MlflowException, OSError) as error:
            raise WbcError(f"the files of version {version} cannot be had from {source}: {str(error).splitlines()[0]}") from None

    def model_tags(self) -> dict[str, str]:
        """The tags of the registered model; none where there is no such model."""
        from mlflow.exceptions import MlflowException

        try:
            return dict(self.client.get_registered_model(self.model_name).tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}

    def tag_model(self, name: str, value: str) -> None:
        """Set a tag of the registered model."""
        self.client.set_registered_model_tag(self.model_name, name, value)

    def versions(self) -> "list[ModelVersion]":
        """All registered versions, newest first."""
        found = self.client.search_model_versions(f"name = '{self.model_name}'", max_results=1000)
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    def set_alias(self, alias: str, version: str) -> None:
        """Point an alias of the registered model at a version."""
        self.client.set_registered_model_alias(self.model_name, alias, version)

    def drop_alias(self, alias: str) -> None:
        """Have an alias of the registered model name no version."""
        self.client.delete_registered_model_alias(self.model_name, alias)

    def alias(self, alias: str) -> str | None:
        """The version that an alias points at, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.get_model_version_by_alias(self.model_name, alias).version)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None

    def version_tags(self, version: str) -> dict[str, str]:
        """The tags of a registered version."""
        return dict(self.client.get_model_version(self.model_name, version).tags)

    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a registered version."""
        for name, value in tags.items():
            self.client.set_model_version_tag(self.model_name, version, name, value)

    def describe_version(self, version: str, note: str) -> None:
        """Give a registered version its description, in Markdown."""
        self.client.update_model_version(self.model_name, version, note[:_LONGEST])

    def add_to_description(self, version: str, paragraph: str) -> None:
        """Add a paragraph to the description of a registered version, unless it is there."""
        said = str(self.client.get_model_version(self.model_name, version).description or "")
        if paragraph not in said:
            self.describe_version(version, f"{said[: _LONGEST - len(paragraph) - 2]}\n\n{paragraph}".strip())

    def files(self, model: str, folder: Path, *names: str) -> bool:
        """Copy files of the newest registered version of a model, by its card's version, below `folder`; returns whether there
        is such a version. Raises WbcError where they cannot be had."""
        found = next((str(one.version) for one in self.versions() if one.tags.get("wbc.model") == model), None)
        for name in names if found else ():
            self._download(str(found), folder, name)
        return found is not None

    def scores(self, version: str) -> tuple[dict[str, Any], pd.DataFrame] | None:
        """The test scores of a version as metrics.json has them, and the cells (sha256, label) that they are from: those of the
        cycle that made it. None where its run has none."""
        from mlflow.exceptions import MlflowException

        run = self.client.get_model_version(self.model_name, version).run_id
        with tempfile.TemporaryDirectory(prefix="wbc-scores-") as folder:
            try:
                files = [
                    Path(self._repository(str(run)).download_artifacts(name, folder))
                    for name in ("metrics.json", "predictions.csv")
                ]
            except (MlflowException, OSError):  # of an adapted model, or somebody deleted the run's files
                return None
            return json.loads(files[0].read_text()), pd.read_csv(files[1], usecols=["sha256", "label"], dtype=str)

    def commit(self, version: str) -> str:
        """The git commit that has a version's model and its pools; empty where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(str(self.client.get_model_version(self.model_name, version).run_id))
        except MlflowException:  # somebody deleted the run
            return ""
        return str(run.data.tags.get(COMMIT, ""))

    def fetch(self, version: str, directory: Path, finish: Callable[[Path], None] = lambda folder: None) -> ModelCard:
        """Put the files of a registered version in the place of `directory`, once `finish` has added to them; returns the card.
        Raises WbcError."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
        try:
            files = self._download(version, temporary)
            read_card(files)
            for name in _OF_THE_REGISTRY:
                (files / name).unlink(missing_ok=True)
            files.chmod(0o755)
            finish(files)
            card = read_card(files, verify=False)
            replace_directory(files, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return card


def _scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The scores of metrics.json as MLflow's metrics, those that there are."""
    scores = {f"test_{name}": metrics[name] for name in ("accuracy", "macro_f1", "balanced_accuracy", "ece")}
    for name, values in metrics["per_class"].items():
        scores |= {f"test_recall_{name}": values["recall"], f"test_precision_{name}": values["precision"]}
    others = metrics.get("out_of_distribution", {}).get("none_of_five", {})
    scores["none_of_five_flagged"] = others.get("flagged")  # of cells that are no class, how many the score finds
    return {name: float(value) for name, value in scores.items() if value is not None}


def _searched(params: Params) -> dict[str, str]:
    """Tags of a run that say how it was made."""
    return {"wbc.preset": params.preset, "wbc.strategy": params.acquisition.strategy, "wbc.seed": str(params.seed)}


def _made_of(card: ModelCard) -> dict[str, str]:
    """Tags of a run or version that say what its model is and was made of."""
    return {"wbc.model": card.version, "wbc.pools": card.pool_version, "wbc.rendered": "yes" if card.rendered else "no"}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def registry_exists(workspace: Path, params: Params) -> bool:
    """Whether there is an MLflow store to ask; one in a file that nobody has made yet is not made for that."""
    uri = absolute_uri(params.tracking.uri, workspace)
    return Path(uri.removeprefix("sqlite:///")).exists() if uri.startswith("sqlite:///") or "://" not in uri else True


def open_tracker(workspace: Path, params: Params) -> Tracker:
    """Connect to the MLflow store of params.yaml, with the experiment made where it is missing; raises WbcError."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # where a command's JSON is, and nothing else
    bound_waiting()
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DatabaseError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("mlflow.store.db.utils", "mlflow.system_metrics"):  # what they raise is said, without a traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = absolute_uri(params.tracking.uri, workspace)
    check_own_names(workspace, params, uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_system_metrics_sampling_interval(_SYSTEM_SECONDS)  # type: ignore[no-untyped-call]
    try:
        make_database(uri)
        client = MlflowClient(uri, uri)
        experiment = client.get_experiment_by_name(params.tracking.experiment)
        local = not uri.startswith(("http://", "https://", "databricks"))
        place = (workspace / FOLDER).as_uri() if local else None
        number = experiment.experiment_id if experiment else client.create_experiment(params.tracking.experiment, place)
        if experiment is None or EXPERIMENT_KIND[0] not in experiment.tags:
            client.set_experiment_tag(number, *EXPERIMENT_KIND)
        if database := database_of(uri, workspace):
            make_relative(database)
    except MlflowException as error:
        raise WbcError(f"MLflow at {uri} does not answer: {str(error).splitlines()[0]}") from None
    except DatabaseError as error:
        raise WbcError(f"MLflow's database {uri.removeprefix('sqlite:///')} cannot be used: {error.orig}; "
                       "bring back a backup, or move it away; it holds runs and models") from None  # fmt: skip
    return Tracker(client, str(number), params.tracking.model_name, workspace, uri)
