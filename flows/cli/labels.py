"""The label store: `wbc labels`."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows.cli.command import Json, emit, here, labels_app, writing_here
from flows.cli.data import conflict_lines
from wbc_model.core.errors import counted


@labels_app.command("export")
def labels_export_command(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .csv, or .json for Label Studio tasks.")],
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Put the image files there too, named by rank.")] = None,
    with_predictions: Annotated[
        bool, typer.Option("--with-predictions", help="Show what the model thinks; a reader who sees it tends to agree.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write the cells that await a label, without what the model thinks of them."""
    from flows.labels import export_queue

    count = export_queue(here(), out, images, with_predictions)
    wrote = [str(out), *([str(out.with_suffix(".xml"))] if out.suffix == ".json" else []), *([str(images)] if images else [])]
    unseen = count and out.suffix.casefold() == ".csv" and images is None and not with_predictions
    hint = "\nthe sheet names each cell by its image file: --images DIR writes those, too" if unseen else ""
    following = f"{hint}\nnext: {_labelling(out)}" if count else ""
    emit(
        {"cells": count, "wrote": wrote},
        json_,
        f"{counted(count, 'cell awaits', 'cells await')} a label\nwrote {', '.join(wrote)}{following}",
    )


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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with sha256 and label, or an export of Label Studio.")],
    annotator: Annotated[str, typer.Option(help="Who gave the labels that do not say.")] = "",
    json_: Json = False,
) -> None:
    """Take in answers that people gave; a later one supersedes an earlier. Exit code 3 when some rows were refused."""
    from flows.labels import import_labels
    from flows.retraining.people import leave_queue
    from flows.state import label_cycle

    workspace = here()
    result = import_labels(workspace, file, label_cycle(workspace), annotator)
    awaited = counted(result["awaited"], "cell still awaits", "cells still await")
    lines = [
        f"{counted(result['labels'], 'label')}: {result['new']} new, {result['known']} known; {awaited} one",
        *_beside_labels(result),
        *(f"  refused: {one['place']}: {one['reason']}" for one in result["refused"]),
        *_out_of_date(workspace, result),
        *_waits(result),
        *filter(None, [leave_queue(workspace) if result["new"] else ""]),
        f"wrote {', '.join(result['wrote']) or 'nothing'}",
    ]
    emit(result, json_, "\n".join(lines), workspace)
    if result["refused"]:
        raise typer.Exit(3)


def _beside_labels(result: Mapping[str, Any]) -> list[str]:
    """What came that is no new label of a class: other answers, corrections, and cells that nobody answered for."""
    why = {"unsure": "somebody is unsure", "skipped": "skipped", "predicted": "only a model has spoken, which is no answer"}
    asked = ", ".join(f"{result[name]} {words}" for name, words in why.items() if result[name])
    others, known = result["none_of_five"], result["labels"] and result["labels"] == result["known"] and not result["refused"]
    lines = {
        f"{counted(others, 'cell')} none of the five classes: out of use, not asked again": others,
        f"{result['corrected']} supersede another label, {result['held_out']} of them in validation or test": result["corrected"],
        f"without an answer: {asked}": asked,
        "nothing changed: all of it is known": known,
    }
    return [line for line, there in lines.items() if there]


def _waits(result: Mapping[str, Any]) -> list[str]:
    """What to know of labels that came while somebody works on the pools."""
    busy = result["waits_for"]
    return [f"they wait: {busy} works on the pools as they are, and the next round begins with these labels"] if busy else []


