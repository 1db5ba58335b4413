"""The routes of reports: list, read, correct, sign, and the report as FHIR and PDF. They are there where a store is configured.

Two people may work on one report: every answer carries its version as ETag, and a change must name in If-Match the version that
the person saw (`*` changes whatever is there). One that was changed meanwhile answers 412.
"""

import asyncio
import io
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Self, TypeVar

from fastapi import APIRouter, Header, Path, Query
from pydantic import BaseModel, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import defer, selectinload
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from serving import fhir
from serving.access import REVIEW
from serving.audit import recorded
from serving.outbox import Sender
from serving.problems import Problem, bad_field, described, too_large
from serving.report_schemas import (
    WANTED,
    CorrectionRequest,
    ReportAnswer,
    ReportList,
    SignatureRequest,
    Wanted,
    summary,
    whole,
)
from serving.review import Person, correct, find, no_report, sign
from serving.schemas import ModelName
from serving.site import Site
from serving.store import Cell, Report, Store
from wbc_model.images import decode

T = TypeVar("T", bound=BaseModel)
BODY_BYTES: Final = 16 * 1024
IMAGE_SIDE: Final = 1024
IF_MATCH: Final = r'^("[0-9]{1,9}"|[*])$'
_ID: Final = re.compile(r"[0-9a-f]{32}")


class Kept:
    """What a service that keeps reports works with: the store, and where there is a receiver the thread that sends to it."""

    def __init__(self, store: Store, site: Site) -> None:
        self.store = store
        self.sender = Sender(store, site.hl7) if site.hl7 is not None else None

    @classmethod
    def from_environment(cls, site: Site) -> Self | None:
        """With the store that WBC_STORE_URL names; None where it names none."""
        store = Store.from_environment()
        return None if store is None else cls(store, site)

    def close(self) -> None:
        """End the sender and close the store."""
        if self.sender is not None:
            self.sender.close()
        self.store.close()


router = APIRouter(
    prefix="/reports",
    dependencies=REVIEW,
    responses={
        404: described("No such report; or this service keeps none"),
        422: described("A parameter or a field that is missing, unknown or of the wrong kind"),
        503: described("The store cannot be reached; try again"),
    },
)
CHANGES: Final[dict[int | str, dict[str, Any]]] = {
    408: described("The body did not arrive in time"),
    409: described("Not possible in the state that the report is in; `detail` says why"),
    412: described("The report was changed since the version that If-Match names"),
    413: described("The body is too large"),
    415: described("Not application/json"),
    428: described("If-Match is missing"),
}
ReportId = Annotated[str, Path(alias="id", description="The report's id, 32 hexadecimal digits.")]
Index = Annotated[int, Path(description="The cell's place in the report, from 0.")]
# Not declared as required: without it the answer is 428, not 422. `_change` writes it into the document.
IfMatch = Annotated[str | None, Header(alias="If-Match", include_in_schema=False)]


def no_store() -> Problem:
    """404."""
    return Problem(404, "no-store", "No store", "This service keeps no reports: WBC_STORE_URL is not set.")


def _kept(request: Request) -> Kept:
    kept: Kept | None = request.app.state.running.kept
    if kept is None:
        raise no_store()
    return kept


def _site(request: Request) -> Site:
    site: Site = request.app.state.running.site
    return site


def _person(request: Request, by: str) -> Person:
    return Person(by, request.state.caller)


def _checked(report_id: str) -> str:
    """The id, where it can be one: PostgreSQL does not take every text."""
    if not _ID.fullmatch(report_id):
        raise no_report()
    return report_id


def _find(request: Request, report_id: str) -> Report:
    return find(_kept(request).store, _checked(report_id))


def _expected(if_match: str | None) -> int | None:
    """The version that If-Match names, None for `*`."""
    if if_match is None:
        detail = "Send the version that you saw as If-Match, as the ETag of the report gave it; or * to change whatever is there."
        raise Problem(428, "if-match-missing", "Precondition required", detail)
    if not re.fullmatch(IF_MATCH[1:-1], if_match):
        detail = 'The header If-Match takes one version of the report, such as "3", or *.'
        raise Problem(422, "bad-parameter", "Parameter not accepted", detail, parameter="If-Match")
    return None if if_match == "*" else int(if_match.strip('"'))


async def _body(request: Request, kind: type[T]) -> T:
    """A small JSON body; Problem 415, 413, 408 or 422."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(
            415, "not-json", "Not application/json", "The body must be application/json.", {"Accept": "application/json"}
        )
    seconds, body = request.app.state.running.limits.read_seconds, b""
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES:
                    raise too_large(f"The body is larger than {BODY_BYTES:,} bytes.", BODY_BYTES)
    except TimeoutError:
        raise Problem(408, "too-slow", "Request timeout", f"The body did not arrive within {seconds} seconds.") from None
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "body"
        raise bad_field(field, f"{field}: {first['msg']}.") from None


def _change(kind: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI document says of a change: its body, which `_body` reads, and the version that it needs."""
    meaning = 'The version that the person saw, as the ETag of the report gave it, such as "3"; * for whichever is there.'
    header = {"name": "If-Match", "in": "header", "required": True, "description": meaning}
    body = {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}
    return {"parameters": [{**header, "schema": {"type": "string", "pattern": IF_MATCH}}], "requestBody": body}


