"""The reports in the store of the service: `wbc reports`."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.command import Json, emit, reports_app
from flows.cli.service import audit_log, open_store
from flows.workspace import find_workspace
from wbc_model.core.errors import WbcError, counted

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
    for report, images in all_listed(open_store(), Filter(status, specimen, model, ever)):
        line, last = summary(report, images), report.signatures[-1] if report.signatures else None
        by = None if last is None else {"by": last.by, "at": last.at.isoformat()}
        found.append({**line.model_dump(mode="json"), "last_signature": by})
        cells = f"{counted(line.cells, 'cell'):>10}"
        words = [line.id, f"{line.status:11}", f"{line.created_at:%Y-%m-%d %H:%M} UTC", cells, line.model.version]
        words += [
            f"specimen {line.specimen_id or '-'}",
            "" if last is None else f"last signed by {last.by}, {last.at:%Y-%m-%d %H:%M} UTC",
        ]
        text.append("  ".join(words).rstrip())
    emit({"reports": found}, json_, "\n".join([*text, f"{len(found)} {'report' if len(found) == 1 else 'reports'}"]))


@reports_app.command("export")
def reports_export_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write: cells.csv and the images.")],
    signed: Annotated[bool, typer.Option("--signed", help="Only cells of reports that are signed.")] = False,
    json_: Json = False,
) -> None:
    """Cells with the label that a person gave, corrected or confirmed, as a manifest for `wbc ingest` and `wbc calibrate`."""
    from serving.upkeep.export import MANIFEST, export

    done = export(open_store(), out, signed)
    manifest = out / MANIFEST
    lines = [
        f"{counted(done.cells, 'cell')} that people labelled, {done.cells - done.confirmed} of them otherwise than the model"
    ]
    lines += [f"{done.no_image} left out, their images are not kept"] if done.no_image else []
    lines += [f"{done.none} left out, they were said to be no cell of the differential"] if done.none else []
    lines += [f"{done.superseded} left out, a later decision on the same file stands"] if done.superseded else []
    calibrate = f"wbc calibrate --model MODEL --data {shlex.quote(str(manifest))} --out DIR"
    lines += [f"wrote {out}", f"next: `wbc ingest {shlex.quote(str(manifest))}`, or `{calibrate}`"]
    emit({**done._asdict(), "wrote": str(out), "manifest": str(manifest)}, json_, "\n".join(lines))


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
    from serving.upkeep.removal import cells_of, remove_here, reports_of

    if (report is None) == (specimen is None):
        raise WbcError("give either a report's id or --specimen NUMBER")
    store = open_store()
    names = [str(report)] if specimen is None else reports_of(store, specimen)
    if not names:
        raise WbcError("there is no report of this specimen number")
    learned = _in_the_pools(cells_of(store, names))
    removed = remove_here(store, audit_log(None), names, by, reason)
    unsent, records = sum(one.unsent for one in removed), [one.record for one in removed]
    found = [{"report_id": one.report_id, "by": one.by, "reason": one.reason, "at": one.at.isoformat()} for one in records]
    lines = [*(f"removed {one.report_id}" for one in records), "backups made before this still hold it"]
    if learned:
        which = f"{learned} of its cells are in the pools of this workspace"
        lines.append(f"{which}: data/images and models learned from them are as they were, and so is their history")
    if unsent:
        waited = counted(unsent, "message that waited is", "messages that waited are")
        lines.append(f"{waited} never sent: where the hospital's system was told what is wrong, tell those who run it")
    emit({"removed": found, "in_pools": learned, "unsent": unsent}, json_, "\n".join(lines))


def _in_the_pools(cells: set[str]) -> int:
    """How many of these cells the pools of the workspace have; none outside one."""
    from wbc_model.cells.pools import Pools

    try:
        pools = find_workspace() / "data/pools"
    except WbcError:
        return 0
    return int(Pools.read(pools).table()["sha256"].isin(cells).sum()) if Pools.exist(pools) else 0
