"""What the store holds, as the JSON of serving/contract/report_schemas.py."""

from collections.abc import Iterable
from datetime import timedelta

from serving.contract.differential import Differential
from serving.contract.report_schemas import (
    OpinionStep,
    ReportAnswer,
    ReportCell,
    ReportChange,
    ReportComment,
    ReportCorrection,
    ReportDelta,
    ReportMessage,
    ReportOpinion,
    ReportSignature,
    ReportSummary,
)
from serving.contract.schemas import KeptImages, ModelName, ReportState, Status
from serving.contract.site import Site
from serving.reports.review import changed_cells
from serving.reports.signing import blocked, complete, standing
from serving.reports.tables import Cell, Change, Comment, Correction, Opinion, Report


def shown_status(report: Report) -> Status:
    """How a report stands; one that was withdrawn is nothing else."""
    return report.status if report.withdrawn_at is None else "withdrawn"


def signer(report: Report) -> str | None:
    """Who signed the report as it is."""
    return None if report.status == "preliminary" or report.withdrawn_at is not None else report.signatures[-1].by


def summary(report: Report, sent_images: int) -> ReportSummary:
    """A line about a report whose cells need not be loaded."""
    expected = report.expected_images
    return ReportSummary(
        id=report.id,
        version=report.version,
        status=shown_status(report),
        specimen_id=report.specimen_id,
        model=ModelName(name=report.model_name, version=report.model_version),
        created_at=report.created_at,
        changed_at=report.changed_at,
        cells=report.differential["cells"],
        to_review=report.differential["to_review"],
        expected_images=expected,
        sent_images=sent_images,
        complete=expected is None or sent_images >= expected,
        withdrawn=report.withdrawn_at is not None,
        signed_by=signer(report),
        comments=len(report.comments),
        asked=[one.of for one in opinions(report) if one.state == "open"],
    )


def state(report: Report, site: Site) -> ReportState:
    """How far a whole report is."""
    return ReportState(
        version=report.version,
        status=shown_status(report),
        expected_images=report.expected_images,
        sent_images=len(report.cells),
        complete=complete(report),
        to_review=report.differential["to_review"],
        withdrawn=report.withdrawn_at is not None,
        images=kept_images(report, site),
        blocked=blocked(report, site),
    )


def kept_images(report: Report, site: Site) -> KeptImages:
    """What is kept of a whole report's images."""
    keys = [cell.image_key for cell in report.cells if cell.has_image]
    days = None if site.keep_images is None else site.keep_images.days
    return KeptImages(
        kept=len(keys),
        encrypted=bool(keys) and all(keys),
        delete_after=report.created_at + timedelta(days=days) if keys and days is not None else None,
        deleted_at=report.images_deleted_at,
    )


def whole(report: Report, site: Site) -> ReportAnswer:
    """All that is known of a report."""
    decided = standing(report.corrections)
    return ReportAnswer(
        **dict(state(report, site)),
        id=report.id,
        specimen_id=report.specimen_id,
        model=ModelName(name=report.model_name, version=report.model_version),
        created_at=report.created_at,
        changed_at=report.changed_at,
        signed_by=signer(report),
        corrected=changed_cells(report),
        differential=_differential(report),
        cells=[_cell(cell, decided) for cell in report.cells],
        corrections=[_correction(one) for one in report.corrections],
        changes=[_change(one) for one in report.changes],
        signatures=[ReportSignature.model_validate(one, from_attributes=True) for one in report.signatures],
        messages=[ReportMessage.model_validate(one, from_attributes=True) for one in report.messages],
        comments=[_comment(one) for one in report.comments],
        opinions=opinions(report),
    )


def delta(report: Report, site: Site, cells: Iterable[int]) -> ReportDelta:
    """What the change that made this version of a report has changed, `cells` among it."""
    decided = standing(report.corrections)
    last = report.signatures[-1] if report.signatures else None
    return ReportDelta(
        **dict(state(report, site)),
        id=report.id,
        specimen_id=report.specimen_id,
        changed_at=report.changed_at,
        signed_by=signer(report),
        corrected=changed_cells(report),
        differential=_differential(report),
        cells=[_cell(report.cells[index], decided) for index in cells],
        corrections=[_correction(one) for one in report.corrections if one.version == report.version],
        changes=[_change(one) for one in report.changes if one.version == report.version],
        signature=None if last is None else ReportSignature.model_validate(last, from_attributes=True),
        messages=[ReportMessage.model_validate(one, from_attributes=True) for one in report.messages],
        comments=[_comment(one) for one in report.comments if one.version == report.version],
        opinions=opinions(report),
    )


def opinions(report: Report) -> list[ReportOpinion]:
    """The second opinions of a report, each with its steps in their order; the last step says how it stands."""
    steps: dict[int, list[Opinion]] = {}
    for one in report.opinions:
        steps.setdefault(one.id if one.request is None else one.request, []).append(one)
    return [
        ReportOpinion(
            id=request,
            of=taken[0].asked,
            state="open" if taken[-1].step == "asked" else taken[-1].step,
            steps=[OpinionStep.model_validate(one, from_attributes=True) for one in taken],
        )
        for request, taken in steps.items()
    ]


def _comment(one: Comment) -> ReportComment:
    return ReportComment(index=one.position, text=one.text, by=one.by, caller=one.caller, at=one.at)


def _differential(report: Report) -> Differential:
    """As it was counted last. Whether the model learned from drawn cells may have become known since."""
    return Differential.model_validate({**report.differential, "rendered": report.rendered})


def _cell(cell: Cell, decided: dict[int, Correction]) -> ReportCell:
    return ReportCell(
        index=cell.position,
        result=cell.result,  # type: ignore[arg-type]  # pydantic makes the model of it
        label=cell.label,
        by_person=cell.position in decided,
        has_image=cell.has_image,
    )


def _correction(one: Correction) -> ReportCorrection:
    return ReportCorrection(
        index=one.position,
        from_label=one.from_label,
        to_label=one.to_label,
        by=one.by,
        caller=one.caller,
        at=one.at,
        undo=one.undoes is not None,
    )


def _change(one: Change) -> ReportChange:
    return ReportChange.model_validate(one, from_attributes=True)
