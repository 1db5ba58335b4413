"""The loop: `wbc retrain` and `schedule`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.command import Json, app, emit, here
from wbc_model.choices import Acquisition, Annotator, Method, PresetName


@app.command("retrain")
def retrain_command(
    preset: Annotated[PresetName | None, typer.Option(help="Size of images and training.")] = None,
    until: Annotated[
        float | None, typer.Option(help="Labels to reach: a share of the training cells up to 1, a count above.")
    ] = None,
    ask: Annotated[int | None, typer.Option(min=1, metavar="N", help="Ask for N more labels now, instead of --until.")] = None,
    cycles: Annotated[
        int | None, typer.Option(min=1, help="Rounds of labelling in which to get there; each trains again.")
    ] = None,
    annotator: Annotated[Annotator | None, typer.Option(help="Who answers: labels set aside at ingest, or people.")] = None,
    acquisition: Annotated[Acquisition | None, typer.Option(help="How cells are chosen.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything that is random.")] = None,
    method: Annotated[Method | None, typer.Option(help="paper: the arm of Jiang et al. 2024; default: takes that back.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any parameter of params.yaml; may be repeated.")
    ] = None,
    commit: Annotated[bool, typer.Option("--commit", help="Commit and tag every version of the pools.")] = False,
    json_: Json = False,
) -> None:
    """Run the loop once, now: validate, train, evaluate, query, label, cycle by cycle; then the gate.

    The options are written into params.yaml, so that `dvc repro` makes the same model. An interrupted run goes on.
    """
    from flows.retraining.run import outcome_text, retrain

    if until is not None and ask is not None:
        raise typer.BadParameter("--until and --ask are two ways to say how many: give one of them")
    workspace = here()
    options = {
        "preset": preset,
        "retrain.until": int(until) if until is not None and until > 1 and until == int(until) else until,
        "retrain.ask": ask,
        "retrain.cycles": cycles,
        "retrain.annotator": annotator,
        "acquisition.strategy": acquisition,
        "seed": seed,
    }
    changes = _changes(workspace, {key: value for key, value in options.items() if value is not None}, method, settings or [])
    outcome = retrain(workspace, changes, commit)
    said = outcome.status == "waiting" and outcome.awaited  # what people do next stands in the text
    emit(outcome.to_dict(), json_, outcome_text(outcome), None if said else here())


def _changes(workspace: Path, options: dict[str, Any], method: Method | None, settings: list[str]) -> dict[str, Any]:
    """The parameters that were typed, by their dotted keys; what is said of a single one goes before the method's word."""
    from flows.retraining.methods import as_typed, of_method
    from wbc_model.params import read_params

    typed = as_typed(settings)
    if twice := sorted(options.keys() & typed.keys()):
        raise typer.BadParameter(f"--set {twice[0]} and the option for it are both given: give one of them")
    changes = (of_method(method) if method else {}) | options | typed
    if "retrain.until" in options and read_params(workspace / "params.yaml").retrain.ask is not None:
        changes["retrain.ask"] = None
    return changes


@app.command("schedule")
def schedule_command(
    every: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Start a retraining so often instead of by cron.")
    ] = None,
    watch: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How often to look whether enough new labels came.")
    ] = 60,
    commit: Annotated[bool, typer.Option("--commit", help="Commit and tag every version of the pools with its model.")] = False,
) -> None:
    """Serve the retraining as a Prefect deployment: by the cron of params.yaml, and when enough new labels have come."""
    from flows.retraining.schedule import schedule

    schedule(here(), every, watch, commit)
