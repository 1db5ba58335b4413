"""`wbc benchmark`: a study's data prepared as a workspace's are, its grid run by `wbc_model.studies.runner`, its results written.

Everything that may be used again lies under the cache, `.wbc/studies` of the workspace by default: `data/` (ingested and
checked pools with their decoded images), `records.jsonl` (what was trained and asked, see `wbc_model.studies.runner`).
"""

import ast
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from flows.pipeline.fingerprint import closure, imported_modules, reachable, source_path
from flows.workspace import is_committed
from wbc_model.acquisition.queue import first_query
from wbc_model.cells.handed_out import adopt, hand_out, hand_out_folder, refuse_foreign
from wbc_model.cells.ingest import ingest
from wbc_model.cells.manifest import read_manifest
from wbc_model.cells.pools import Pools, quarantined
from wbc_model.core.errors import WbcError
from wbc_model.core.files import locked, write_atomic
from wbc_model.params import RENDERED, Params
from wbc_model.studies.study import HOME, INITIAL, START, Study, read_study, seeds_of, shown, value_of

if TYPE_CHECKING:
    from flows.tracking import Tracker
    from wbc_model.studies.runner import Cells, Provenance, StudyData

REAL_DATA: Final = "WBC_REAL_DATA"
CACHE: Final = Path(".wbc/studies")
_STUDY, _ROWS, _COMPLETE = "wbc.study", "wbc.study.rows", "wbc.complete"
_NO_NUMBERS: Final = ("wbc_model.params", "wbc_model.core.errors", "wbc_model.core.files")  # code that no number comes from
_SPLIT_SEED: Final = 0  # where the manifest names the splits, the seed of a study does not move them


@dataclass(frozen=True)
class Request:
    """What the command line asks for. `data`: a folder that the study's paths are relative to, or the data themselves;
    `worker`: fill the cache and write nothing else."""

    study: Path
    out: Path | None = None
    data: Path | None = None
    cache: Path | None = None
    seeds: tuple[int, ...] = ()
    jobs: int = 1
    worker: bool = False


# --- what `wbc benchmark` does --------------------------------------------------------------------------------------------


def plan(workspace: Path, path: Path) -> dict[str, Any]:
    """What a study would do: its arms, seeds, budgets, and how many trainings that makes at most. Reads no data."""
    study = read_study(path, workspace / "params.yaml")
    file = study.file
    return {
        "study": file.name,
        "data": file.data,
        "preset": file.preset,
        "arms": {arm.name: arm.overrides for arm in study.arms},
        "reference": file.reference,
        "seeds": file.seed_list,
        "budgets": file.budgets,
        "evaluation_sets": [HOME, *file.also_test],
        "grid_cells": len(study.arms) * len(file.seed_list) * len(file.budgets),
        "trainings": study.trainings(),
        "updates": max(arm.params.size.updates for arm in study.arms),
    }


def plan_text(result: dict[str, Any]) -> str:
    """The plan for a terminal."""
    lines = [
        f"{result['study']}: {len(result['arms'])} arms x {len(result['seeds'])} seeds x {len(result['budgets'])} budgets "
        f"= {result['grid_cells']} cells of the grid, on {result['data']} (preset {result['preset']})",
        f"seeds {', '.join(map(str, result['seeds']))}; budgets {', '.join(f'{budget:g}' for budget in result['budgets'])}; "
        f"evaluated on {', '.join(result['evaluation_sets'])}",
        *(
            f"  {name}{' (reference)' if name == result['reference'] else ''}: {shown(overrides)}"
            for name, overrides in result["arms"].items()
        ),
        f"at most {result['trainings']} trainings of up to {result['updates']} updates each",
    ]
    return "\n".join(lines)


