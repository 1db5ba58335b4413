"""The loop: `wbc retrain` and `schedule`; and what is looked at while nobody looks: `wbc watch`, and `wbc audit` by itself."""

import enum
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.command import Json, app, audit_app, emit, here
from wbc_model.choices import Acquisition, Annotator, Method, PresetName
from wbc_model.core.errors import WbcError

if TYPE_CHECKING:
    from flows.monitoring.deployed import Nightly


class AlarmChoice(enum.StrEnum):
    """What an alarm begins. Typer takes no Literal of another module without importing it."""

    nothing = "nothing"
    retrain = "retrain"
    ask = "ask"


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
    on_alarm: Annotated[
        AlarmChoice, typer.Option(help="What an alarm of `wbc watch` begins; ask: 25 labels of the site's cells.")
    ] = AlarmChoice.nothing,
    commit: Annotated[bool, typer.Option("--commit", help="Commit and tag every version of the pools with its model.")] = False,
) -> None:
    """Serve the retraining as a Prefect deployment: by the cron of params.yaml, and when enough new labels have come.

    At night it also does what `wbc watch` and `wbc audit` do.
    """
    from flows.retraining.schedule import schedule

    schedule(here(), every, watch, commit, lambda: _watching(on_alarm))


def _watching(on_alarm: AlarmChoice) -> "Nightly":
    from flows.monitoring.deployed import Nightly  # which imports Prefect, whose settings must be in the environment by then

    return Nightly(on_alarm.value)


@app.command("watch")
def watch_command(
    usual: Annotated[
        str | None, typer.Option(metavar="SITE", help="From --since on, this site's cells are its usual state.")
    ] = None,
    undo: Annotated[str | None, typer.Option(metavar="SITE", help="Take back the last --usual of this site.")] = None,
    since: Annotated[str | None, typer.Option(metavar="DAY", help="With --usual: the first day, as 2026-11-29.")] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; needed with --usual and --undo.")] = "",
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who decides; default: the user's name.")] = None,
    json_: Json = False,
) -> None:
    """Judge the days that are over: whether served cells are still as usual, and how right the model is in use."""
    from flows.monitoring.watch import watch

    workspace = here()
    said = _decided(usual, undo, since, reason, by)
    found = watch(workspace)
    days = f"{found.judged} {'day was' if found.judged == 1 else 'days were'} judged, of all sites together"
    text = "\n".join([*said, *found.lines, days, "next: the page /watch of the service shows them"])
    emit(found.to_dict(), json_, text)


def _decided(usual: str | None, undo: str | None, since: str | None, reason: str, by: str | None) -> list[str]:
    """Keep a person's word; returns what was kept, in words. Raises BadParameter for options that do not go together."""
    if since is not None and usual is None:
        raise typer.BadParameter("--since belongs to --usual SITE")
    if usual is None and undo is None:
        if reason or by is not None:
            raise typer.BadParameter(f"{'--reason' if reason else '--by'} belongs to --usual SITE or --undo SITE")
        return []
    if usual is not None and undo is not None:
        raise typer.BadParameter("--usual and --undo are different things: give one")
    if usual is not None and since is None:
        raise typer.BadParameter("--usual needs --since DAY, the first day of the usual state")
    if not reason.strip():
        raise typer.BadParameter(f"{'--undo' if undo else '--usual'} needs --reason TEXT")
    from flows.cli.service import open_store
    from flows.monitoring.served import accept, take_back
    from flows.registry.verdicts import person

    who, store = by or person(), open_store()
    if undo is not None:
        stream = take_back(store, undo, reason, who)
        return [f"taken back: site {undo} is compared with its first days again (model {stream.model_version})"]
    stream = accept(store, str(usual), _day(str(since)), reason, who)
    return [f"site {usual} is compared with its cells since {since} (model {stream.model_version}); --undo takes that back"]


def _day(text: str) -> str:
    try:
        return str(date.fromisoformat(text))
    except ValueError:
        raise WbcError(f"--since is {text!r}: give the first day of the usual state, as 2026-11-29") from None


@audit_app.callback(invoke_without_command=True)
def audit_command(context: typer.Context, json_: Json = False) -> None:
    """Look over what is kept: images, pools, audit log, and whether champion and Bento answer alike; 1 where something is wrong.

    A further word looks at the service's audit log alone.
    """
    if context.invoked_subcommand is not None:
        return
    from flows.monitoring.audit import audit

    found = audit(here())
    emit({"looked": found.looked, "findings": found.findings}, json_, found.text)
    if found.findings:
        raise typer.Exit(1)