@labels_app.command("decide")
def labels_decide_command(
    cell: Annotated[
        str | None, typer.Argument(metavar="[CELL]", help="Its path in the pools, or the first digits of its sha256.")
    ] = None,
    label: Annotated[
        str | None, typer.Argument(metavar="[LABEL]", help="What the cell is: a class, or what else the site names.")
    ] = None,
    all_: Annotated[
        Literal["pools", "manifest"] | None,
        typer.Option("--all", help="Settle every conflict by the label of the pools, or of the manifest."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="With --all: only the conflicts of this manifest.")] = None,
    by: Annotated[str, typer.Option(metavar="NAME", help="The person who decides.")] = "",
    why: Annotated[str, typer.Option(metavar="REASON", help="Kept in the log.")] = "",
    json_: Json = False,
) -> None:
    """Say what a cell is, in whatever pool it lies; without arguments list the conflicts that wait for a decision."""
    from flows.labels import conflicts, decide, decide_all
    from flows.state import label_cycle

    workspace = here()
    if (cell is None) != (label is None) or (cell is not None and all_ is not None):
        raise typer.BadParameter("give CELL and LABEL, or --all, or nothing to list the conflicts")
    if cell is not None and label is not None:
        result = decide(workspace, cell, label, by, why, label_cycle(workspace))
    elif all_ is not None:
        result = decide_all(workspace, all_, source, by, why, label_cycle(workspace))
    else:
        waiting = conflicts(workspace)
        emit({"conflicts": [vars(one) for one in waiting]}, json_, "\n".join(conflict_lines(waiting)) or "no conflict")
        return
    left = counted(result["conflicts"], "conflict waits", "conflicts wait")
    text = f"{result['new']} decided, {counted(result['corrected'], 'label')} changed; {left}"
    text += "\nnone of the five classes: the cell is out of use, and not asked again" if result["none_of_five"] else ""
    lines = [text, *_out_of_date(workspace, result), *_waits(result), f"wrote {', '.join(result['wrote'])}"]
    emit(result, json_, "\n".join(lines), workspace)


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

    workspace = here()
    if images is not None and export is None:
        raise typer.BadParameter("--images belongs to --export FILE")
    result: dict[str, Any] = {"wrote": []}
    if draw:
        with writing_here(workspace, "labels test"):
            result = fresh_cells.draw(workspace, draw)
    else:
        result |= fresh_cells.state(workspace)
    if export is not None:
        fresh_cells.export(workspace, export, images)
        result["wrote"] = [*result["wrote"], str(export), *([str(images)] if images else [])]
    lines = [f"{counted(result['drawn'], 'cell')} drawn, {result['labelled']} of them labelled by the oracle"] if draw else []
    lines += (
        ["they are more than you asked for: a group (a slide or patient) goes whole"] if draw and result["drawn"] > draw else []
    )
    limit = "" if result["max_comparisons"] == sys.maxsize else f" of {result['max_comparisons']}"  # none where gate.alpha is 0
    lines += [f"test pool: {counted(result['cells'], 'cell')}, compared on {counted(result['comparisons'], 'time')}{limit}"]
    lines += [result["asks"]] if result["asks"] else []
    lines += [f"{counted(result['awaited'], 'drawn cell awaits', 'drawn cells await')} a label"]
    if result["awaited"] and export is None:
        lines += ["`wbc labels test --export FILE.csv` writes them, `wbc labels import FILE.csv` takes their labels in"]
    lines += [f"wrote {', '.join(result['wrote'])}"] if result["wrote"] else []
    lines += [f"next: {_labelling(export)}"] if result["awaited"] and export is not None else []
    emit(result, json_, "\n".join(lines))


@labels_app.command("replay")
def labels_replay_command(json_: Json = False) -> None:
    """Take in labels that waited for others' work, and those of data/labels.csv that the pools do not know, after a merge say."""
    from flows.labels import replay, take_waiting

    workspace = here()
    with writing_here(workspace, "labels replay"):
        count = replay(workspace) + take_waiting(workspace)
    wrote = ["data/pools"] if count else []
    text = f"{counted(count, 'label')} replayed\nwrote {', '.join(wrote) or 'nothing'}"
    emit({"replayed": count, "wrote": wrote}, json_, text, workspace)


def _none_of_five(counts: Mapping[str, int]) -> list[str]:
    named = ", ".join(f"{answer} {count}" for answer, count in counts.items())
    return [f"none of the five classes, and out of use: {named}"] if named else []


@labels_app.command("status")
def labels_status_command(json_: Json = False) -> None:
    """How many labels there are, who gave them, how many are awaited."""
    from flows.labels import status
    from flows.retraining.people import stand

    workspace = here()
    standing = stand(workspace)
    worth = standing.worth.to_dict() if standing.worth else None
    readers = vars(standing.progress) if standing.progress and standing.progress.queue_id else None
    result = {**status(workspace), "next_step": standing.line, "gain": worth, "readers": readers}
    lines = [
        ", ".join(f"{name} {result[name]}" for name in ("labelled", "unlabelled", "validation", "test")),
        "labelled by: " + (", ".join(f"{name} {count}" for name, count in result["labelled_by"].items()) or "nobody"),
        "classes: " + ", ".join(f"{name} {count}" for name, count in result["classes"].items()),
        *_none_of_five(result["none_of_five"]),
        f"{counted(result['awaited'], 'cell of the queue awaits', 'cells of the queue await')} a label",
        *([worth["text"]] if worth else []),
        f"what happens next: {result['next_step']}",
        *([f"{counted(result['superseded'], 'label was', 'labels were')} superseded by later ones"] * bool(result["superseded"])),
        *(
            [f"{counted(result['conflicts'], 'conflict waits', 'conflicts wait')} for a decision: `wbc labels decide`"]
            * bool(result["conflicts"])
        ),
    ]
    emit(result, json_, "\n".join(lines), workspace)
