"""The `wbc` command: the one file that sees all three rooms.

Results go to stdout (with `--json` nothing but JSON), progress and logs to stderr. Exit codes: 0 done, 1 one clear line on
stderr says why not, 2 wrong usage, 3 `wbc ingest` took in what it could but some rows were unusable.
"""

import contextlib
import enum
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from flows.workspace import AUDIT, KEYRING, STORE, bypass_proxies
from wbc_model.choices import Acquisition, Annotator, PresetName
from wbc_model.core.errors import WbcError

if TYPE_CHECKING:
    from serving.reports.store import Store
    from serving.upkeep.backup import Places
    from wbc_model.cells.conflicts import Conflict

app = typer.Typer(
    name="wbc",
    help="Leukocyte classification that learns from few labels. Commands act on the workspace they are run in.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
labels_app = typer.Typer(help="The label store: what was labelled, what is awaited.", no_args_is_help=True)
app.add_typer(labels_app, name="labels")
keys_app = typer.Typer(help="The service's API keys; a running service takes changes over at once.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
audit_app = typer.Typer(help="The service's audit log.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
reports_app = typer.Typer(help="The reports in the service's store.", no_args_is_help=True)
app.add_typer(reports_app, name="reports")

INTERRUPTED = 130  # exit code after Ctrl-C, as of a shell
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, to stdout.")]


class ScopeChoice(enum.StrEnum):
    classify = "classify"
    review = "review"
    admin = "admin"


class StatisticsChoice(enum.StrEnum):
    model = "model"
    data = "data"


def main() -> None:
    """Entry point of the `wbc` command."""
    bypass_proxies()
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer says nothing of Ctrl-C
            _interrupted()
        raise
    except Exception as error:  # noqa: BLE001 - the one place where whatever it was becomes a line
        if _after_ctrl_c(error):
            _interrupted()
        from flows.complaints import FULL, line_of

        line = line_of(error, _workspace_or_none())
        _complain(line, final=isinstance(error, WbcError) or line == FULL)


def _after_ctrl_c(error: BaseException | None) -> bool:
    """Whether this went wrong while Ctrl-C was being obeyed (a server that no longer answered, say), so that it is no news."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__ or error.__cause__
    return False


def _interrupted() -> NoReturn:
    print("wbc: interrupted; finished work is kept, and the same command continues", file=sys.stderr)
    raise SystemExit(INTERRUPTED) from None


def _workspace_or_none() -> Path | None:
    try:
        return _workspace()
    except WbcError:
        return None


def _complain(line: str, final: bool) -> NoReturn:
    """Print the line and end; `final`: another attempt would say the same."""
    print(f"wbc: error: {line}", file=sys.stderr)
    complaint = os.environ.get("WBC_ERROR_FILE")
    if complaint and final:  # a stage of a flow: DVC would bury the line
        with contextlib.suppress(OSError):  # of a full disk: the line has been printed
            Path(complaint).write_text(line, encoding="utf-8")
    raise SystemExit(1) from None


def _emit(result: Mapping[str, Any], as_json: bool, text: str, workspace: Path | None = None) -> None:
    """Print the result; of a `workspace` also what to do there next."""
    print(json.dumps(result, indent=2, default=str) if as_json else text)
    if workspace is not None and not as_json:
        from flows.cli.status import next_command

        following = next_command(workspace)
        print(f"next: {following}") if following else None


def _workspace(of_sites: bool = False) -> Path:
    """The workspace that we stand in; `of_sites`: the one that takes sites in, which is the parent where we stand in a site."""
    from flows.identity import identify
    from flows.pipeline.installed import relink
    from flows.site import parent_workspace
    from flows.workspace import find_workspace

    workspace = parent_workspace() if of_sites else find_workspace()
    relink(workspace)
    _, moved = identify(workspace)
    if moved:
        print(moved, file=sys.stderr)
    return workspace


def _stage(name: str, body: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage in the workspace, on one version of the pools; it ends with the flow that started it, and waits for no other:
    where a retraining or a stage is at work, it is refused."""
    from flows.guard import watch_flow
    from flows.state import one_version, stage_lock

    watch_flow()
    workspace = _workspace()
    os.chdir(workspace)  # what params.yaml names is relative to it
    with stage_lock(workspace, name), one_version(workspace):
        return body(workspace)


def _writing(workspace: Path, command: str) -> contextlib.AbstractContextManager[None]:
    """Have the workspace for a change of its data, when nobody works on them as they are; says on stderr who is waited for."""
    from flows.state import writing

    return writing(workspace, f"`wbc {command}`", lambda line: print(f"wbc: {line}", file=sys.stderr))


def _follow(model: Path) -> None:
    """Where a model is a workspace's champion: have it the one that the registry names. Says on stderr that it was another."""
    from flows.registry.champion import followed_for

    if line := followed_for(model):
        print(f"wbc: {line}", file=sys.stderr)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _scores(metrics: Mapping[str, Any]) -> str:
    interval = metrics.get("intervals", {}).get("accuracy")
    around = f" (95 % interval {interval[0]:.2%} to {interval[1]:.2%})" if interval else ""
    rows = [
        f"  {name:<11} recall {_percent(one['recall']):>8}  precision {_percent(one['precision']):>8}  {one['support']:>6} cells"
        for name, one in metrics["per_class"].items()
    ]
    head = f"{metrics['n']} cells: accuracy {metrics['accuracy']:.2%}{around}, macro-F1 {metrics['macro_f1']:.2%}, "
    return "\n".join([f"{head}balanced accuracy {metrics['balanced_accuracy']:.2%}, ECE {metrics['ece']:.3f}", *rows])


def _rows_used(split: str, cells: int) -> str:
    return f"used {cells} cells, " + ("all rows" if split == "all" else f"the rows of split {split} only")


# --- workspace and data --------------------------------------------------------------------------------------------------


@app.command("init")
def init_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make a workspace.")], json_: Json = False
) -> None:
    """Make a new workspace: git, DVC, dvc.yaml, params.yaml."""
    from flows.workspace import init_workspace

    made = init_workspace(directory)
    wrote = f"wrote {', '.join(made.wrote)}" if made.wrote else "nothing was missing"
    text = "\n".join([f"workspace {made.workspace}: {wrote}", *made.notes])
    _emit({"workspace": made.workspace, "wrote": made.wrote, "notes": made.notes}, json_, text, made.workspace)


@app.command("status")
def status_command(json_: Json = False) -> None:
    """Pools, what waits and for whom, the last run and failures, the champion, disk, and the next command."""
    from flows.cli.status import status, status_text

    result = status(_workspace())
    _emit(result, json_, status_text(result))


@app.command("ingest")
def ingest_command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A manifest CSV, or a folder with a subfolder per class.")],
    source: Annotated[str | None, typer.Option(help="Name written beside every cell; default: the manifest's name.")] = None,
    list_conflicts: Annotated[
        bool, typer.Option("--list-conflicts", help="Take the rest in, however many rows disagree with labels in the pools.")
    ] = False,
    json_: Json = False,
) -> None:
    """Take images and labels into the image store and the pools. Nothing that is there already changes.

    Exit code 3 when some rows were unusable, or disagree with a label in the pools: data/conflicts.csv has these.
    """
    from flows.workspace import ensure_dvc
    from wbc_model.acquisition.queue import first_query
    from wbc_model.cells.ingest import ingest
    from wbc_model.params import read_params

    workspace = _workspace()
    params = read_params(workspace / "params.yaml")
    with _writing(workspace, "ingest"):
        ensure_dvc(workspace)
        report = ingest(data, workspace / "data", params, source, list_conflicts=list_conflicts, first_query=first_query)
    wrote = ["data/images", "data/pools", "data/oracle.csv", "data/rejected.csv", "data/quarantine.csv"]
    wrote += ["data/conflicts.csv"] if report.conflicts else []
    lines = [
        f"{report.rows} rows{f' ({report.read_as})' if report.read_as else ''}: "
        + ", ".join(f"{count} new in {name}" for name, count in report.added.items()),
        f"{report.known} known already; pools now: " + ", ".join(f"{name} {count}" for name, count in report.pools.items()),
        *(f"  {entry.reason}: {entry.path}{f' ({entry.detail})' if entry.detail else ''}" for entry in report.rejections),
        *_conflict_lines(report.conflicts),
        "not in use: " + (", ".join(f"{count} {reason}" for reason, count in report.reasons.items()) or "none"),
        f"wrote {', '.join(wrote)}",
    ]
    _emit({**report.to_dict(), "wrote": wrote}, json_, "\n".join(lines), workspace)
    if report.refused:
        raise typer.Exit(3)


def _conflict_lines(conflicts: "list[Conflict]") -> list[str]:
    """Who disagrees with whom, a person's labels first, and the command that decides."""
    named = sorted(conflicts, key=lambda one: not one.by_a_person)[:20]
    lines = [
        f"  {one.row} says {one.other}, {one.path} is labelled {one.label} by {one.labelled_by}: "
        f"`wbc labels decide {one.sha256[:12]} LABEL --by NAME --why REASON`"
        for one in named
    ]
    more = f"  and {len(conflicts) - len(named)} more" if len(conflicts) > len(named) else ""
    return [*lines, *filter(None, [more]), *(["`wbc labels decide` lists them, --all settles them at once"] if lines else [])]


@app.command("raabin")
def raabin_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Raabin-WBC as distributed: Train, TestA, TestB.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the manifests go; default: FOLDER.")] = None,
    validation: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of the training cells for validation.")] = 0.15,
    seed: Annotated[int, typer.Option(min=0, help="Of the splits.")] = 0,
    json_: Json = False,
) -> None:
    """Write manifests of Raabin-WBC for `wbc ingest`: the official split, and one in which no smear is on both sides."""
    from wbc_model.cells.raabin import raabin_manifests

    report = raabin_manifests(folder, out, validation, seed)
    lines = [
        f"{name}, {split}: {sum(counts.values())} cells of {report.smears[name][split]} smears ("
        + ", ".join(f"{label} {count}" for label, count in counts.items())
        + ")"
        for name, splits in report.counts.items()
        for split, counts in splits.items()
    ]
    lines.append(f"{report.shared:.1%} of TestA's cells are of a smear that Train has too")
    lines += [f"left out, no class: {name}" for name in report.left_out]
    if report.unnamed:
        lines.append(f"{len(report.unnamed)} files do not begin with a smear's name, the first: {report.unnamed[0]}")
    lines += [f"warning: {line}" for line in report.warnings]
    lines.append(f"wrote {', '.join(map(str, report.wrote))}")
    following = f"next: `{shlex.join(['wbc', 'ingest', str(report.wrote[0])])}` takes one of them into the pools"
    _emit(report.to_dict(), json_, "\n".join([*lines, following]))


