"""The routes of reports: list, read, correct, put right, withdraw and reinstate, sign, as FHIR and as PDF.

They need a store. Two people may work on one report: every answer carries the report's version as ETag. A change must name in
If-Match the version that the person saw; `*` changes whatever is there. Where the report was changed meanwhile the answer is 412.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Path, Query
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from serving.contract.names import NAME
from serving.contract.problems import Problem, described
from serving.contract.report_schemas import (
    CorrectionRequest,
    PatchRequest,
    ReinstatementRequest,
    RemovalRequest,
    ReportAnswer,
    ReportDelta,
    ReportList,
    ReportRemoval,
    SignatureRequest,
    UndoRequest,
    WithdrawalRequest,
    withdrawal,
)
from serving.contract.schemas import ModelName
from serving.contract.site import Site
from serving.contract.specimen import MOST_IMAGES, SPECIMEN_PATTERN
from serving.formats import fhir
from serving.http.access import ADMIN, REVIEW, who
from serving.http.deeds import PARAMETER, Done, carry_out
from serving.http.limits import heavy
from serving.http.preview import png
from serving.http.running import Kept
from serving.http.upload import read_json
from serving.reports.answers import delta, summary, whole
from serving.reports.errors import NoSuchReport
from serving.reports.kept_images import images_of
from serving.reports.listing import Filter, Wanted, listed
from serving.reports.review import Action, Person, correct, find, follow, put_right, reinstate, sign, undo, withdraw
from serving.reports.tables import Report
from serving.upkeep.removal import remove
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import ImageRejected

IMAGE_SIDE: Final = 1024
IF_MATCH: Final = r'^("[0-9]{1,9}"|[*])$'
_ID: Final = re.compile(r"[0-9a-f]{32}")


OF_REPORTS: Final[dict[int | str, dict[str, Any]]] = {
    404: described("No such report; or this service keeps none"),
    422: described("A parameter or a field that is missing, unknown or of the wrong kind"),
    503: described("The store cannot be reached; try again"),
}
router = APIRouter(prefix="/reports", dependencies=REVIEW, responses=OF_REPORTS)
CHANGES: Final[dict[int | str, dict[str, Any]]] = {
    408: described("The body did not arrive in time"),
    409: described("Not possible in the state that the report is in; `detail` says why"),
    410: described("The call was done under this Idempotency-Key, and its report was removed since"),
    412: described("The report was changed since the version that If-Match names"),
    413: described("The body is too large"),
    415: described("Not application/json"),
    428: described("If-Match is missing"),
}
ReportId = Annotated[str, Path(alias="id", description="The report's id, 32 hexadecimal digits.")]
Index = Annotated[int, Path(description="The cell's place in the report, from 0.")]
# Not declared as required: without it the answer is 428, not 422. `change_of` writes it into the document.
IfMatch = Annotated[str | None, Header(alias="If-Match", include_in_schema=False)]


def no_store() -> Problem:
    """404."""
    return Problem(404, "no-store", "No store", "This service keeps no reports: WBC_STORE_URL is not set.")


def kept_of(request: Request) -> Kept:
    """What the service keeps; raises Problem 404 where it keeps nothing."""
    kept: Kept | None = request.app.state.running.kept
    if kept is None:
        raise no_store()
    return kept


def _site(request: Request) -> Site:
    site: Site = request.app.state.running.site
    return site


def action_of(
    request: Request, report_id: str, if_match: str | None, *, by: str, amend: bool = False, reason: str = ""
) -> Action:
    """What a person asks of a report; raises Problem for a bad If-Match, NoSuchReport for what is no id."""
    expected = _expected(if_match)
    return Action(checked(report_id), Person(by, request.state.caller), expected, amend, reason)


def checked(report_id: str) -> str:
    """The id, where it can be one: PostgreSQL does not take every text."""
    if not _ID.fullmatch(report_id):
        raise NoSuchReport
    return report_id


def _find(request: Request, report_id: str) -> Report:
    return find(kept_of(request).store, checked(report_id))


def _expected(if_match: str | None) -> int | None:
    """The version that If-Match names, None for `*`."""
    if if_match is None:
        detail = "Send the version that you saw as If-Match, as the ETag of the report gave it; or * to change whatever is there."
        raise Problem(428, "if-match-missing", "Precondition required", detail)
    if not re.fullmatch(IF_MATCH[1:-1], if_match):
        detail = 'The header If-Match takes one version of the report, such as "3", or *.'
        raise Problem(422, "bad-parameter", "Parameter not accepted", detail, parameter="If-Match")
    return None if if_match == "*" else int(if_match.strip('"'))


def change_of(kind: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI document says of a change: its body, which `read_json` reads, the version it needs, a short answer."""
    meaning = 'The version that the person saw, as the ETag of the report gave it, such as "3"; * for whichever is there.'
    header = {"name": "If-Match", "in": "header", "required": True, "description": meaning}
    meaning = "`return=minimal`: answer only with what the call changed (ReportDelta)."
    prefer = {"name": "Prefer", "in": "header", "required": False, "description": meaning, "schema": {"type": "string"}}
    body = {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}
    return {"parameters": [{**header, "schema": {"type": "string", "pattern": IF_MATCH}}, prefer, PARAMETER], "requestBody": body}