def benchmark(workspace: Path, request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a study, or go on with it; writes results, report and MLflow runs. Raises WbcError, before anything is trained where a
    file that it would write is not its own."""
    study = read_study(request.study, workspace / "params.yaml")
    out = _out(request, study, workspace)
    if not request.worker:
        _refuse_foreign(study, out, workspace)
    seeds = seeds_of(study, request.seeds)
    cache = (request.cache or workspace / CACHE).resolve()
    sources = {name: find_data(name, given, request) for name, given in _named_data(study).items()}
    data = {seed: prepare(study, sources, cache, seed, say) for seed in seeds}
    if request.jobs > 1:
        _share_out(request, seeds, workspace)
    from wbc_model.studies.runner import Runner, results_frame

    def keep(rows: list[dict[str, Any]]) -> None:
        if not request.worker:
            write_results(results_frame(study, rows), out, workspace)

    code = provenance()
    runner = Runner(study, code, cache, say, keep)
    tracking = None if request.worker else _StudyTracking.open(workspace, study, code)
    for seed in seeds:
        rows = runner.run_seed(seed, data[seed])
        if tracking is not None:
            tracking.log_seed(results_frame(study, rows))
    if tracking is None:
        return {"study": study.file.name, "trained": runner.trained}
    wrote = ["results.csv", "results.parquet"]
    if study.file.keep_history:
        history = results_frame(study, runner.history).drop(columns=["study", "images_per_second"])
        hand_out([(out / "history.csv", history.to_csv(index=False))], workspace)
        wrote.append("history.csv")
    result = report(workspace, request)
    tracking.end(out, [*wrote, *result["report"]])
    files = [str(out / name) for name in [*wrote, *result.pop("report")]]
    return {**result, "trained": runner.trained, "reused": runner.reused, "wrote": files}


def report(workspace: Path, request: Request) -> dict[str, Any]:
    """Write the report of results that are there already; nothing is trained and no data are read. Raises WbcError."""
    from wbc_model.studies.report import summary, write_report

    study = read_study(request.study, workspace / "params.yaml")
    out = _out(request, study, workspace)
    _refuse_foreign(study, out, workspace)
    path = out / "results.parquet"
    if not path.exists():
        raise WbcError(f"{path} is missing: run `wbc benchmark {request.study}` first")
    results = pd.read_parquet(path)
    missing = [arm.name for arm in study.arms if arm.name not in set(results["arm"])]
    if missing:
        raise WbcError(f"{path} has no rows of the arm {missing[0]}: it is of another version of the study, run it again")
    path = out / "history.csv"
    history = pd.read_csv(path) if study.file.keep_history and path.exists() else None
    with tempfile.TemporaryDirectory(prefix="wbc-report-") as built:
        names = write_report(study, results, Path(built), history)
        hand_out_folder(Path(built), out, workspace)
    return {"study": study.file.name, "summary": summary(study, results), "report": names}


def result_text(result: dict[str, Any]) -> str:
    """The outcome for a terminal."""
    lines = [
        f"{row['arm']}: {row['metric']} {row['mean']:.2%} with {row['labels']} labels, area {row['area']:.4f}"
        for row in result["summary"]
    ]
    done = [f"{result['trained']} trainings done, {result['reused']} were recorded already"] if "trained" in result else []
    return "\n".join([*lines, *done, f"wrote {', '.join(result.get('wrote', result.get('report', [])))}"])


def _refuse_foreign(study: Study, out: Path, workspace: Path) -> None:
    """Raises WbcError where a file of the study is somebody's work: not written here, and not as git has it."""
    files = [out / name for name in _file_names(study)]
    adopt([path for path in files if path.is_file() and is_committed(path)], workspace)
    refuse_foreign(files, workspace)


def write_results(results: pd.DataFrame, out: Path, workspace: Path) -> None:
    """`results.csv` and `results.parquet`, replaced whole; raises WbcError where they are not what the workspace wrote there."""
    table: bytes | str = results.to_csv(index=False)
    hand_out([(out / "results.csv", table), (out / "results.parquet", results.to_parquet(index=False))], workspace)


def _out(request: Request, study: Study, workspace: Path) -> Path:
    return (request.out or workspace / "studies" / study.file.name).resolve()


def _file_names(study: Study) -> list[str]:
    """What a study writes."""
    from wbc_model.studies.report import RANKING

    history = ["history.csv", RANKING] if study.file.keep_history else []
    pictures = [f"{kind}-{test}.png" for test in (HOME, *study.file.also_test) for kind in ("curves", "recall")]
    return ["results.csv", "results.parquet", "report.md", *history, *pictures]


def _share_out(request: Request, seeds: Sequence[int], workspace: Path) -> None:
    """Run the seeds in several processes that only fill the cache; they end with this one."""
    from flows.guard import FLOW, flow_token

    command = [sys.executable, "-m", "flows.cli", "benchmark", str(request.study.resolve()), "--worker"]
    command += [] if request.data is None else ["--data", str(request.data.resolve())]
    command += [] if request.cache is None else ["--cache", str(request.cache.resolve())]
    parts = [seeds[start :: request.jobs] for start in range(min(request.jobs, len(seeds)))]
    threads = max(1, (os.cpu_count() or 1) // len(parts))  # each would take all cores otherwise
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, FLOW: flow_token()}
    workers = [
        subprocess.Popen([*command, "--seeds", ",".join(map(str, part))], cwd=workspace, env=environment, stdout=sys.stderr)
        for part in parts
    ]
    failed = [part for part, worker in zip(parts, workers, strict=True) if worker.wait() != 0]
    if failed:
        raise WbcError(
            f"the process of the seeds {', '.join(map(str, failed[0]))} ended early (see above); run it again to go on"
        )


# --- data -----------------------------------------------------------------------------------------------------------------


def _named_data(study: Study) -> dict[str, str]:
    """The data that a study names, by evaluation set."""
    return {HOME: study.file.data, **study.file.also_test}


def find_data(name: str, given: str, request: Request) -> Path | None:
    """Where a study's data lie; None for rendered cells.

    A path is looked for under --data, else under $WBC_REAL_DATA, else beside the study file; where --data is a file, it takes
    the place of the data that the study names. Raises WbcError where there is nothing.
    """
    folder = Path(os.environ.get(REAL_DATA, request.study.parent)) if request.data is None else request.data
    if name == HOME and folder.is_file():
        place = folder
    elif given == RENDERED:
        return None
    else:
        place = (folder.parent if folder.is_file() else folder) / given
    if not place.exists():
        raise WbcError(f"{request.study}: {place} does not exist: name its folder with --data, or in ${REAL_DATA}")
    return place.resolve()


def prepare(study: Study, sources: dict[str, Path | None], cache: Path, seed: int, say: Callable[[str], None]) -> "StudyData":
    """The cells of a seed, ingested and checked once. Where the manifest names no split, each seed makes its own."""
    from wbc_model.studies.runner import StudyData

    source, params = sources[HOME], study.base
    fixed = source is not None and bool((read_manifest(source)["split"] != "").any())
    folder = _prepared(source, params, _SPLIT_SEED if fixed else seed, cache, True, say)
    pools = Pools.read(folder / "data/pools").without(quarantined(folder / "data"))
    training = set(pools.frames["labelled"]["sha256"]) | set(pools.frames["validation"]["sha256"])
    tests = {HOME: _cells(pools.frames["test"], folder)}
    for name in study.file.also_test:
        other = _prepared(sources[name], params, _SPLIT_SEED, cache, False, say)
        tests[name] = _cells(_all_or_test(Pools.read(other / "data/pools"), training), other)
    return StudyData(_cells(pools.frames["labelled"], folder), _cells(pools.frames["validation"], folder), tests)


def _cells(frame: pd.DataFrame, folder: Path) -> "Cells":
    from wbc_model.studies.runner import Cells

    if frame.empty:
        raise WbcError(f"{folder}: a pool of the study has no cell: its data need labelled training, validation and test cells")
    ordered = frame[["sha256", "label"]].sort_values("sha256").reset_index(drop=True)
    return Cells(ordered, folder / "data/images", folder / ".wbc/decoded")


def _all_or_test(pools: Pools, training: set[str]) -> pd.DataFrame:
    """The test cells of another site: its test split, all labelled cells where it has none; never a cell trained on."""
    table = pools.table()
    table = table[table["label"] != ""]
    test = table[table["pool"] == "test"]
    chosen = test if len(test) else table
    return chosen[~chosen["sha256"].isin(training)]


def _prepared(source: Path | None, params: Params, seed: int, cache: Path, check: bool, say: Callable[[str], None]) -> Path:
    """A folder like a workspace with the source's cells in store and pools, all labels known, made where it is missing."""
    from wbc_model.studies.runner import digest

    named = params.data.model_dump(include={"rendered_cells", "validation_share", "test_share"}) if check else {}
    content = [named, params.checks.model_dump() if check else {}, seed, _listing(source)]
    folder = cache / "data" / digest([*content, _code("flows.studies.benchmark:_fill")])
    done = folder / ".wbc/prepared.json"
    with locked(cache / "data.lock"):
        if not done.exists():
            say(f"preparing {f'{source.parent.name}/{source.name}' if source else 'rendered cells'}")
            facts = _fill(folder, source, params, seed, check)
            write_atomic(done, json.dumps(facts, indent=2) + "\n")
    for line in json.loads(done.read_text())["notes"]:
        say(line)
    return folder


def _fill(folder: Path, source: Path | None, params: Params, seed: int, check: bool) -> dict[str, Any]:
    """Ingest with every label revealed, then run the data checks; what they take out of use stays out."""
    from wbc_model.rendering.cells import write_cells

    if source is None:
        source = write_cells(folder / RENDERED, params.data.rendered_cells, seed=0)
    # another site's cells are all for testing: no share of them is set aside for anything else
    shares = {"initial_share": 1.0} | ({} if check else {"validation_share": 0.0, "test_share": 0.0})
    params = params.model_copy(update={"seed": seed, "data": params.data.model_copy(update=shares)})
    outcome = ingest(source, folder / "data", params, first_query=first_query)
    notes = [f"{source.name}: {count} rows not in use: {reason}" for reason, count in outcome.reasons.items()]
    if check:
        from flows.pipeline.checks import validate

        found = validate(folder, params)
        lost = sum(found.pools.values()) - sum(found.usable.values())
        notes += [f"{source.name}: {lost} cells in quarantine after the data checks"] if lost else []
    return {"source": source.name, "pools": outcome.pools, "notes": notes}


def _listing(source: Path | None) -> list[Any]:
    """What would change if the data did: each file's name, size and time."""
    if source is None:
        return [RENDERED]
    files = {str(path): path for path in read_manifest(source)["file"]}
    files |= {source.name: source} if source.is_file() else {}
    stats = {name: path.stat() for name, path in sorted(files.items()) if path.is_file()}
    return [[name, status.st_size, status.st_mtime_ns] for name, status in stats.items()]


@functools.cache
def _code(function: str) -> str:
    """The fingerprint of a function's code, as that of a stage (decision 006), with two differences: versions of packages are
    written beside a result and make no other one of it, so that records can go from one machine to another; and a new
    parameter or file helper is no reason to train again."""
    root = Path(__file__).resolve().parents[2]
    module, name = function.split(":")
    path = source_path(module, root)
    assert path is not None  # noqa: S101 - it is a module of ours
    body = ast.Module(reachable(ast.parse(path.read_text(encoding="utf-8")), name), [])
    trees = {"": body, **closure(imported_modules(body, root), root)}
    digest = hashlib.sha256()
    for place, tree in sorted(trees.items()):
        if place not in _NO_NUMBERS:
            digest.update(f"{place}\n{ast.unparse(tree)}\0".encode())
    return digest.hexdigest()[:16]


def provenance() -> "Provenance":
    """What the learner's code is, here and now."""
    import torch

    from wbc_model.studies.runner import Provenance

    train = _code("wbc_model.studies.runner:fit") + _code("wbc_model.studies.runner:evaluate")
    query = _code("wbc_model.studies.runner:ask") + _code("wbc_model.studies.runner:untrained")
    facts = {"torch": torch.__version__, "commit": _commit(), "code": train[:8] + query[:8]}
    return Provenance(train, query, facts)


def _commit() -> str:
    """The commit of the project that this code is of; `-dirty` when the learner differs from it."""
    if shutil.which("git") is None:
        return ""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode or not (root / "pyproject.toml").exists():
        return ""
    changed = subprocess.run([*git, "status", "--porcelain", "--", "wbc_model"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


# --- MLflow ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _StudyTracking:
    """One run for the study, one below it for each arm and seed, whose metrics have labels as their step.

    Runs are found again by tags that name their content, so going on with a study logs nothing twice.
    """

    tracker: "Tracker"
    study: Study
    parent: str

    @classmethod
    def open(cls, workspace: Path, study: Study, code: "Provenance") -> "_StudyTracking":
        from flows.tracking import open_tracker
        from wbc_model.studies.runner import digest

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

        from wbc_model.studies.runner import digest

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