# --- the stages, as dvc.yaml calls them ----------------------------------------------------------------------------------


@app.command("fingerprint", hidden=True)
def fingerprint_command(json_: Json = False) -> None:
    """Write models/code.json, the fingerprint of each stage's code."""
    from flows.pipeline.fingerprint import write_fingerprints

    values = _stage("fingerprint", write_fingerprints)
    _emit(values, json_, "wrote models/code.json")


@app.command("validate")
def validate_command(json_: Json = False) -> None:
    """Check the pools and the images; what must not be used goes into data/quarantine.csv."""
    from wbc_model.params import read_params

    def body(workspace: Path) -> dict[str, Any]:
        from flows.pipeline.checks import validate

        return validate(workspace, read_params(workspace / "params.yaml")).to_dict()

    report = _stage("validate", body)
    report["wrote"] = ["data/quarantine.csv", "data/docs"]
    lines = [
        "in quarantine: " + (", ".join(f"{count} {reason}" for reason, count in report["quarantined"].items()) or "none"),
        "usable: " + ", ".join(f"{name} {count}" for name, count in report["usable"].items()),
        *(f"warning: {line}" for line in report["warnings"]),
        f"wrote data/quarantine.csv, {report['docs']}",
        "next: `wbc train`",
    ]
    _emit(report, json_, "\n".join(lines))