def _answer(report: Report, site: Site) -> Response:
    headers = {"ETag": f'"{report.version}"'}
    return Response(whole(report, site).model_dump_json(), headers=headers, media_type="application/json")


def _wants_little(request: Request) -> bool:
    """Whether the client asks for what changed only (RFC 7240)."""
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(one.partition(";")[0].replace(" ", "") in ("return=minimal", 'return="minimal"') for one in preferences)


async def changed(
    request: Request,
    asked: BaseModel,
    change: Callable[[], Report],
    cells: Callable[[Report], Iterable[int]] = lambda _: (),
) -> Response:
    """The answer to a change: made as a deed (serving/http/deeds.py). `cells` are those of which the audit log speaks."""
    little, site = _wants_little(request), _site(request)

    def work() -> Done:
        report = change()
        told = list(cells(report))
        model = ModelName(name=report.model_name, version=report.model_version)
        answer = _little_answer(report, site, told) if little else _answer(report, site)
        return Done(answer, [report.cells[index].sha256 for index in told], model)

    return await carry_out(request, work, asked.model_dump_json(exclude_unset=True))


def _little_answer(report: Report, site: Site, cells: Sequence[int]) -> Response:
    headers = {"ETag": f'"{report.version}"', "Preference-Applied": "return=minimal"}
    # A signature changes no cell, whichever it is about.
    told = cells if report.status == "preliminary" else []
    return Response(delta(report, site, told).model_dump_json(), 200, headers, "application/json")


@router.get("", response_model=ReportList)
def reports(
    request: Request,
    status: Annotated[
        Wanted | None,
        Query(
            description="Which reports; `open` are those that wait for a signature: the default, where no other filter is given."
        ),
    ] = None,
    specimen_id: Annotated[str | None, Query(description="Only those of this specimen number.", pattern=SPECIMEN_PATTERN)] = None,
    model: Annotated[
        str | None, Query(description="Only those of this version of the model.", min_length=1, max_length=200, pattern=NAME)
    ] = None,
    signed: Annotated[bool | None, Query(description="Only those that were ever signed (true), or never (false).")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(description="Only reports older than this one: `next` of the answer before.")] = None,
) -> Response:
    """Reports, the newest first."""
    wanted = Filter(status, specimen_id, model, signed)
    found, following = listed(kept_of(request).store, wanted, limit, None if before is None else checked(before))
    answer = ReportList(reports=[summary(report, images) for report, images in found], next=following)
    return Response(answer.model_dump_json(), media_type="application/json")


@router.get("/{id}", response_model=ReportAnswer)
@heavy
def report(request: Request, report_id: ReportId) -> Response:
    """A report with its cells and all that people did."""
    return _answer(_find(request, report_id), _site(request))


