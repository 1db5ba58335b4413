"""The routes under `/v1`: cells in, their classes or a differential out. Those of reports and of the
labelling are in report_routes.py and labelling_routes.py beside it."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.contract.differential import Circumstances, Differential, count_differential
from serving.contract.negotiate import negotiate
from serving.contract.problems import Problem, described, too_large
from serving.contract.schemas import (
    CLASSIFY_BODY,
    DIFFERENTIAL_BODY,
    Classification,
    Classified,
    DifferentialAnswer,
    Me,
    NoneUsable,
    ProblemDocument,
    Result,
    ServedCard,
    SiteCard,
    SiteKind,
)
from serving.contract.site import Site
from serving.contract.specimen import FIELDS, REPORT_ID, Specimen, read_specimen
from serving.formats import fhir
from serving.http import deeds
from serving.http.access import ANY_KEY, CLASSIFY
from serving.http.deeds import HEADER, Done, note
from serving.http.labelling_routes import router as labelling_router
from serving.http.preview import router as preview_router
from serving.http.report_routes import checked, no_store
from serving.http.report_routes import router as reports_router
from serving.http.running import Kept, Running, running_of
from serving.http.upload import asked, busy, read_form
from serving.http.worklist_routes import router as worklist_router
from serving.inference.classify import Classifier, Seen
from serving.inference.reading import Reading
from serving.reports.answers import state
from serving.reports.errors import AnotherModel
from serving.reports.intake import Call, Taken, add_cells, refuse_too_many, same_specimen, take_in
from serving.reports.recount import AT_A_TIME, begun, model_of, read_again
from serving.reports.repeats import place, site_unknown
from serving.reports.review import Person
from serving.security.keys import SCOPES

JSON = "application/json"
MAX_EXPLAINED = 16  # a heat map costs as much as 82 images
EXPLAINED_WAITS_AS = 20  # images: three full requests for heat maps may wait at a time, not sixty


def _problem(description: str, *models: type[ProblemDocument]) -> dict[str, Any]:
    return described(description, *(model.__name__ for model in models))


router = APIRouter(
    prefix="/v1",
    responses={
        401: _problem("No accepted key in X-API-Key"),
        403: _problem("The key lacks the scope that this call needs"),
        429: _problem("The key has sent too many requests; try again after Retry-After seconds"),
    },
)


IMAGE_PROBLEMS: dict[int | str, dict[str, Any]] = {
    408: _problem("The body did not arrive in time"),
    413: _problem("Too many images, an image too large, or the body too large"),
    415: _problem("Not multipart/form-data"),
    422: _problem("A field that is unknown, missing or of the wrong kind; or no usable image (then with `results`)", NoneUsable),
    503: _problem("Too many images are waiting, or no model is loaded yet; try again after Retry-After seconds"),
}


def _none_usable(results: Sequence[Result]) -> Response | None:
    """The 422 of a request without any usable image."""
    if any(isinstance(result, Classified) for result in results):
        return None
    rejected = [result.model_dump() for result in results]
    detail = "The image could not be used; `results` says why."
    if len(results) > 1:
        detail = f"None of the {len(results)} images could be used; `results` says why for each."
    return Problem(422, "no-usable-image", "No usable image", detail, results=rejected).response()


@router.post(
    "/classify", dependencies=CLASSIFY, response_model=Classification, openapi_extra=CLASSIFY_BODY, responses=IMAGE_PROBLEMS
)
async def classify(request: Request, explain: bool = False) -> Response:
    """Classify 1 to 256 images of one leukocyte each. An unusable image is rejected in its place and spoils nothing else.

    With `explain` (16 images at most) each result has a heat map of where the network looks.
    """
    running = running_of(request)
    classifier = running.classifier
    try:
        async with read_form(request, running.limits, running.in_flight) as form:
            if explain and len(form.images) > MAX_EXPLAINED:
                raise too_large(f"At most {MAX_EXPLAINED} images per request can be explained.", MAX_EXPLAINED)
            with running.in_flight.also(len(form.images) * (EXPLAINED_WAITS_AS - 1) if explain else 0) as room:
                if not room:
                    raise busy()
                with running.metrics.reading(len(form.images)):
                    seen = await classifier.see(form.images, explain, measure=running.kept is not None, fingerprints=False)
                results = [one.result for one in seen]
    except ClientDisconnect:
        return Response(status_code=499)  # nobody is there to read it; the metrics count it
    running.metrics.results(results)
    if running.kept is not None and not explain:  # an explanation is of a cell that was seen before
        running.kept.recorder.take(seen, classifier.model)
    answer = _none_usable(results)
    if answer is None:
        answer = Response(Classification(model=classifier.model, results=results).model_dump_json(), media_type=JSON)
    note(request, [result.sha256 for result in results], classifier.model)
    return answer


@router.post(
    "/differential",
    dependencies=CLASSIFY,
    response_model=DifferentialAnswer,
    openapi_extra={**DIFFERENTIAL_BODY, "parameters": [deeds.PARAMETER]},
    responses={
        200: {"content": {fhir.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/FhirBundle"}}}},
        404: _problem("No such report as `report_id` names; or this service keeps none"),
        406: _problem("The Accept header allows neither JSON nor FHIR"),
        409: _problem(
            "The report that `report_id` names was signed or withdrawn, is of another specimen, or expects fewer images; "
            "or the first call with this Idempotency-Key is under way"
        ),
        410: _problem("The call was done under this Idempotency-Key, and its report was removed since"),
        **IMAGE_PROBLEMS,
    },
)
async def differential(request: Request) -> Response:
    """The 5-part differential of one specimen's cells, 1 to 256 images of one leukocyte each; as JSON or as a FHIR R4 Bundle.

    An image that came before, in this request or in the report that it adds to, is rejected as a duplicate: a cell counts once.
    """
    running = running_of(request)
    classifier, again = running.classifier, None
    media_type = negotiate(request.headers.getlist("accept"), (JSON, fhir.MEDIA_TYPE))
    try:
        async with read_form(request, running.limits, running.in_flight, FIELDS) as form:
            specimen, report_id = read_specimen(form.texts), form.texts.get(REPORT_ID)
            async with deeds.begun(request, *asked(form)) as deed:
                if deed.known is not None:
                    return deed.known
                if report_id is None:
                    refuse_too_many(len(form.images), specimen)
                else:
                    classifier, again = await _model_for(running, report_id)
                with running.metrics.reading(len(form.images)):
                    seen = await classifier.see(form.images, measure=running.kept is not None)
                results = [one.result for one in seen]
                digests = [result.sha256 for result in results]
                note(request, digests, classifier.model)
                if report_id is None and _is_all(running, specimen, len(results)) and (refused := _none_usable(results)):
                    running.metrics.results(results)
                    return refused
                reading = Reading.of(classifier, seen, form.images)

                def work() -> Done:
                    if report_id is None:
                        document = _count(running, reading, specimen)
                    else:
                        call = Call(_caller(request), HEADER not in request.headers, again)
                        document = _extend(running, report_id, reading, specimen, call)
                    running.metrics.results(document.results)
                    if running.kept is not None:
                        running.kept.recorder.take(seen, classifier.model)
                    return Done(_differential_response(document, media_type, running.site), digests, document.model)

                return await deed.carry_out(work)
    except ClientDisconnect:
        return Response(status_code=499)


async def _model_for(running: Running, report_id: str) -> tuple[Classifier, Mapping[int, Seen] | None]:
    """The model for images that are added to a report, and what it says again of the report's images where another began it.

    The report's own model answers where it serves still, or is held for want of kept images. Else the one that serves answers,
    if it can count the whole report again. Raises Problem 404 where no reports are kept, NoSuchReport, and AnotherModel.
    """
    kept, classifier = running.kept, running.classifier
    if kept is None:
        raise no_store()
    before = await run_in_threadpool(begun, kept.store, checked(report_id))
    if before.model == classifier.model:
        return classifier, None
    if not before.all_kept:
        held = running.earlier(before.model)
        if held is None:
            raise AnotherModel(before.model, classifier.model, report_id)
        return held, None
    with running.in_flight.also(min(len(before.places), AT_A_TIME)) as room:
        if not room:
            raise busy()
        return classifier, await read_again(kept.store, report_id, before.places, classifier)


def _caller(request: Request) -> Person:
    """Whose key it came with, else the key's name: no `by` comes with images."""
    caller: str = request.state.caller
    return Person(request.state.person or caller, caller)