@app.command("train")
def train_command(json_: Json = False) -> None:
    """Train on the labelled pool: models/candidate."""

    def body(workspace: Path) -> dict[str, Any]:
        from flows.pipeline.stages import train

        return train(workspace)

    result = _stage("train", body)
    if result:  # of several devices only the first reports
        result["wrote"] = ["models/candidate", "models/history.csv"]
        text = (
            f"model {result['version']} from {result['labels']} labels, {result['updates']} updates "
            f"(best {result['best_update']}), validation accuracy {result['validation']['accuracy']:.2%}\n"
            + _uncalibrated_line(result["uncalibrated"])
            + f"wrote {', '.join(result['wrote'])}\nnext: `wbc evaluate`"
        )
        _emit(result, json_, text)


def _uncalibrated_line(why: str) -> str:
    return f"warning: its probabilities are not calibrated: {why}; more validation cells help\n" if why else ""


@app.command("evaluate")
def evaluate_command(
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="A model directory.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Labelled data: a manifest CSV or a folder per class.")
    ] = None,
    statistics: Annotated[
        StatisticsChoice,
        typer.Option(help="Batch normalisation by the model's statistics, or by those of --data: for a site it has never seen."),
    ] = StatisticsChoice.model,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to put the plots of --model on --data.")] = None,
    json_: Json = False,
) -> None:
    """Evaluate the candidate on the test pool, or with --model and --data any model on any labelled data."""
    if (model is None) != (data is None):
        raise typer.BadParameter("--model and --data belong together")
    if model is None and statistics == StatisticsChoice.data:
        raise typer.BadParameter("--statistics data needs --model and --data")
    if model is not None and data is not None:
        from flows.pipeline.stages import evaluate_model

        _follow(model)
        result = evaluate_model(model, data, plots, statistics == StatisticsChoice.data)
        lines = [_rows_used(result["split"], result["n"]), _scores(result), *result["seen_before"]["warnings"]]
        lines += [f"{len(result['rejected'])} rows could not be used"] if result["rejected"] else []
        _emit(result, json_, "\n".join([*lines, *([f"wrote {plots}"] if plots else [])]))
        return

    def body(workspace: Path) -> dict[str, Any]:
        from flows.pipeline.stages import evaluate

        return evaluate(workspace)

    result = _stage("evaluate", body)
    following = "next: `wbc query` asks for the labels that help most; `wbc retrain` does all of it, and asks the gate"
    _emit(result, json_, _scores(result) + f"\nwrote {', '.join(result['wrote'])}\n{following}")


@app.command("calibrate")
def calibrate_command(
    model: Annotated[Path, typer.Option(metavar="DIR", help="A model directory; it is not changed.")],
    data: Annotated[Path, typer.Option(metavar="DATA", help="Labelled cells of the site that the model has not learned from.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the calibrated model directory.")],
    json_: Json = False,
) -> None:
    """Calibrate a model for a site: temperature, prediction sets, out-of-distribution scores, confusion."""
    from flows.sites.calibration import calibrate

    _follow(model)
    result = calibrate(model, data, out)
    coverage, size = result["coverage"], result["classes_in_a_set"]
    text = (
        _rows_used(result["split"], result["cells"]) + "\n"
        f"{result['cells']} cells: prediction sets stated at {coverage['stated']:.0%} held {coverage['before']:.1%} of the "
        f"labels (classes in a set {size['before']:.2f}), now {coverage['after']:.1%} ({size['after']:.2f})\n"
        + (f"no cell of {', '.join(result['without'])}: how the model errs there is not known\n" if result["without"] else "")
        + ("" if result["knows_the_site"] else "too few nuclei were found to know the site by its cells\n")
        + "".join(f"{line}\n" for line in result["seen_before"]["warnings"])
        + f"wrote {out}, version {result['version']}\nnext: `{shlex.join(['wbc', 'serve', '--model', str(out)])}` serves it"
    )
    _emit({**result, "wrote": [str(out)]}, json_, text)


@app.command("query")
def query_command(
    count: Annotated[int | None, typer.Option(min=0, help="Cells to ask about; default: what retrain.until needs.")] = None,
    json_: Json = False,
) -> None:
    """Queue the unlabelled cells most worth a label: data/queue.csv."""

    def body(workspace: Path) -> dict[str, Any]:
        from flows.pipeline.stages import query

        return query(workspace, count)

    result = _stage("query", body)
    text = f"{result['cells']} of {result['pool']} unlabelled cells queued by {result['strategy']}\nwrote {result['wrote']}"
    if result["cells"]:
        following = "`wbc labels export FILE.csv` writes them for people (.json for Label Studio)"
    else:
        following = "`wbc query --count N` asks for N" if result["pool"] else "`wbc ingest DATA` takes more images in"
    _emit(result, json_, f"{text}\nnext: {following}")


