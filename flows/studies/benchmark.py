"""`wbc benchmark`: a study's data prepared as a workspace's are, its grid run by `wbc_model.studies.runner`, its results written.

What may be used again lies under the cache, `.wbc/studies` of the workspace by default. `data/` has ingested and checked pools
with their decoded images. `records.jsonl` has what was trained and asked (see `wbc_model.studies.records`).
"""

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from flows.exchange.handed_out import hand_out, hand_out_folder
from flows.pipeline.precision import slow_precision
from flows.shards.cluster import spread
from flows.studies.data import Request, find_data, named_data, prepare
from flows.studies.provenance import provenance
from flows.studies.results import CACHE, claim
from flows.studies.tracking import StudyTracking
from wbc_model.core.errors import WbcError, counted
from wbc_model.params import read_params
from wbc_model.spread import each, is_spread
from wbc_model.studies.study import HOME, Study, read_study, seeds_of, shown

WIDTH: Final = 100  # columns of a description in a terminal

# --- what `wbc benchmark` does --------------------------------------------------------------------------------------------


def plan(workspace: Path, path: Path) -> dict[str, Any]:
    """What a study would do: its arms, seeds, budgets, and how many trainings that makes at most. Reads no data."""
    study = read_study(path, workspace / "params.yaml")
    file = study.file
    return {
        "study": file.name,
        "description": file.description.strip(),
        "data": file.data,
        "preset": file.preset,
        "base": file.base,
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
    arms, seeds, budgets, tests = (result[name] for name in ("arms", "seeds", "budgets", "evaluation_sets"))
    labels = [f"{100 * budget:g} %" if budgets[-1] <= 1 else f"{budget:g}" for budget in budgets]
    width = max(len(_arm_name(name, result)) for name in arms)
    others = f", and at {', '.join(tests[1:])}" if tests[1:] else ""
    lines = [
        f"{result['study']}: {counted(len(arms), 'arm')} x {counted(len(seeds), 'seed')} x {counted(len(budgets), 'budget')} "
        f"= {result['grid_cells']} combinations",
        *textwrap.wrap(result["description"], WIDTH, initial_indent="  ", subsequent_indent="  "),
        f"data: {result['data']}, preset {result['preset']}; tested on its own test split{others}",
        f"seeds: {', '.join(map(str, seeds))}",
        f"labels: {', '.join(labels)}" + (" of the training cells" if budgets[-1] <= 1 else ""),
        f"all arms: {shown(result['base'])}",
        *(f"  {_arm_name(name, result):{width}}  {shown(overrides)}" for name, overrides in arms.items()),
        f"at most {result['trainings']:,} trainings of up to {result['updates']:,} updates each",
    ]
    return "\n".join(lines)


def _arm_name(name: str, result: dict[str, Any]) -> str:
    return f"{name} (reference):" if name == result["reference"] else f"{name}:"


def benchmark(workspace: Path, request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a study, or go on with it; writes results, report and MLflow runs. Raises WbcError before anything is trained where
    somebody changed a file that it would write. Where `retrain.runner` is a cluster, each seed is trained there."""
    runner = read_params(workspace / "params.yaml").retrain
    with contextlib.nullcontext() if request.worker else spread(runner):
        return _benchmark(workspace, request, say)


def _benchmark(workspace: Path, request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    study = read_study(request.study, workspace / "params.yaml")
    out = _out(request, study, workspace)
    if not request.worker:
        claim(_file_names(study, out), workspace)
        _say_slow(study, say)
    seeds = seeds_of(study, request.seeds)
    cache = (request.cache or workspace / CACHE).resolve()
    sources = {name: find_data(name, given, request) for name, given in named_data(study).items()}
    data = {seed: prepare(study, sources, cache, seed, say) for seed in seeds}
    if request.jobs > 1:
        _share_out(request, seeds, workspace)
    elif is_spread():
        list(each(functools.partial(_seed_there, workspace, _wherever(request)), seeds))
    from wbc_model.studies.runner import Runner, results_frame

    def keep(rows: list[dict[str, Any]]) -> None:
        if not request.worker:
            write_results(results_frame(study, rows), out, workspace)

    code = provenance()
    runner = Runner(study, code, cache, say, keep)
    tracking = None if request.worker else StudyTracking.open(workspace, study, code)
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


def _say_slow(study: Study, say: Callable[[str], None]) -> None:
    """Say of the first arm that trains slowly here what would help. Its results are those of another precision then."""
    slow = next(filter(None, (slow_precision(arm.params, "base:") for arm in study.arms)), "")
    if slow:
        say(f"{slow} in {study.file.name}.yaml")


def report(workspace: Path, request: Request) -> dict[str, Any]:
    """Write the report of results that are there already; nothing is trained and no data are read. Raises WbcError."""
    from wbc_model.studies.report import write_report
    from wbc_model.studies.statistics import summary

    study = read_study(request.study, workspace / "params.yaml")
    out = _out(request, study, workspace)
    claim(_file_names(study, out), workspace)
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
        f"{row['arm']}: {row['metric']} {row['mean']:.2%} with {counted(row['labels'], 'label')}, area {row['area']:.4f}"
        for row in result["summary"]
    ]
    done = [f"{result['trained']} trainings done, {result['reused']} were recorded already"] if "trained" in result else []
    return "\n".join([*lines, *done, f"wrote {', '.join(result.get('wrote', result.get('report', [])))}"])


def write_results(results: pd.DataFrame, out: Path, workspace: Path) -> None:
    """Write `results.csv` and `results.parquet` whole; raises WbcError where they are not what the workspace wrote there."""
    table: bytes | str = results.to_csv(index=False)
    hand_out([(out / "results.csv", table), (out / "results.parquet", results.to_parquet(index=False))], workspace)


def _out(request: Request, study: Study, workspace: Path) -> Path:
    return (request.out or workspace / "studies" / study.file.name).resolve()


def _file_names(study: Study, out: Path) -> list[Path]:
    """What a study writes."""
    from wbc_model.studies.report import RANKING

    history = ["history.csv", RANKING] if study.file.keep_history else []
    pictures = [f"{kind}-{test}.png" for test in (HOME, *study.file.also_test) for kind in ("curves", "recall")]
    return [out / name for name in ("results.csv", "results.parquet", "report.md", *history, *pictures)]


def _wherever(request: Request) -> Request:
    """The request for a process that stands in another folder."""
    data, cache = (None if path is None else path.resolve() for path in (request.data, request.cache))
    return replace(request, study=request.study.resolve(), data=data, cache=cache)


def _seed_there(workspace: Path, request: Request, seed: int) -> None:
    """Fill the cache with one seed, in a process of the cluster."""
    benchmark(workspace, replace(request, worker=True, jobs=1, seeds=(seed,)), lambda line: None)


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
