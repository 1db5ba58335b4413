"""The stages of the pipeline, as dvc.yaml calls them: `wbc validate`, `train`, `evaluate`, `query`, `package`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows.cli.command import DATA_FORMS, Json, app, emit, follow, rows_used, run_stage, scores_text
from wbc_model.core.errors import counted

Statistics = Literal["model", "data"]


@app.command("fingerprint", hidden=True)
def fingerprint_command(json_: Json = False) -> None:
    """Write models/code.json, the fingerprint of each stage's code."""
    from flows.pipeline.fingerprint import write_fingerprints

    values = run_stage("fingerprint", write_fingerprints)
    emit(values, json_, "wrote models/code.json")


@app.command("validate")
def validate_command(json_: Json = False) -> None:
    """Check the pools and the images; what must not be used goes into data/quarantine.csv."""
    from wbc_model.params import read_params

    def body(workspace: Path) -> dict[str, Any]:
        from flows.pipeline.checks import validate

        return validate(workspace, read_params(workspace / "params.yaml")).to_dict()

    report = run_stage("validate", body)
    report["wrote"] = ["data/quarantine.csv", "data/docs"]
    lines = [
        "in quarantine: " + (", ".join(f"{count} {reason}" for reason, count in report["quarantined"].items()) or "none"),
        "usable: " + ", ".join(f"{name} {count}" for name, count in report["usable"].items()),
        *(f"warning: {line}" for line in report["warnings"]),
        f"wrote data/quarantine.csv, {report['docs']}",
        "next: `wbc train`",
    ]
    emit(report, json_, "\n".join(lines))


@app.command("train")
def train_command(json_: Json = False) -> None:
    """Train on the labelled pool: models/candidate."""

    def body(workspace: Path) -> dict[str, Any]:
        from flows.pipeline.precision import slow_precision
        from flows.pipeline.stages import train
        from wbc_model.params import read_params

        if line := slow_precision(read_params(workspace / "params.yaml")):
            typer.echo(line, err=True)
        return train(workspace)

    result = run_stage("train", body)
    if result:  # of several devices only the first reports
        result["wrote"] = ["models/candidate", "models/history.csv"]
        text = (
            f"model {result['version']} from {counted(result['labels'], 'label')}, {counted(result['updates'], 'update')} "
            f"(best {result['best_update']}), validation accuracy {result['validation']['accuracy']:.2%}\n"
            + _uncalibrated_line(result["uncalibrated"])
            + f"wrote {', '.join(result['wrote'])}\nnext: `wbc evaluate`"
        )
        emit(result, json_, text)


def _uncalibrated_line(why: str) -> str:
    return f"warning: its probabilities are not calibrated: {why}; more validation cells help\n" if why else ""


@app.command("evaluate")
def evaluate_command(
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="A model directory.")] = None,
    data: Annotated[str | None, typer.Option(metavar="DATA", help=f"Labelled cells. {DATA_FORMS}")] = None,
    statistics: Annotated[
        Statistics,
        typer.Option(help="Batch normalisation by the model's statistics, or by those of --data: for a site it has never seen."),
    ] = "model",
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to put the plots of --model on --data.")] = None,
    json_: Json = False,
) -> None:
    """Evaluate the candidate on the test pool, or with --model and --data any model on any labelled data."""
    if (model is None) != (data is None):
        raise typer.BadParameter("--model and --data belong together")
    if model is None and statistics == "data":
        raise typer.BadParameter("--statistics data needs --model and --data")
    if model is not None and data is not None:
        from flows.pipeline.stages import evaluate_model
        from wbc_model.cells.rejections import Rejection, not_used_lines
        from wbc_model.sources.opened import open_source

        follow(model)
        with open_source(data) as origin:
            result = evaluate_model(model, origin, plots, statistics == "data")
        lines = [rows_used(result["split"], result["n"]), scores_text(result), *result["seen_before"]["warnings"]]
        lines += not_used_lines(Rejection(sha256="", **one) for one in result["rejected"])
        emit(result, json_, "\n".join([*lines, *([f"wrote {plots}"] if plots else [])]))
        return

    def body(workspace: Path) -> dict[str, Any]:
        from flows.pipeline.stages import evaluate

        return evaluate(workspace)

    result = run_stage("evaluate", body)
    following = "next: `wbc query` asks for the labels that help most; `wbc retrain` does all of it, and asks the gate"
    lines = [scores_text(result), *_flagged(result.get("out_of_distribution", {})), f"wrote {', '.join(result['wrote'])}"]
    emit(result, json_, "\n".join([*lines, following]))


def _flagged(found: dict[str, Any]) -> list[str]:
    """What the out-of-distribution score makes of cells that people call none of the five classes, beside the test pool's."""
    others, test = found.get("none_of_five", {}), found.get("test", {})
    if "flagged" not in others:
        return []
    low, high = others["interval"]
    share = f"{others['flagged']:.0%} ({low:.0%} to {high:.0%}) of {counted(others['n'], 'cell')}"
    return [f"out-of-distribution score: flags {share} none of the five classes, and {test['flagged']:.0%} of the test pool's"]


@app.command("query")
def query_command(
    count: Annotated[int | None, typer.Option(min=0, help="Cells to ask about; default: what retrain.until needs.")] = None,
    json_: Json = False,
) -> None:
    """Queue the unlabelled cells most worth a label: data/queue.csv."""

    def body(workspace: Path) -> dict[str, Any]:
        from flows.pipeline.stages import query
        from flows.retraining.people import note_nameless

        note_nameless(workspace)
        return query(workspace, count)

    result = run_stage("query", body)
    text = f"{result['cells']} of {result['pool']} unlabelled cells queued by {result['strategy']}\nwrote {result['wrote']}"
    if result["cells"]:
        following = "`wbc labels export FILE.csv` writes them for people (.json for Label Studio)"
    else:
        following = "`wbc query --count N` asks for N" if result["pool"] else "`wbc ingest DATA` takes more images in"
    emit(result, json_, f"{text}\nnext: {following}")


@app.command("package")
def package_command(json_: Json = False) -> None:
    """Build the Bento that serves the candidate, in int8 where that is as good: build/bento."""

    def body(workspace: Path) -> dict[str, Any]:
        from flows.pipeline.package import package

        return package(workspace)

    result = run_stage("package", body)
    int8 = "in int8" if result["int8"]["served"] else f"without int8: {'; '.join(result['int8']['reasons'])}"
    following = "next: `wbc retrain` asks the gate whether it becomes the champion"
    emit(result, json_, f"{int8}\n{_uncalibrated_line(result['uncalibrated'])}wrote {', '.join(result['wrote'])}\n{following}")