@app.command("package")
def package_command(json_: Json = False) -> None:
    """Build the Bento that serves the candidate, in int8 where that is as good: build/bento."""

    def body(workspace: Path) -> dict[str, Any]:
        from flows.pipeline.package import package

        return package(workspace)

    result = _stage("package", body)
    int8 = "in int8" if result["int8"]["served"] else f"without int8: {'; '.join(result['int8']['reasons'])}"
    following = "next: `wbc retrain` asks the gate whether it becomes the champion"
    _emit(result, json_, f"{int8}\n{_uncalibrated_line(result['uncalibrated'])}wrote {', '.join(result['wrote'])}\n{following}")


# --- the loop --------------------------------------------------------------------------------------------------------------


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
    commit: Annotated[bool, typer.Option("--commit", help="Commit and tag every version of the pools.")] = False,
    json_: Json = False,
) -> None:
    """Run the loop once, now: validate, train, evaluate, query, label, cycle by cycle; then the gate.

    The options are written into params.yaml, so that `dvc repro` makes the same model. An interrupted run goes on.
    """
    from flows.retraining.run import outcome_text, retrain
    from wbc_model.params import read_params

    if until is not None and ask is not None:
        raise typer.BadParameter("--until and --ask are two ways to say how many: give one of them")
    workspace = _workspace()
    chosen = {
        "preset": preset,
        "retrain.until": int(until) if until is not None and until > 1 and until == int(until) else until,
        "retrain.ask": ask,
        "retrain.cycles": cycles,
        "retrain.annotator": annotator,
        "acquisition.strategy": acquisition,
        "seed": seed,
    }
    changes: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    if until is not None and read_params(workspace / "params.yaml").retrain.ask is not None:
        changes["retrain.ask"] = None
    outcome = retrain(workspace, changes, commit)
    _emit(outcome.to_dict(), json_, outcome_text(outcome), _workspace())


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

    schedule(_workspace(), every, watch, commit)


@labels_app.command("export")
def labels_export_command(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .csv, or .json for Label Studio tasks.")],
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Put the image files there too, named by rank.")] = None,
    json_: Json = False,
) -> None:
    """Write the cells that await a label."""
    from flows.labels import export_queue

    count = export_queue(_workspace(), out, images)
    wrote = [str(out), *([str(out.with_suffix(".xml"))] if out.suffix == ".json" else []), *([str(images)] if images else [])]
    following = f"\nnext: {_labelling(out)}" if count else ""
    _emit({"cells": count, "wrote": wrote}, json_, f"{count} cells await a label\nwrote {', '.join(wrote)}{following}")


def _labelling(sheet: Path) -> str:
    """What to do with cells that were exported, as far as their labels are back."""
    if sheet.suffix.casefold() == ".csv":
        return f"fill in its column label, then `{shlex.join(['wbc', 'labels', 'import', str(sheet)])}`"
    config = sheet.with_suffix(".xml")
    return (
        f"in Label Studio take {config} for the labelling interface and import {sheet}; `wbc labels import` takes its export in"
    )


@labels_app.command("import")
def labels_import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with sha256 and label, or Label Studio's JSON export.")],
    annotator: Annotated[str, typer.Option(help="Who gave the labels that do not say.")] = "",
    json_: Json = False,
) -> None:
    """Take in labels that people gave; a later one supersedes an earlier. Exit code 3 when some rows were refused."""
    from flows.labels import import_labels
    from flows.state import label_cycle

    workspace = _workspace()
    result = import_labels(workspace, file, label_cycle(workspace), annotator)
    lines = [
        f"{result['labels']} labels: {result['new']} new, {result['known']} known; {result['awaited']} cells still await one",
        *(
            [f"{result['corrected']} supersede another label, {result['held_out']} of them in validation or test"]
            * bool(result["corrected"])
        ),
        *(f"  refused: {one['place']}: {one['reason']}" for one in result["refused"]),
        *_out_of_date(workspace, result),
        *_waits(result),
        f"wrote {', '.join(result['wrote']) or 'nothing'}",
    ]
    _emit(result, json_, "\n".join(lines), workspace)
    if result["refused"]:
        raise typer.Exit(3)


def _waits(result: Mapping[str, Any]) -> list[str]:
    """What to know of labels that came while somebody works on the pools."""
    busy = result["waits_for"]
    return [f"they wait: {busy} works on the pools as they are, and the next round begins with these labels"] if busy else []


@labels_app.command("decide")
def labels_decide_command(
    cell: Annotated[
        str | None, typer.Argument(metavar="[CELL]", help="Its path in the pools, or the first digits of its sha256.")
    ] = None,
    label: Annotated[str | None, typer.Argument(metavar="[LABEL]", help="The label that counts from now on.")] = None,
    all_: Annotated[
        Literal["pools", "manifest"] | None,
        typer.Option("--all", help="Settle every conflict by the label of the pools, or of the manifest."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="With --all: only the conflicts of this manifest.")] = None,
    by: Annotated[str, typer.Option(metavar="NAME", help="The person who decides.")] = "",
    why: Annotated[str, typer.Option(metavar="REASON", help="Kept in the log.")] = "",
    json_: Json = False,
) -> None:
    """Put a label right, in whatever pool its cell is; without arguments list the conflicts that wait for a decision."""
    from flows.labels import conflicts, decide, decide_all
    from flows.state import label_cycle

    workspace = _workspace()
    if (cell is None) != (label is None) or (cell is not None and all_ is not None):
        raise typer.BadParameter("give CELL and LABEL, or --all, or nothing to list the conflicts")
    if cell is not None and label is not None:
        result = decide(workspace, cell, label, by, why, label_cycle(workspace))
    elif all_ is not None:
        result = decide_all(workspace, all_, source, by, why, label_cycle(workspace))
    else:
        waiting = conflicts(workspace)
        _emit({"conflicts": [vars(one) for one in waiting]}, json_, "\n".join(_conflict_lines(waiting)) or "no conflict")
        return
    text = f"{result['new']} decided, {result['corrected']} labels changed; {result['conflicts']} conflicts wait"
    lines = [text, *_out_of_date(workspace, result), *_waits(result), f"wrote {', '.join(result['wrote'])}"]
    _emit(result, json_, "\n".join(lines), workspace)


