"""What stands in the way of a report's signature; derived from the record, for the service and for whoever asks before."""

from collections.abc import Container, Iterable

from sqlalchemy import select, update

from serving.contract.differential import RENDERED
from serving.contract.schemas import Block, ModelName
from serving.contract.site import Site
from serving.reports.errors import AlreadySigned, AlreadyWithdrawn
from serving.reports.store import Store
from serving.reports.tables import Cell, Correction, Report


def stand(corrections: Iterable[Correction]) -> list[Correction]:
    """Those that are no undo and were not undone, in their order."""
    corrections = list(corrections)
    undone = {one.undoes for one in corrections}
    return [one for one in corrections if one.undoes is None and one.id not in undone]


def standing(corrections: Iterable[Correction]) -> dict[int, Correction]:
    """By the position of a cell, the correction that its label comes from: only these cells were decided by a person."""
    return {one.position: one for one in stand(corrections)}


def waiting(cells: Iterable[Cell], decided: Container[int], site: Site) -> list[int]:
    """The positions of those counted cells that a person must still look at: none of the cells that are `decided`."""
    everyone = site.review_before_signature == "all"
    return [
        cell.position
        for cell in cells
        if cell.label is not None and cell.position not in decided and (everyone or cell.result["review"]["required"])
    ]


def complete(report: Report) -> bool:
    """Whether all images have come that the client means to send; one that never said how many has sent all."""
    return report.expected_images is None or len(report.cells) >= report.expected_images


def blocked(report: Report, site: Site) -> list[Block]:
    """All reasons why a whole report cannot be signed as it is; empty where it can."""
    if report.withdrawn_at is not None:
        return [Block(kind="withdrawn", detail=withdrawn(report.id))]
    if report.status != "preliminary":
        return [Block(kind="signed", detail="The report is signed and has not been changed since.")]
    found: list[Block] = []
    if not complete(report):
        sent, expected = len(report.cells), report.expected_images
        detail = f"{sent} of {expected} images have come. Send the rest, or put the number right (PATCH, expected_images)."
        found.append(Block(kind="incomplete", detail=detail))
    if not any(cell.label is not None and site.is_leukocyte(cell.label) for cell in report.cells):
        found.append(Block(kind="no_cells", detail="No image of the report counts as a leukocyte; there is nothing to sign."))
    if report.rendered:
        found.append(Block(kind="rendered_model", detail=RENDERED))
    if site.review_before_signature != "nothing" and (left := len(waiting(report.cells, standing(report.corrections), site))):
        must = "all cells" if site.review_before_signature == "all" else "the cells that are marked"
        which = f"{left} {'cell waits' if left == 1 else 'cells wait'} for a person: at this site {must} must be reviewed first."
        found.append(Block(kind="unreviewed", detail=f"{which} Correct or confirm each."))
    return found


def say_rendered(store: Store, model: ModelName) -> None:
    """Let all reports by a model that learned from drawn cells say so: those made before revision 0002 of the store do not.

    Signed ones, too: they cannot be signed again after an amendment. Raises SQLAlchemyError.
    """
    silent = (Report.model_name == model.name) & (Report.model_version == model.version) & ~Report.rendered
    with store.writing() as session:
        session.execute(update(Report).where(silent).values(rendered=True))


def models_unheard_of(store: Store) -> set[str]:
    """The versions of the models whose reports were made before revision 0002 of the store and are not marked: whether they
    learned from drawn cells only their cards can tell."""
    unsaid = Report.differential["rendered"].as_string().is_(None) & ~Report.rendered
    with store.reading() as session:
        return set(session.scalars(select(Report.model_version).where(unsaid).distinct()))


def withdrawn(report_id: str) -> str:
    """Why nothing in a withdrawn report can be changed, and the ways on."""
    back = f"DELETE /v1/reports/{report_id}/withdrawal"
    return f"The report was withdrawn, and nothing in it can be changed. Take the withdrawal back ({back}), or make a new report."


def refuse_withdrawn(report: Report) -> None:
    """Raises AlreadyWithdrawn for a report that was withdrawn: nothing can happen to it but that it is reinstated."""
    if report.withdrawn_at is not None:
        raise AlreadyWithdrawn(report.id)


def refuse_added_to(report: Report) -> None:
    """Raises AlreadyWithdrawn or AlreadySigned for a report that takes no more cells."""
    refuse_withdrawn(report)
    if report.signatures:
        raise AlreadySigned("add cells")