def _is_all(running: Running, specimen: Specimen, images: int) -> bool:
    """Whether nothing will be added to these images, so that a request without a usable one makes no report."""
    return running.kept is None or specimen.expected_images is None or specimen.expected_images <= images


def _count(running: Running, reading: Reading, specimen: Specimen) -> DifferentialAnswer:
    if running.kept is not None:
        return _kept_answer(running, running.kept, take_in(running.kept.store, reading, specimen, running.site))
    placed = place(reading.seen)
    cells = [result for result in placed.results if isinstance(result, Classified)]
    counted = count_differential(
        [cell.label for cell in cells],
        reading.confusion,
        running.site,
        Circumstances(
            wbc_count=specimen.wbc_count,
            to_review=sum(cell.review.required or running.site.review_before_signature == "all" for cell in cells),
            site_unknown=site_unknown([result.model_dump() for result in placed.results], reading.false_alarms),
            rendered=reading.rendered,
        ),
    )
    return DifferentialAnswer(model=reading.model, specimen_id=specimen.specimen_id, differential=counted, results=placed.results)


def _extend(running: Running, report_id: str, reading: Reading, specimen: Specimen, call: Call) -> DifferentialAnswer:
    """Add the cells to a report: the answer about the whole report, with the `results` of this request."""
    if running.kept is None:
        raise no_store()
    return _kept_answer(running, running.kept, add_cells(running.kept.store, report_id, reading, specimen, running.site, call))