def _out_of_date(workspace: Path, result: dict[str, Any]) -> list[str]:
    """What rests on the labels of validation or test cells that were corrected just now; noted in the result, too."""
    from flows.registry import scores
    from flows.registry.champion import follow_notes

    result["out_of_date"] = []
    if result["held_out"]:
        result["out_of_date"] = [*follow_notes(workspace), *scores.mark(workspace), *scores.mark_history(workspace)]
    return list(result["out_of_date"])


@labels_app.command("test")
def labels_test_command(
    draw: Annotated[int | None, typer.Option(metavar="N", min=1, help="Draw so many unlabelled cells for the test pool.")] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write those that await a label: .csv, or .json for Label Studio.")
    ] = None,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="With --export: put the image files there too.")] = None,
    json_: Json = False,
) -> None:
    """Fresh cells for the test pool, drawn blind: by chance, without any model. `wbc labels import` takes their labels in."""
    from flows.retraining import fresh_cells

    workspace = _workspace()
    if images is not None and export is None:
        raise typer.BadParameter("--images belongs to --export FILE")
    result: dict[str, Any] = {"wrote": []}
    if draw:
        with _writing(workspace, "labels test"):
            result = fresh_cells.draw(workspace, draw)
    else:
        result |= fresh_cells.state(workspace)
    if export is not None:
        fresh_cells.export(workspace, export, images)
        result["wrote"] = [*result["wrote"], str(export), *([str(images)] if images else [])]
    lines = [f"{result['drawn']} cells drawn, {result['labelled']} of them labelled by the oracle"] if draw else []
    lines += [f"test pool: {result['cells']} cells, compared on {result['comparisons']} times of {result['max_comparisons']}"]
    lines += [result["asks"]] if result["asks"] else []
    lines += [f"{result['awaited']} drawn cells await a label"]
    if result["awaited"] and export is None:
        lines += ["`wbc labels test --export FILE.csv` writes them, `wbc labels import FILE.csv` takes their labels in"]
    lines += [f"wrote {', '.join(result['wrote'])}"] if result["wrote"] else []
    lines += [f"next: {_labelling(export)}"] if result["awaited"] and export is not None else []
    _emit(result, json_, "\n".join(lines))


@labels_app.command("replay")
def labels_replay_command(json_: Json = False) -> None:
    """Take in labels that waited for others' work, and those of data/labels.csv that the pools do not know, after a merge say."""
    from flows.labels import replay, take_waiting

    workspace = _workspace()
    with _writing(workspace, "labels replay"):
        count = replay(workspace) + take_waiting(workspace)
    _emit({"replayed": count, "wrote": ["data/pools"]}, json_, f"{count} labels replayed\nwrote data/pools", workspace)


@labels_app.command("status")
def labels_status_command(json_: Json = False) -> None:
    """How many labels there are, who gave them, how many are awaited."""
    from flows.labels import status

    workspace = _workspace()
    result = status(workspace)
    lines = [
        ", ".join(f"{name} {result[name]}" for name in ("labelled", "unlabelled", "validation", "test")),
        "labelled by: " + (", ".join(f"{name} {count}" for name, count in result["labelled_by"].items()) or "nobody"),
        "classes: " + ", ".join(f"{name} {count}" for name, count in result["classes"].items()),
        f"{result['awaited']} cells of the queue await a label",
        *([f"{result['superseded']} labels were superseded by later ones"] * bool(result["superseded"])),
        *([f"{result['conflicts']} conflicts wait for a decision: `wbc labels decide`"] * bool(result["conflicts"])),
    ]
    _emit(result, json_, "\n".join(lines), workspace)


# --- studies ---------------------------------------------------------------------------------------------------------------


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

    workspace = _workspace()
    if plan:
        result = benchmark.plan(workspace, study)
        following = f"next: `{shlex.join(['wbc', 'benchmark', str(study)])}` runs it"
        _emit(result, json_, f"{benchmark.plan_text(result)}\n{following}")
        return
    watch_flow()
    if not all(seed.strip().isdigit() for seed in seeds.split(",") if seeds):
        raise typer.BadParameter("--seeds is a list of whole numbers: 0,1,2")
    chosen = tuple(int(seed) for seed in seeds.split(",") if seed)
    request = benchmark.Request(study, out, data, cache, chosen, jobs, worker)
    result = benchmark.report(workspace, request) if report else benchmark.benchmark(workspace, request, Progress().say)
    _emit(result, json_, "" if worker else benchmark.result_text(result))


# --- another site ------------------------------------------------------------------------------------------------------------