@router.put(
    "/{id}/cells/{index}",
    response_model=ReportAnswer | ReportDelta,
    responses=CHANGES,
    openapi_extra=change_of(CorrectionRequest),
)
async def correct_cell(request: Request, report_id: ReportId, index: Index, if_match: IfMatch = None) -> Response:
    """A person's class for a cell: corrects or confirms it. The differential is counted again."""
    kept, site = kept_of(request), _site(request)
    asked = await read_json(request, CorrectionRequest)
    action = action_of(request, report_id, if_match, by=who(request, asked.by), amend=asked.amend)
    change = partial(correct, kept.store, action, index, asked.label, site)
    return await changed(request, asked, change, lambda _: [index])


@router.post(
    "/{id}/cells/{index}/undo",
    response_model=ReportAnswer | ReportDelta,
    responses=CHANGES,
    openapi_extra=change_of(UndoRequest),
)
async def undo_correction(request: Request, report_id: ReportId, index: Index, if_match: IfMatch = None) -> Response:
    """Take back the last correction of a cell that stands. The cell is as it was before, and both stay in the record."""
    kept, site = kept_of(request), _site(request)
    asked = await read_json(request, UndoRequest)
    action = action_of(request, report_id, if_match, by=who(request, asked.by), amend=asked.amend)
    change = partial(undo, kept.store, action, index, site)
    return await changed(request, asked, change, lambda _: [index])


@router.patch(
    "/{id}",
    response_model=ReportAnswer | ReportDelta,
    responses=CHANGES,
    openapi_extra=change_of(PatchRequest),
)
async def put_report_right(request: Request, report_id: ReportId, if_match: IfMatch = None) -> Response:
    """Put right what was said of the specimen, with a reason; on a signed report this is an amendment."""
    kept, site = kept_of(request), _site(request)
    asked = await read_json(request, PatchRequest)
    action = action_of(request, report_id, if_match, by=who(request, asked.by), amend=asked.amend, reason=asked.reason)
    return await changed(request, asked, partial(put_right, kept.store, action, asked.given(), site))


@router.post(
    "/{id}/withdrawal",
    response_model=ReportAnswer | ReportDelta,
    responses=CHANGES,
    openapi_extra=change_of(WithdrawalRequest),
)
async def withdraw_report(request: Request, report_id: ReportId, if_match: IfMatch = None) -> Response:
    """Withdraw the report, with a reason: it stays in the record, and nothing in it can be changed unless this is taken back."""
    kept = kept_of(request)
    asked = await read_json(request, WithdrawalRequest)
    action = action_of(request, report_id, if_match, by=who(request, asked.by), amend=asked.amend, reason=asked.reason)
    answer = await changed(request, asked, partial(withdraw, kept.store, action, _site(request)))
    if kept.sender is not None:
        kept.sender.wake()
    return answer


@router.delete(
    "/{id}/withdrawal",
    response_model=ReportAnswer | ReportDelta,
    responses=CHANGES,
    openapi_extra=change_of(ReinstatementRequest),
)
async def reinstate_report(request: Request, report_id: ReportId, if_match: IfMatch = None) -> Response:
    """Take the withdrawal back, with a reason: the report is preliminary, and must be signed again where it was signed. Both
    stay in the record."""
    kept = kept_of(request)
    asked = await read_json(request, ReinstatementRequest)
    action = action_of(request, report_id, if_match, by=who(request, asked.by), reason=asked.reason)
    return await changed(request, asked, partial(reinstate, kept.store, action))


@router.post(
    "/{id}/signature",
    response_model=ReportAnswer | ReportDelta,
    responses=CHANGES,
    openapi_extra=change_of(SignatureRequest),
)
async def sign_report(request: Request, report_id: ReportId, if_match: IfMatch = None) -> Response:
    """Sign the report as it is: final, or amended where it was signed before. Its HL7 message is on its way from then on."""
    kept, site = kept_of(request), _site(request)
    asked = await read_json(request, SignatureRequest)
    action = action_of(request, report_id, if_match, by=who(request, asked.by))
    await run_in_threadpool(follow, kept.store, action.report_id, site)  # then who saw the report before is told to look again
    change = partial(sign, kept.store, action, site)
    answer = await changed(request, asked, change, lambda signed: range(len(signed.cells)))
    if kept.sender is not None:
        kept.sender.wake()
    return answer


