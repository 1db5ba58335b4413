"""The routes of the worklist: search, comments, second opinions, and who looks at a report now; and of what the watch found."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from serving.contract.names import LINE, NAME
from serving.contract.problems import Problem
from serving.contract.report_schemas import (
    CommentRequest,
    OpinionAnswerRequest,
    OpinionRequest,
    Presence,
    PresenceRequest,
    ReportAnswer,
    ReportDelta,
    SearchRequest,
    TakenBackRequest,
    Worklist,
)
from serving.contract.schemas import People
from serving.contract.watching import Watch
from serving.http.access import REVIEW, who
from serving.http.limits import heavy
from serving.http.report_routes import (
    CHANGES,
    OF_REPORTS,
    IfMatch,
    ReportId,
    action_of,
    change_of,
    changed,
    checked,
    kept_of,
)
from serving.http.running import running_of
from serving.http.upload import read_json
from serving.reports.answers import summary
from serving.reports.errors import NoSuchReport
from serving.reports.listing import listed
from serving.reports.store import Store
from serving.reports.tables import Report
from serving.watch.overview import picture, watch
from serving.worklist.comments import comment
from serving.worklist.opinions import answer, ask, take_back
from serving.worklist.presence import Looking
from serving.worklist.search import Search

JSON = "application/json"
READS: dict[int | str, dict[str, Any]] = {number: CHANGES[number] for number in (408, 413, 415)}

router = APIRouter(dependencies=REVIEW, responses=OF_REPORTS)
Number = Annotated[int, Path(alias="number", description="The second opinion's `id`, as the report gives it.")]


@router.get("/people", response_model=People)
async def reviewers(request: Request) -> Response:
    """Who can be asked for a second opinion by name: the persons whose keys may review. Others can be asked, too."""
    found = running_of(request).keys.people("review")
    return Response(People(people=found).model_dump_json(), media_type=JSON)


@router.post(
    "/worklist",
    response_model=Worklist,
    responses=READS,
    openapi_extra={"requestBody": change_of(SearchRequest)["requestBody"]},
)
async def search_reports(request: Request) -> Response:
    """Reports, the newest first, by a part of the specimen number and by date; it changes nothing."""
    kept = kept_of(request)
    asked = await read_json(request, SearchRequest)
    wanted = Search(
        shelf=asked.shelf,
        specimen=asked.specimen,
        created_from=asked.created_from,
        created_before=asked.created_before,
        person=request.state.person or asked.person,
    )
    before = None if asked.before is None else checked(asked.before)
    found = await run_in_threadpool(_worklist, kept.store, running_of(request).looking, wanted, asked.limit, before)
    return Response(found.model_dump_json(), media_type=JSON)


def _worklist(store: Store, looking: Looking, wanted: Search, limit: int, before: str | None) -> Worklist:
    found, following = listed(store, wanted, limit, before)
    lines = [summary(report, images).model_copy(update={"here": looking.here(report.id)}) for report, images in found]
    return Worklist(reports=lines, next=following, counts=wanted.counts(store))


@router.put(
    "/reports/{id}/presence",
    response_model=Presence,
    responses=READS,
    openapi_extra={"requestBody": change_of(PresenceRequest)["requestBody"]},
)
async def look_at_report(request: Request, report_id: ReportId) -> Response:
    """Say that a person looks at the report, or has left it: it is forgotten after 45 seconds, and stands in no record."""
    store, looking = kept_of(request).store, running_of(request).looking
    request.state.unrecorded = True  # the audit log has who opened it; a line every 20 seconds says no more
    asked = await read_json(request, PresenceRequest)
    name = request.state.person or asked.by or request.state.caller
    version = await run_in_threadpool(_version, store, checked(report_id))
    if asked.left:
        looking.left(report_id, name)
    else:
        looking.looks(report_id, name)
    others = [one for one in looking.here(report_id) if one != name]
    return Response(Presence(here=others, version=version).model_dump_json(), media_type=JSON)


def _version(store: Store, report_id: str) -> int:
    with store.reading() as session:
        version = session.scalar(select(Report.version).where(Report.id == report_id))
    if version is None:
        raise NoSuchReport
    return version


@router.post(
    "/reports/{id}/comments",
    response_model=ReportAnswer | ReportDelta,
    responses=CHANGES,
    openapi_extra=change_of(CommentRequest),
)
async def comment_report(request: Request, report_id: ReportId, if_match: IfMatch = None) -> Response:
    """Say something of the report, or of one of its cells. It stays in the record, is in no result, and changes no signature."""
    kept = kept_of(request)
    asked = await read_json(request, CommentRequest)
    action = action_of(request, report_id, if_match, by=who(request, asked.by))
    return await changed(request, asked, partial(comment, kept.store, action, asked.text, asked.index))


@router.post(
    "/reports/{id}/opinions",
    response_model=ReportAnswer | ReportDelta,
    responses=CHANGES,
    openapi_extra=change_of(OpinionRequest),
)
async def ask_for_opinion(request: Request, report_id: ReportId, if_match: IfMatch = None) -> Response:
    """Ask another person for a second opinion. It is on that person's list until it is answered or taken back."""
    kept = kept_of(request)
    asked = await read_json(request, OpinionRequest)
    action = action_of(request, report_id, if_match, by=who(request, asked.by))
    return await changed(request, asked, partial(ask, kept.store, action, asked.of, asked.note))


@router.post(
    "/reports/{id}/opinions/{number}/answer",
    response_model=ReportAnswer | ReportDelta,
    responses=CHANGES,
    openapi_extra=change_of(OpinionAnswerRequest),
)
async def answer_opinion(request: Request, report_id: ReportId, number: Number, if_match: IfMatch = None) -> Response:
    """Who was asked answers; a further answer stands beside the first."""
    kept = kept_of(request)
    asked = await read_json(request, OpinionAnswerRequest)
    action = action_of(request, report_id, if_match, by=who(request, asked.by))
    return await changed(request, asked, partial(answer, kept.store, action, number, asked.text))


@router.delete(
    "/reports/{id}/opinions/{number}",
    response_model=ReportAnswer | ReportDelta,
    responses=CHANGES,
    openapi_extra=change_of(TakenBackRequest),
)
async def take_opinion_back(request: Request, report_id: ReportId, number: Number, if_match: IfMatch = None) -> Response:
    """Take back that a person was asked; both stay in the record."""
    kept = kept_of(request)
    asked = await read_json(request, TakenBackRequest)
    action = action_of(request, report_id, if_match, by=who(request, asked.by))
    return await changed(request, asked, partial(take_back, kept.store, action, number))


@router.get("/watch", response_model=Watch)
@heavy
def watched(request: Request) -> Response:
    """Whether the cells of each site are still as usual, and how right the model is in use; `wbc watch` finds it out."""
    return Response(watch(kept_of(request).store).model_dump_json(), media_type=JSON)


@router.get("/watch/{site:path}/pictures/{name}", responses={200: {"content": {"image/svg+xml": {}}}}, response_class=Response)
@heavy
def watch_picture(
    request: Request,
    site: Annotated[str, Path(max_length=200, pattern=LINE)],
    name: Annotated[str, Path(max_length=16, pattern=NAME)],
) -> Response:
    """A picture of a site's days, as SVG."""
    found = picture(kept_of(request).store, site, name)
    if found is None:
        raise Problem(404, "no-such-picture", "No such picture", "The watch has made no picture of this name for this site.")
    return Response(found, media_type="image/svg+xml")