@app.command("onboard")
def onboard_command(
    data: Annotated[Path, typer.Argument(metavar="SITE_DATA", help="The new site's cells: manifest CSV or folder per class.")],
    labels: Annotated[int | None, typer.Option(min=0, help="Cells to ask for; default: onboard.labels.")] = None,
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Labels that people gave: CSV (sha256, label) or Label Studio's JSON."),
    ] = None,
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="The model to adapt; default: the champion.")] = None,
    commit: Annotated[bool, typer.Option("--commit", help="Commit and tag the version of the site's pools.")] = False,
    json_: Json = False,
) -> None:
    """Adapt the champion to a new site with the few labels that help most.

    The site is a workspace of its own, sites/NAME: every command typed in there acts on it.
    """
    from flows.progress import Progress
    from flows.sites.onboard import onboard

    result = onboard(_workspace(of_sites=True), data, labels, answers, model, Progress(), commit)
    given = {"--labels": labels, "--model": model}
    again = ["wbc", "onboard", str(data), *(str(x) for name, value in given.items() if value is not None for x in (name, value))]
    again += ["--commit"] if commit else []
    if result["status"] == "waiting":
        text = (
            f"{result['awaited']} cells wait for a label: {result['queue']}\n"
            f"fill in its column label, as far as you can, and run `{shlex.join([*again, '--answers', result['queue']])}`"
        )
    else:
        stages = [when for when in ("before", "statistics", "after") if when in result]
        both = [(when, place, scores) for when in stages for place, scores in result[when].items()]
        lines = [f"{when}, {place}: {_scores(scores)}" for when, place, scores in both]
        known = result["registered"]
        lines += [
            f"registered as version {known['version']} of {known['model']}" + ("" if known["champion"] else ", no champion")
        ]
        lines += [known["reason"]] if "reason" in known else []
        text = "\n".join([*lines, f"wrote {result['model']}", f"next: `wbc serve` in {result['workspace']} serves it"])
    _emit(result, json_, text)


# --- the service and the show ------------------------------------------------------------------------------------------------


@app.command("serve")
def serve_command(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
    host: Annotated[str | None, typer.Option(metavar="IP", help="Address to listen on; loopback unless a key is made.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A model directory; default: $WBC_MODEL_DIR, else the workspace's champion."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A host name that it may be called by, beside loopback's; also $WBC_HOSTS."),
    ] = None,
) -> None:
    """Serve the champion as an HTTP service, with the workspace's keys, audit log and store (WBC_STORE_URL names another).

    The first start makes a key and shows the page's address with it, once, on the terminal.
    """
    from flows.cli.serve import serve_workspace
    from serving.run import allow_hosts

    allow_hosts(allow_host or [])
    serve_workspace(port, host, model)


@app.command("outbox")
def outbox_command(
    again: Annotated[bool, typer.Option("--again", help="Put the messages that the receiver refused back in the queue.")] = False,
    json_: Json = False,
) -> None:
    """Messages to the hospital's system: how many wait, and which the receiver refused and why."""
    from serving.reports.outbox import backlog, refused, send_again

    store = _store()
    failed = [{"control_id": one.control_id, "report": one.report_id, "error": one.error} for one in refused(store)]
    result = {"sent_again": send_again(store) if again else 0, **backlog(store)._asdict(), "refused": failed}
    lines = [f"{result['pending']} wait, the oldest for {result['oldest_seconds']:.0f} s; {result['failed']} refused"]
    lines += [f"  {one['control_id']} of report {one['report']}: {one['error']}" for one in failed]
    lines += [f"{result['sent_again']} put back in the queue"] if again else []
    lines += ["next: `wbc outbox --again` sends them again, when the receiver takes them"] if failed and not again else []
    _emit(result, json_, "\n".join(lines))


def _store() -> "Store":
    """The store that WBC_STORE_URL names, else the workspace's; WbcError where there is none."""
    from serving.reports.store import STORE_URL, Store, sqlite_url
    from serving.security.image_key import ImageKeys

    if STORE_URL in os.environ:
        store = Store.from_environment()
    else:
        path = _workspace() / STORE
        store = Store.open(sqlite_url(path), ImageKeys.from_environment()) if path.exists() else None
    if store is None:
        raise WbcError(f"there is no store: {STORE_URL} names none, and `wbc serve` has not made one in this workspace yet")
    return store


ReportStatus = Literal["open", "preliminary", "final", "amended", "withdrawn", "all"]  # serving.reports.listing.Wanted


@reports_app.command("list")
def reports_list_command(
    model: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Recall: all that were ever signed with this version of the model.")
    ] = None,
    specimen: Annotated[str | None, typer.Option(metavar="NUMBER", help="Only those of this specimen number.")] = None,
    status: Annotated[
        ReportStatus | None, typer.Option(help="Default: open, those that wait for a signature; all with another option.")
    ] = None,
    signed: Annotated[
        bool | None, typer.Option("--signed/--unsigned", help="Only those that somebody ever signed; with --model the default.")
    ] = None,
    json_: Json = False,
) -> None:
    """Reports, the newest first: by status, specimen, or the model that counted them."""
    from serving.reports.answers import summary
    from serving.reports.listing import Filter, all_listed

    ever = True if model is not None and signed is None and status is None else signed
    found, text = [], []
    for report, images in all_listed(_store(), Filter(status, specimen, model, ever)):
        line, last = summary(report, images), report.signatures[-1] if report.signatures else None
        by = None if last is None else {"by": last.by, "at": last.at.isoformat()}
        found.append({**line.model_dump(mode="json"), "last_signature": by})
        words = [line.id, f"{line.status:11}", f"{line.created_at:%Y-%m-%d %H:%M}", f"{line.cells:4} cells", line.model.version]
        words += [f"specimen {line.specimen_id or '-'}", "" if last is None else f"last signed by {last.by}, {last.at:%Y-%m-%d}"]
        text.append("  ".join(words).rstrip())
    _emit({"reports": found}, json_, "\n".join([*text, f"{len(found)} {'report' if len(found) == 1 else 'reports'}"]))