@router.delete(
    "/{id}",
    response_model=ReportRemoval,
    dependencies=ADMIN,
    responses={number: CHANGES[number] for number in (408, 409, 410, 413, 415)},
    openapi_extra={"requestBody": change_of(RemovalRequest)["requestBody"]},
)
async def remove_report(request: Request, report_id: ReportId) -> Response:
    """Remove the report with its cells, images, signatures and messages, for good. Who removed it and why is kept."""
    kept = kept_of(request)
    asked = await read_json(request, RemovalRequest)
    by = who(request, asked.by)

    def work() -> Done:
        removed = remove(kept.store, checked(report_id), by, asked.reason)
        record = removed.record
        answer = ReportRemoval(
            report_id=record.report_id, reason=record.reason, by=record.by, at=record.at, unsent=removed.unsent
        )
        said = {"by": by, "reason": asked.reason}  # the report, whose record would say it, is gone
        return Done(Response(answer.model_dump_json(), media_type="application/json"), said=said)

    return await carry_out(request, work, asked.model_dump_json())


@router.get("/{id}/cells/{index}/image", responses={200: {"content": {"image/png": {}}}}, response_class=Response)
@heavy
def cell_image(request: Request, report_id: ReportId, index: Index) -> Response:
    """A cell's image, drawn anew as PNG of 1024 pixels at most, where the site keeps images."""
    with kept_of(request).store.reading() as session:
        files = images_of(session, checked(report_id), [index] if 0 <= index < MOST_IMAGES else [])
        if not files and session.get(Report, report_id) is None:
            raise NoSuchReport
    if not files:
        raise Problem(404, "no-such-image", "No such image", "There is no such cell, or its image is not kept.")
    try:
        return Response(png(files[index], IMAGE_SIDE), media_type="image/png")
    except ImageRejected as error:  # kept by an earlier version that took more for one picture
        raise Problem(404, "no-such-image", "No such image", f"The image cannot be shown: {error.detail}.") from None


@router.get(
    "/{id}/fhir",
    responses={200: {"content": {fhir.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/FhirBundle"}}}}},
    response_class=Response,
)
@heavy
def report_fhir(
    request: Request,
    report_id: ReportId,
    bundle: Annotated[
        Literal["collection", "transaction"],
        Query(description="`transaction`: as a FHIR server stores it, by one POST; an amendment updates the same resources."),
    ] = "collection",
) -> Response:
    """The report as a FHIR R4 Bundle."""
    found = _find(request, report_id)
    answer = whole(found, _site(request))
    reported = fhir.Reported(
        model=answer.model,
        specimen_id=answer.specimen_id,
        issued=answer.changed_at,
        status=fhir.status_of(answer.status, signed=bool(answer.signatures)),
        performer=answer.signed_by,
        report_id=answer.id,
        withdrawn=withdrawal(answer),
        given_up=_given_up(answer),
    )
    make = fhir.transaction if bundle == "transaction" else fhir.bundle
    document = make(answer.differential, reported, _site(request))
    return Response(json.dumps(document), headers={"ETag": f'"{answer.version}"'}, media_type=fhir.MEDIA_TYPE)


def _given_up(answer: ReportAnswer) -> fhir.GivenUp:
    """Of what a Bundle of the report may have had Observations before, signed or not: its record says it."""
    absolute = any(change.what == "wbc_count" and change.from_value is not None for change in answer.changes)
    named = {label for one in answer.corrections for label in (one.from_label, one.to_label) if label is not None}
    return fhir.GivenUp(absolute, tuple(sorted(named - set(CLASSES))))


@router.get("/{id}/report.pdf", responses={200: {"content": {"application/pdf": {}}}}, response_class=Response)
@heavy
def report_as_pdf(request: Request, report_id: ReportId) -> Response:
    """The report as a page to print or to file."""
    from serving.formats.pdf import report_pdf  # half a second that the start of the service need not wait for

    answer = whole(_find(request, report_id), _site(request))
    headers = {"ETag": f'"{answer.version}"', "Content-Disposition": f'inline; filename="report-{answer.id}.pdf"'}
    return Response(report_pdf(answer, _site(request)), headers=headers, media_type="application/pdf")