def _answer(report: Report) -> Response:
    headers = {"ETag": f'"{report.version}"'}
    return Response(whole(report).model_dump_json(), headers=headers, media_type="application/json")


async def _changed(request: Request, report: Report, cells: Iterable[int]) -> Response:
    """The answer to a change of these cells, once it is in the audit log where there is one."""
    images, model = (
        [report.cells[index].sha256 for index in cells],
        ModelName(name=report.model_name, version=report.model_version),
    )
    return await recorded(request, images, model, _answer(report))


@router.get("", response_model=ReportList)
def reports(
    request: Request,
    status: Annotated[Wanted, Query(description="Which reports; `open` are those that wait for a signature.")] = "open",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(description="Only reports older than this one: `next` of the answer before.")] = None,
) -> Response:
    """Reports, the newest first."""
    kept = _kept(request)
    query = select(Report).where(Report.status.in_(WANTED[status])).order_by(Report.created_at.desc(), Report.id.desc())
    query = query.options(selectinload(Report.signatures), defer(Report.confusion)).limit(limit + 1)
    with kept.store.reading() as session:
        if before is not None:
            last = session.get(Report, _checked(before))
            if last is None:
                raise no_report()
            same_time = (Report.created_at == last.created_at) & (Report.id < last.id)
            query = query.where((Report.created_at < last.created_at) | same_time)
        found = list(session.scalars(query))
    following = found[limit - 1].id if len(found) > limit else None
    answer = ReportList(reports=[summary(report) for report in found[:limit]], next=following)
    return Response(answer.model_dump_json(), media_type="application/json")


@router.get("/{id}", response_model=ReportAnswer)
def report(request: Request, report_id: ReportId) -> Response:
    """A report with its cells and all that people did."""
    return _answer(_find(request, report_id))


@router.put(
    "/{id}/cells/{index}",
    response_model=ReportAnswer,
    responses=CHANGES,
    openapi_extra=_change(CorrectionRequest),
)
async def correct_cell(request: Request, report_id: ReportId, index: Index, if_match: IfMatch = None) -> Response:
    """A person's class for a cell: corrects or confirms it. The differential is counted again."""
    kept, site = _kept(request), _site(request)
    asked = await _body(request, CorrectionRequest)
    person, expected = _person(request, asked.by), _expected(if_match)
    change = (kept.store, _checked(report_id), index, asked.label, person, expected, asked.amend, site)
    return await _changed(request, await run_in_threadpool(correct, *change), [index])


@router.post(
    "/{id}/signature",
    response_model=ReportAnswer,
    responses=CHANGES,
    openapi_extra=_change(SignatureRequest),
)
async def sign_report(request: Request, report_id: ReportId, if_match: IfMatch = None) -> Response:
    """Sign the report as it is: final, or amended where it was signed before. Its HL7 message is on its way from then on."""
    kept, site = _kept(request), _site(request)
    asked = await _body(request, SignatureRequest)
    person, expected = _person(request, asked.by), _expected(if_match)
    signed = await run_in_threadpool(sign, kept.store, _checked(report_id), person, expected, site)
    if kept.sender is not None:
        kept.sender.wake()
    return await _changed(request, signed, range(len(signed.cells)))


@router.get("/{id}/cells/{index}/image", responses={200: {"content": {"image/png": {}}}}, response_class=Response)
def cell_image(request: Request, report_id: ReportId, index: Index) -> Response:
    """A cell's image, drawn anew as PNG of 1024 pixels at most, where the site keeps images."""
    found = _find(request, report_id)
    cell = found.cells[index] if 0 <= index < len(found.cells) else None
    if cell is None or not cell.has_image:
        raise Problem(404, "no-such-image", "No such image", "There is no such cell, or its image is not kept.")
    with _kept(request).store.reading() as session:
        data = session.scalar(select(Cell.image).where(Cell.report_id == found.id, Cell.position == cell.position))
    image, _ = decode(bytes(data or b""), at_least=IMAGE_SIDE)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    drawn = io.BytesIO()
    image.save(drawn, "PNG")
    return Response(drawn.getvalue(), media_type="image/png")


@router.get(
    "/{id}/fhir",
    responses={200: {"content": {fhir.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/FhirBundle"}}}}},
    response_class=Response,
)
def report_fhir(request: Request, report_id: ReportId) -> Response:
    """The report as a FHIR R4 Bundle."""
    found = _find(request, report_id)
    answer = whole(found)
    document = fhir.bundle(
        answer.differential,
        model=answer.model,
        specimen_id=answer.specimen_id,
        issued=answer.changed_at,
        status=answer.status,
        performer=answer.signed_by,
        site=_site(request),
        report_id=answer.id,
    )
    return Response(json.dumps(document), headers={"ETag": f'"{answer.version}"'}, media_type=fhir.MEDIA_TYPE)


@router.get("/{id}/report.pdf", responses={200: {"content": {"application/pdf": {}}}}, response_class=Response)
def report_as_pdf(request: Request, report_id: ReportId) -> Response:
    """The report as a page to print or to file."""
    from serving.pdf import report_pdf  # half a second that the start of the service need not wait for

    answer = whole(_find(request, report_id))
    headers = {"ETag": f'"{answer.version}"', "Content-Disposition": f'inline; filename="report-{answer.id}.pdf"'}
    return Response(report_pdf(answer, _site(request)), headers=headers, media_type="application/pdf")
