"""Studies: `wbc benchmark`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import Json, app, emit, here


@app.command("benchmark")
def benchmark_command(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="A grid of arms over seeds and budgets; see studies/.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where results go; default: studies/NAME.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The folder of the study's data, or the data; default: $WBC_REAL_DATA.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="What was done already; default: .wbc/studies.")] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Only these of its seeds.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share out the seeds.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Only print what the study would do.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Only write the report of the results that are there.")] = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
    json_: Json = False,
) -> None:
    """Run a study: every arm over paired seeds and growing budgets, with statistics. Interrupted, it goes on where it was."""
    from flows.guard import watch_flow
    from flows.progress import Progress
    from flows.studies import benchmark
    from flows.studies.data import Request

    workspace = here()
    if plan:
        result = benchmark.plan(workspace, study)
        following = f"next: `{shlex.join(['wbc', 'benchmark', str(study)])}` runs it"
        emit(result, json_, f"{benchmark.plan_text(result)}\n{following}")
        return
    watch_flow()
    if not all(seed.strip().isdigit() for seed in seeds.split(",") if seeds):
        raise typer.BadParameter("--seeds is a list of whole numbers: 0,1,2")
    chosen = tuple(int(seed) for seed in seeds.split(",") if seed)
    request = Request(study, out, data, cache, chosen, jobs, worker)
    result = benchmark.report(workspace, request) if report else benchmark.benchmark(workspace, request, Progress().say)
    emit(result, json_, "" if worker else benchmark.result_text(result))
