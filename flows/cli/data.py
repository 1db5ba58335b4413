"""Taking data in: `wbc init`, `status`, `ingest`, `raabin`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from wbc_model.cells.conflicts import Conflict
    from wbc_model.cells.rejections import Rejection
from flows.cli.command import DATA_FORMS, Json, app, emit, here, writing_here
from wbc_model.core.errors import counted

SPLIT_OF: Final = {"validation": "val", "test": "test"}
MOST_ROWS: Final = 10  # that are named one by one where they are refused


@app.command("init")
def init_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make a workspace.")], json_: Json = False
) -> None:
    """Make a new workspace: git, DVC, dvc.yaml, params.yaml."""
    from flows.workspace import init_workspace

    made = init_workspace(directory)
    wrote = f"wrote {', '.join(made.wrote)}" if made.wrote else "nothing was missing"
    text = "\n".join([f"workspace {made.workspace}: {wrote}", *made.notes])
    emit({"workspace": made.workspace, "wrote": made.wrote, "notes": made.notes}, json_, text, made.workspace)


@app.command("status")
def status_command(json_: Json = False) -> None:
    """Pools, what waits and for whom, the last run and failures, the champion, disk, and the next command."""
    from flows.cli.status import status, status_text

    result = status(here())
    emit(result, json_, status_text(result))


@app.command("ingest")
def ingest_command(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=f"Images and their labels. {DATA_FORMS}",
        ),
    ],
    source: Annotated[str | None, typer.Option(help="Name written beside every cell; default: the manifest's name.")] = None,
    list_conflicts: Annotated[
        bool, typer.Option("--list-conflicts", help="Take the rest in, however many rows disagree with labels in the pools.")
    ] = False,
    json_: Json = False,
) -> None:
    """Take images and labels into the image store and the pools. Nothing that is there already changes.

    Exit code 3 when some rows were unusable, or disagree with a label in the pools: data/conflicts.csv has these.
    """
    from flows.shards.cluster import spread
    from flows.workspace import ensure_dvc
    from wbc_model.acquisition.queue import first_query
    from wbc_model.cells.ingest import ingest
    from wbc_model.params import read_params
    from wbc_model.sources.opened import open_source

    workspace = here()
    params = read_params(workspace / "params.yaml")
    with writing_here(workspace, "ingest"), open_source(data) as origin, spread(params.retrain):
        ensure_dvc(workspace)
        report = ingest(origin, workspace / "data", params, source, list_conflicts=list_conflicts, first_query=first_query)
    wrote = ["data/images", "data/pools", "data/oracle.csv", "data/rejected.csv", "data/quarantine.csv"]
    wrote += ["data/conflicts.csv"] if report.conflicts else []
    lines = [
        f"{counted(report.rows, 'row')}{f' ({report.read_as})' if report.read_as else ''}: "
        + ", ".join(f"{count} new in {name}" for name, count in report.added.items()),
        f"{report.known} known already; pools now: " + ", ".join(f"{name} {count}" for name, count in report.pools.items()),
        *([f"{counted(report.answered, 'cell')} of the pools got the label that was missing"] * bool(report.answered)),
        *([f"{counted(report.grouped, 'cell')} of the pools got the group that was missing"] * bool(report.grouped)),
        *_set_aside(workspace),
        *_lacking(report.pools),
        *_split_groups(report.split_groups),
        *_refused(report.rejections),
        *conflict_lines(report.conflicts),
        "not in use: " + (", ".join(f"{count} {reason}" for reason, count in report.reasons.items()) or "none"),
        f"wrote {', '.join(wrote)}",
    ]
    emit({**report.to_dict(), "wrote": wrote}, json_, "\n".join(lines), workspace)
    if report.refused:
        raise typer.Exit(3)


def _refused(rejections: "list[Rejection]") -> list[str]:
    """The rows that are not in use, or what is wrong with so many of them: nobody reads ten thousand lines."""
    from wbc_model.cells.rejections import not_used_lines

    if len(rejections) > MOST_ROWS:
        return [*not_used_lines(rejections), "data/rejected.csv names every row"]
    return [f"  {entry.reason}: {entry.path}{f' ({entry.detail})' if entry.detail else ''}" for entry in rejections]


def _split_groups(count: int) -> list[str]:
    """Why rows of these groups are refused, and the way on."""
    there = counted(count, "group has", "groups have")
    way = "no row of them is taken; `Groups that come later` in docs/labelling.md names the way on"
    return [f"{there} cells in the pools on more than one side: {way}"] if count else []


def _lacking(pools: dict[str, int]) -> list[str]:
    """What a training stops at later, as after a delivery that has train and test only: nothing that is in a pool leaves it."""
    empty = [name for name in ("validation", "test") if not pools[name]]
    if not empty or not pools["labelled"]:
        return []
    way = f"ingest labelled cells with the split {' or '.join(SPLIT_OF[name] for name in empty)}, or with none"
    return [f"no cell is for {' or '.join(empty)}, and no model is trained without: {way}"]


def _set_aside(workspace: Path) -> list[str]:
    """Why a cell that came with a label is unlabelled."""
    from wbc_model.cells.pools import Pools
    from wbc_model.cells.tables import read_table

    oracle = workspace / "data/oracle.csv"
    known = set(read_table(oracle, ["sha256", "label"])["sha256"]) if oracle.exists() else set()
    count = len(known.intersection(Pools.read(workspace / "data/pools", check=False).frames["unlabelled"]["sha256"]))
    asks = "`wbc retrain` takes those that the model asks for, `wbc retrain --until 1` takes all"
    return [f"the labels of {count} unlabelled cells are set aside: {asks}"] if count else []


def conflict_lines(conflicts: "list[Conflict]") -> list[str]:
    """Who disagrees with whom, a person's labels first, and the command that decides."""
    named = sorted(conflicts, key=lambda one: not one.by_a_person)[:20]
    lines = [
        f"  {one.row} of {one.source} says {one.other}, {one.path} is labelled {one.label} by {one.labelled_by}: "
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
        lines.append(
            f"{counted(len(report.unnamed), 'file')} without a smear's name at the beginning, the first: {report.unnamed[0]}"
        )
    lines += [f"warning: {line}" for line in report.warnings]
    lines.append(f"wrote {', '.join(map(str, report.wrote))}")
    following = f"next: `{shlex.join(['wbc', 'ingest', str(report.wrote[0])])}` takes one of them into the pools"
    emit(report.to_dict(), json_, "\n".join([*lines, following]))