@reports_app.command("export")
def reports_export_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write: cells.csv and the images.")],
    signed: Annotated[bool, typer.Option("--signed", help="Only cells of reports that are signed.")] = False,
    json_: Json = False,
) -> None:
    """Cells with the label that a person gave, corrected or confirmed, as a manifest for `wbc ingest` and `wbc calibrate`."""
    from serving.upkeep.export import MANIFEST, export

    done = export(_store(), out, signed)
    manifest = out / MANIFEST
    lines = [f"{done.cells} cells that people labelled, {done.cells - done.confirmed} of them otherwise than the model"]
    lines += [f"{done.no_image} left out, their images are not kept"] if done.no_image else []
    lines += [f"{done.none} left out, they were said to be no cell of the differential"] if done.none else []
    lines += [f"{done.superseded} left out, a later decision on the same file stands"] if done.superseded else []
    calibrate = f"wbc calibrate --model MODEL --data {shlex.quote(str(manifest))} --out DIR"
    lines += [f"wrote {out}", f"next: `wbc ingest {shlex.quote(str(manifest))}`, or `{calibrate}`"]
    _emit({**done._asdict(), "wrote": str(out), "manifest": str(manifest)}, json_, "\n".join(lines))


@reports_app.command("remove")
def reports_remove_command(
    by: Annotated[str, typer.Option(metavar="NAME", help="Who removes it.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it stays in the record, so name no patient.")],
    report: Annotated[str | None, typer.Argument(metavar="[ID]", help="The report.")] = None,
    specimen: Annotated[str | None, typer.Option(metavar="NUMBER", help="All reports of this specimen number instead.")] = None,
    json_: Json = False,
) -> None:
    """Remove a report with its cells, images, signatures and messages, for good; who did it and why is kept.

    Stop the service first, or ask it: DELETE /v1/reports/ID with a key of the scopes review and admin.
    """
    from serving.upkeep.removal import remove_here, reports_of

    if (report is None) == (specimen is None):
        raise WbcError("give either a report's id or --specimen NUMBER")
    store = _store()
    names = [str(report)] if specimen is None else reports_of(store, specimen)
    if not names:
        raise WbcError("there is no report of this specimen number")
    removed = remove_here(store, _audit_log(None), names, by, reason)
    found = [{"report_id": one.report_id, "by": one.by, "reason": one.reason, "at": one.at.isoformat()} for one in removed]
    text = "\n".join([*(f"removed {one.report_id}" for one in removed), "backups made before this still hold it"])
    _emit({"removed": found}, json_, text)


@app.command("backup")
def backup_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    json_: Json = False,
) -> None:
    """Back up what the service keeps, also while it runs: reports and images, audit log and keys, as they belong together."""
    from serving.upkeep.backup import back_up

    found = back_up(_places(), out)
    audit = found["audit"]
    lines = [f"{found['reports']} reports, " + (f"{audit['records']} records of the audit log" if audit else "no audit log")]
    lines += ["" if found["keys"] else "no keyring", *_image_keys_line(found), f"wrote {out}"]
    lines += [f"`{shlex.join(['wbc', 'restore', str(out)])}` brings it back"]
    _emit({**found, "wrote": [str(out)]}, json_, "\n".join(line for line in lines if line))


@app.command("restore")
def restore_command(
    backup: Annotated[Path, typer.Argument(metavar="BACKUP", help="A folder that `wbc backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Even where what is here is newer; it is put aside first.")] = False,
    json_: Json = False,
) -> None:
    """Bring a backup back. The service must be stopped; what was here is backed up beside the backup first."""
    from serving.upkeep.backup import bring_back

    found = bring_back(backup, _places(), replace)
    lines = [f"{found['reports']} reports as of {found['made_at']}"]
    lines += [f"newer than the backup and put aside: {what}" for what in found["newer"]]
    lines += [f"what was here is in {found['aside']}"] if found["aside"] else []
    _emit(found, json_, "\n".join([*lines, *_image_keys_line(found), "next: `wbc serve` starts the service again"]))


def _image_keys_line(found: dict[str, Any]) -> list[str]:
    names, apart = found["image_keys"], "the file of these keys is not in the backup, keep it apart"
    return [f"images are encrypted with {', '.join(names)}: {apart}"] if names else []


def _places() -> "Places":
    """Where the service keeps what a backup holds: what the environment names, else the workspace's."""
    from serving.reports.store import STORE_URL, sqlite_url
    from serving.upkeep.backup import Places

    url = os.environ.get(STORE_URL, "").strip() or sqlite_url(_workspace() / STORE)
    return Places(url, _audit_log(None), _keyring(None))


KeysFile = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help=f"The keyring; default: $WBC_API_KEYS_FILE, else {KEYRING}.")
]


def _keyring(file: Path | None) -> Path:
    named = file or os.environ.get("WBC_API_KEYS_FILE")
    return Path(named) if named else _workspace() / KEYRING


@keys_app.command("add")
def keys_add_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use it; written into the audit log.")],
    scope: Annotated[list[ScopeChoice], typer.Option(help="What it may do; give it more than once for more.")],
    file: KeysFile = None,
    json_: Json = False,
) -> None:
    """Make a key and print it, once: only its digest is kept."""
    from serving.security.keys import add_key

    path = _keyring(file)
    key = add_key(path, name, [choice.value for choice in scope])
    following = "next: send it in the header X-API-Key; a running service takes it at once, `wbc serve` starts one"
    text = f"{key}\nkept nowhere else: note it now\nwrote {path}\n{following}"
    _emit({"name": name, "key": key, "wrote": [str(path)]}, json_, text)


def _add_a_key(file: Path | None) -> str:
    return "wbc keys add NAME --scope SCOPE" + (f" --file {shlex.quote(str(file))}" if file else "")