def _kept_answer(running: Running, kept: Kept, taken: Taken) -> DifferentialAnswer:
    report = taken.report
    return DifferentialAnswer(
        model=model_of(report),
        report_id=report.id,
        specimen_id=report.specimen_id,
        differential=Differential.model_validate(report.differential),
        results=taken.placed.results,
        positions=taken.placed.positions,
        report=state(report, running.site),
        same_specimen=same_specimen(kept.store, report),
        recounted=taken.recounted,
    )


def _differential_response(answer: DifferentialAnswer, media_type: str, site: Site) -> Response:
    headers = {"Vary": "Accept"}
    if media_type == JSON:
        return Response(answer.model_dump_json(), headers=headers, media_type=media_type)
    reported = fhir.Reported(
        model=answer.model,
        specimen_id=answer.specimen_id,
        issued=datetime.now(UTC),
        status="preliminary",
        report_id=answer.report_id,
    )
    document = fhir.bundle(answer.differential, reported, site)
    return Response(json.dumps(document), headers=headers, media_type=media_type)


router.include_router(worklist_router)
router.include_router(reports_router)
router.include_router(preview_router)
router.include_router(labelling_router)


@router.get("/model", response_model=ServedCard, dependencies=ANY_KEY)
async def model(request: Request) -> Response:
    """The card of the model that answers: where it came from, how it was calibrated, how well it did."""
    card = ServedCard.of(running_of(request).classifier.card)
    return Response(card.model_dump_json(exclude={"cells"}), media_type=JSON)


@router.get("/me", response_model=Me, dependencies=ANY_KEY)
async def me(request: Request) -> Response:
    """Whose key this is, and what it may do: by this a page knows who is signed in."""
    state = request.state
    scopes: list[str] = [scope for scope in SCOPES if scope in state.scopes]
    return Response(Me(key=state.caller, person=state.person or None, scopes=scopes).model_dump_json(), media_type=JSON)


@router.get("/site", response_model=SiteCard, dependencies=ANY_KEY)
async def site(request: Request) -> Response:
    """What a page has to know of the site: its further kinds with their keys, and how large a pixel is."""
    of = running_of(request).site
    kinds = [SiteKind.model_validate(kind, from_attributes=True) for kind in of.labelling.further_kinds]
    card = SiteCard(
        name=of.name,
        language=of.language,
        minimum_cells=of.minimum_cells,
        pixel_um=of.labelling.pixel_um,
        further_kinds=kinds,
    )
    return Response(card.model_dump_json(), media_type=JSON)


@router.get("/openapi.json", include_in_schema=False, dependencies=ANY_KEY)
async def openapi(request: Request) -> dict[str, Any]:
    """This interface as an OpenAPI document."""
    app: FastAPI = request.app
    return app.openapi()