@keys_app.command("list")
def keys_list_command(file: KeysFile = None, json_: Json = False) -> None:
    """Names, scopes and age of the keys."""
    from serving.security.keys import list_keys

    keys = [{"name": key.name, "scopes": sorted(key.scopes), "created": key.created} for key in list_keys(_keyring(file))]
    lines = [f"{key['name']}  {','.join(key['scopes'])}  {key['created']}" for key in keys]
    _emit({"keys": keys}, json_, "\n".join(lines) or f"no key\nnext: `{_add_a_key(file)}` makes one")


@keys_app.command("revoke")
def keys_revoke_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `wbc keys list` shows it.")],
    file: KeysFile = None,
    json_: Json = False,
) -> None:
    """Take a key away; a running service refuses it within a second or so."""
    from serving.security.keys import revoke_key

    path = _keyring(file)
    revoke_key(path, name)
    text = f"{name} is revoked\nwrote {path}\nnext: `{_add_a_key(file)}` makes another"
    _emit({"name": name, "wrote": [str(path)]}, json_, text)


def _audit_log(file: Path | None) -> Path:
    named = file or os.environ.get("WBC_AUDIT_LOG", "").strip()
    return Path(named) if named else _workspace() / AUDIT


@audit_app.command("verify")
def audit_verify_command(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help=f"Default: $WBC_AUDIT_LOG, else {AUDIT}.")] = None,
    contains: Annotated[
        str | None, typer.Option(metavar="HASH", help="A hash that this command gave before: its record must still be there.")
    ] = None,
    archived: Annotated[
        bool, typer.Option("--archived", help="The first files of a rotated log lie elsewhere, on purpose.")
    ] = False,
    json_: Json = False,
) -> None:
    """Check that no line of the audit log was changed, taken out, moved or cut off; names the first that was."""
    from serving.security.chain import verify

    path = _audit_log(file)
    found = verify(path, contains, archived)
    torn = f", {found.torn} lines torn by a crash" if found.torn else ""
    first = f"; records before {found.first} lie elsewhere" if found.first > 1 else ""
    waiting = f"\n{found.open} calls have no outcome yet: under way, or the service completes them at its next start"
    text = f"{path}: {found.records} records, unbroken{torn}{first}{waiting if found.open else ''}\nlast {found.last}"
    _emit({"file": str(path), **asdict(found)}, json_, text)


@audit_app.command("rotate")
def audit_rotate_command(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help=f"Default: $WBC_AUDIT_LOG, else {AUDIT}.")] = None,
    json_: Json = False,
) -> None:
    """Go on in a new file, also under a running service; the chain goes on over it."""
    from serving.security.audit import rotate

    path = _audit_log(file)
    moved = rotate(path)
    _emit({"file": str(path), "wrote": [str(moved)]}, json_, f"wrote {moved}\nmoved elsewhere, verify with --archived")


@app.command("champion")
def champion_command(
    promote: Annotated[str | None, typer.Option(metavar="VERSION", help="Make this registered version the champion.")] = None,
    reject: Annotated[str | None, typer.Option(metavar="VERSION", help="This version must not become champion.")] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Make the champion's numbers again that rest on labels corrected since.")
    ] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Withdraw the champion; the one before it comes back.")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; needed with each of the three.")] = "",
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who decides; default: the user's name.")] = None,
    json_: Json = False,
) -> None:
    """List the registered models, or decide on the champion: a decision binds the gate until a person decides otherwise."""
    from flows.registry import champion
    from flows.registry.verdicts import person

    wanted = [name for name, value in (("--promote", promote), ("--reject", reject), ("--rollback", rollback)) if value]
    if len(wanted) + rescore > 1:
        raise typer.BadParameter(f"{' and '.join([*wanted, *['--rescore'] * rescore])} are different things: give one")
    if bool(wanted) != bool(reason.strip()):
        raise typer.BadParameter(f"{wanted[0]} needs --reason TEXT" if wanted else "--reason belongs to a decision")
    who, workspace = by if by is not None else person(), _workspace()
    if promote:
        result = champion.promote(workspace, promote, reason, who)
    elif reject:
        result = champion.reject(workspace, reject, reason, who)
    elif rescore:
        result = champion.rescore(workspace)
    elif rollback:
        result = champion.roll_back(workspace, reason, who)
    else:
        result = champion.champions(workspace)
    _emit(result, json_, champion.champions_text(result), workspace)


@app.command("gc")
def gc_command(
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="Keep the last N models and trainings.")] = 5,
    champions: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Keep the last N of those that were champion; default: all.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only say what would be deleted.")] = False,
    json_: Json = False,
) -> None:
    """Give disk back: models that no alias, tag or branch names, and that are not among the last. Never images or pools."""
    from flows.registry.disk import collect

    result = collect(_workspace(), keep, champions, yes)
    what = [f"  {line}" for line in result["lines"]] or ["  nothing"]
    text = ["no longer kept:", *what, f"{result['frees'] / 1e6:.1f} MB"]
    if not result["lines"]:
        text += ["all is kept"]
    elif yes:
        back = "`git checkout pools-vN`, `dvc checkout data/pools.dvc data/images.dvc`, `dvc repro`"
        text += ["deleted; images, pools and labels stay", f"a model comes back from its pools: {back}"]
    else:
        same = f"wbc gc --keep {keep}" + (f" --champions {champions}" if champions is not None else "")
        text += ["nothing was deleted", f"next: `{same} --yes` deletes this"]
    _emit(result, json_, "\n".join(text))


@app.command("demo")
def demo_command(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where the demo's workspace goes; default: a temporary folder.")
    ] = None,
    json_: Json = False,
) -> None:
    """All of it, small, on rendered cells: three cycles, then one HTTP request."""
    from flows.cli.demo import demo

    result = demo(directory)
    _emit(result, json_, json.dumps(result["answer"], indent=2))


if __name__ == "__main__":
    main()
