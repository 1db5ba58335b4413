"""The HTTP interface: routes, and the layer around them that every request passes."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.contract.differential import Differential, count_differential
from serving.contract.problems import (
    Problem,
    answer_defect,
    answer_http,
    answer_parameter,
    answer_problem,
    answer_store,
    described,
    too_large,
    too_slow,
)
from serving.contract.report_schemas import state
from serving.contract.schemas import (
    CLASSIFY_BODY,
    DIFFERENTIAL_BODY,
    Classification,
    Classified,
    DifferentialAnswer,
    FhirBundle,
    ModelName,
    NoneUsable,
    ProblemDocument,
    Rejected,
    Result,
)
from serving.contract.site import Site, read_site
from serving.contract.specimen import FIELDS, REPORT_ID, Specimen, read_specimen
from serving.formats import fhir
from serving.http import deeds
from serving.http.access import ADMIN, ANY_KEY, CLASSIFY
from serving.http.deeds import HEADER, Cleaned, Done, note
from serving.http.limits import InFlight, Limits, RateLimit
from serving.http.metrics import METHODS, call_of, endpoint, exposition, process_metrics
from serving.http.negotiate import negotiate
from serving.http.preview import router as preview_router
from serving.http.report_routes import Kept, checked, no_store
from serving.http.report_routes import router as reports_router
from serving.http.upload import asked, busy, read_form
from serving.inference.classify import Classifier, Seen
from serving.inference.reading import Reading
from serving.page.static import CONTENT_SECURITY_POLICY, add_page
from serving.reports.intake import Call, Taken, add_cells, refuse_too_many, same_specimen, take_in
from serving.reports.listing import models_of_open_reports
from serving.reports.recount import AT_A_TIME, another_model, begun, model_of, read_again
from serving.reports.repeats import place, site_unknown
from serving.reports.signing import say_rendered
from serving.security.audit import AuditLog, outcome
from serving.security.hosts import Hosts
from serving.security.keys import ApiKeys
from serving.security.refusals import REFUSED, Refusals
from wbc_model import __version__
from wbc_model.core.model_card import ModelCard

_LOGGER = logging.getLogger("bentoml.wbc")  # BentoML sets up the log of what is called `bentoml`

JSON = "application/json"
DISCARD_SECONDS = 2.0
MAX_EXPLAINED = 16  # a heat map costs as much as 82 images
EARLIER_MODELS = 3  # in memory at most, beside the one that answers
EXPLAINED_WAITS_AS = 20  # images: three full requests for heat maps may wait at a time, not sixty
SECURITY_HEADERS = {
    b"content-security-policy": CONTENT_SECURITY_POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}


class Running:
    """What a started service works with; the routes find it in `request.app.state.running`."""

    def __init__(
        self,
        classifier: Classifier | None,
        keys: ApiKeys,
        limits: Limits,
        site: Site | None = None,
        audit: AuditLog | None = None,
        kept: Kept | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self._classifier = classifier
        self._earlier: list[Classifier] = []
        self.site = site or read_site()
        self.audit = audit
        self.kept = kept
        self.keys = keys
        self.hosts = hosts or Hosts.from_environment()
        self.limits = limits
        self.rate = RateLimit(limits.requests_per_minute)
        self.in_flight = InFlight(limits.in_flight_bytes, limits.waiting_images)
        self.metrics = process_metrics()
        self.refusals = audit.refusals if audit is not None else Refusals(forget=True)
        self.keys_in_use: set[tuple[str, str]] = set()  # callers and their Idempotency-Keys that are under way
        self.cleaned = Cleaned()

    @property
    def ready(self) -> bool:
        """Whether a model has been loaded and tried out."""
        return self._classifier is not None

    @property
    def classifier(self) -> Classifier:
        """The model in use. Ask once a request and hold on to it: another may take its place at any time.

        Raises Problem 503 while none is loaded.
        """
        if self._classifier is None:
            raise Problem(503, "not-ready", "Not ready", "No model is loaded yet; try again.", {"Retry-After": "2"})
        return self._classifier

    def install(self, classifier: Classifier) -> None:
        """Let a model answer from now on. Where images are not kept, the one before stays in memory for the reports that it has
        begun, and so do older ones as long as they have open reports."""
        if self.kept is not None and classifier.card.rendered:
            try:
                say_rendered(self.kept.store, classifier.model)
            except SQLAlchemyError as error:
                _LOGGER.error("the reports of drawn cells cannot be marked: %s", type(error).__name__)
        before, self._classifier = self._classifier, classifier
        if before is not None and self.kept is not None and not self.site.keep_images:
            held = [one for one in self._earlier if one.model != classifier.model]
            try:
                needed = models_of_open_reports(self.kept.store)
            except SQLAlchemyError as error:
                _LOGGER.error("which models have open reports cannot be looked up: %s", type(error).__name__)
                needed = [one.model for one in held]
            self._earlier = [before, *(one for one in held if one.model in needed)][:EARLIER_MODELS]

    def earlier(self, model: ModelName) -> Classifier | None:
        """A model that answered before and is in memory still."""
        return next((one for one in self._earlier if one.model == model), None)

    @property
    def version(self) -> str:
        """The version of the model in use, for the metrics."""
        return self._classifier.card.version if self._classifier else "none"


def _running(request: Request) -> Running:
    running: Running = request.app.state.running
    return running


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
    detail = f"None of the {len(results)} images could be used; `results` says why for each."
    return Problem(422, "no-usable-image", "No usable image", detail, results=rejected).response()


@router.post(
    "/classify", dependencies=CLASSIFY, response_model=Classification, openapi_extra=CLASSIFY_BODY, responses=IMAGE_PROBLEMS
)
async def classify(request: Request, explain: bool = False) -> Response:
    """Classify 1 to 256 images of one leukocyte each. An unusable image is rejected in its place and spoils nothing else.

    With `explain` (16 images at most) each result has a heat map of where the network looks.
    """
    running = _running(request)
    classifier = running.classifier
    try:
        async with read_form(request, running.limits, running.in_flight) as form:
            if explain and len(form.images) > MAX_EXPLAINED:
                raise too_large(f"At most {MAX_EXPLAINED} images a request can be explained.", MAX_EXPLAINED)
            with running.in_flight.also(len(form.images) * (EXPLAINED_WAITS_AS - 1) if explain else 0) as room:
                if not room:
                    raise busy()
                results = await classifier.classify(form.images, explain)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody is there to read it; the metrics count it
    running.metrics.results(results)
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
        **IMAGE_PROBLEMS,
    },
)
async def differential(request: Request) -> Response:
    """The 5-part differential of one specimen's cells, 1 to 256 images of one leukocyte each; as JSON or as a FHIR R4 Bundle.

    An image that came before, in this request or in the report that it adds to, is rejected as a duplicate: a cell counts once.
    """
    running = _running(request)
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
                seen = await classifier.see(form.images)
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
                        call = Call(request.state.caller, HEADER not in request.headers, again)
                        document = _extend(running, report_id, reading, specimen, call)
                    running.metrics.results(document.results)
                    return Done(_differential_response(document, media_type, running.site), digests, document.model)

                return await deed.carry_out(work)
    except ClientDisconnect:
        return Response(status_code=499)


async def _model_for(running: Running, report_id: str) -> tuple[Classifier, Mapping[int, Seen] | None]:
    """The model for images that are added to a report, and what it says again of those that the report has, where it was begun
    by another one.

    The report's own model answers where it serves still, or is held for want of kept images; else the one that serves, if it
    can count the whole report again. Raises Problem: 404 for a report that is not there, 409 where neither can be.
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
            raise another_model(before.model, classifier.model, report_id)
        return held, None
    with running.in_flight.also(min(len(before.places), AT_A_TIME)) as room:
        if not room:
            raise busy()
        return classifier, await read_again(kept.store, report_id, before.places, classifier)


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
        specimen.wbc_count,
        sum(cell.review.required or running.site.review_before_signature == "all" for cell in cells),
        site_unknown=site_unknown([result.model_dump() for result in placed.results], reading.false_alarms),
        rendered=reading.rendered,
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
    document = fhir.bundle(
        answer.differential,
        model=answer.model,
        specimen_id=answer.specimen_id,
        issued=datetime.now(UTC),
        status="preliminary",
        performer=None,
        site=site,
        report_id=answer.report_id,
    )
    return Response(json.dumps(document), headers=headers, media_type=media_type)


router.include_router(reports_router)
router.include_router(preview_router)


@router.get("/model", response_model=ModelCard, dependencies=ANY_KEY)
async def model(request: Request) -> Response:
    """The card of the model that answers: where it came from, how it was calibrated, how well it did."""
    return Response(_running(request).classifier.card.model_dump_json(exclude={"cells"}), media_type=JSON)


@router.get("/openapi.json", include_in_schema=False, dependencies=ANY_KEY)
async def openapi(request: Request) -> dict[str, Any]:
    """This interface as an OpenAPI document."""
    app: FastAPI = request.app
    return app.openapi()


async def metrics(request: Request) -> Response:
    """Prometheus metrics of all processes of this server: for keys with the scope admin."""
    kept = _running(request).kept
    content, media_type = await run_in_threadpool(exposition, None if kept is None else kept.store)
    return Response(content, media_type=media_type)


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's document plus the schemas that only the problem responses refer to."""
        document = super().openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for kind in (ProblemDocument, NoneUsable, Rejected, FhirBundle):
            schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update({**schema.pop("$defs", {}), kind.__name__: schema})
        return document


def create_app() -> FastAPI:
    """The routes without a model: whoever serves them sets `app.state.running`."""
    app = _Api(
        title="Leukocyte classification",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        description="Pre-classification of single leukocytes for a differential count that a qualified person reviews.",
    )
    app.include_router(router)
    app.add_api_route("/metrics", metrics, include_in_schema=False, dependencies=ADMIN)
    add_page(app)
    app.add_exception_handler(Problem, answer_problem)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(RequestValidationError, answer_parameter)
    app.add_exception_handler(OperationalError, answer_store)
    app.add_exception_handler(PoolTimeout, answer_store)
    app.add_exception_handler(Exception, answer_defect)
    return app


class Around:
    """The ASGI layer around the routes: counts requests, sets headers, writes the audit log's line of each answer before it
    leaves, and lets a client that is still sending hear a refusal.

    It is no Starlette application, so that BentoML hands it every path that is not its own and 404 and 405 are ours.
    """

    def __init__(self, app: FastAPI) -> None:
        self.app: ASGIApp = app
        self.state = app.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # A mount leaves a root path behind that the routes must not see; the state is where they leave the caller's name.
        state = {**scope.get("state", {}), "call": call_of(scope["method"], scope["path"])}
        scope = {**scope, "root_path": "", "state": state}
        running: Running = self.state.running
        exchange = _Exchange(scope, receive, send, running)
        try:
            refusal = _AMBIGUOUS if _ambiguous(scope) else running.hosts.refusal(scope, keyless=not running.keys)
            await exchange.within(running.limits.answer_seconds, self.app if refusal is None else refusal.response(), scope)
        finally:
            seconds = time.perf_counter() - exchange.started
            running.metrics.request(scope["path"], exchange.status, seconds, running.version)
            _log(scope, exchange, seconds)


def _log(scope: Scope, exchange: "_Exchange", seconds: float) -> None:
    """One line a request, of a few known words and the key's name: paths and headers are whatever a caller puts into them, line
    ends and specimen ids included. Of refused calls of one address and minute the first, the tenth, the hundredth ..."""
    times = exchange.refused
    if times and times != 10 ** (len(str(times)) - 1):
        return
    method = scope["method"] if scope["method"] in METHODS else "other"
    caller = scope["state"].get("caller", "-")
    again = f", {times} refused calls of this address in this minute" if times > 1 else ""
    _LOGGER.info("%s %s %d %.0f ms, caller %s%s", method, endpoint(scope["path"]), exchange.status, 1000 * seconds, caller, again)


# RFC 9112, 6.1: a proxy may have read the other length, and taken for a second request what is the body of the first.
_AMBIGUOUS = Problem(
    400, "ambiguous-length", "Bad request", "Content-Length and Transfer-Encoding exclude each other.", {"Connection": "close"}
)


def _ambiguous(scope: Scope) -> bool:
    return {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}


class _Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send, running: Running) -> None:
        self.started = time.perf_counter()
        self.status = 500
        self.refused = 0  # how many calls of its address in this minute, with this one
        self._running = running
        self._state: dict[str, Any] = scope["state"]
        self._address = (scope.get("client") or ("unknown",))[0]
        self._receive = receive
        self._send = send
        self._start: Message = {}
        self._body = b""
        self._headers = dict(scope["headers"])
        self._unread = b"transfer-encoding" in self._headers or self._headers.get(b"content-length", b"0") != b"0"
        self._asked_first = b"expect" in self._headers
        self._deadline: asyncio.Timeout | None = None

    async def within(self, seconds: float, app: ASGIApp, scope: Scope) -> None:
        """Let `app` answer, or answer 504 when it takes longer."""
        deadline = self._deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                await app(scope, self.receive, self.send)
        except TimeoutError:
            if not deadline.expired():
                raise
            self._state.pop("intention", None)  # what was begun may still be done: the next start completes the line
            await too_slow(seconds).response()(scope, self.receive, self.send)

    async def receive(self) -> Message:
        message = await self._receive()
        self._asked_first = False
        self._unread = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message  # held back: the audit log gets the answer as a whole, and before it leaves
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        self.status = self._start["status"]
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(None)  # what leaves is the answer, however long it takes to reach the caller
        try:
            await self._record()
        except Problem as problem:
            withheld = problem.response()
            self.status, self._body = problem.status, bytes(withheld.body)
            self._start = {**self._start, "status": problem.status, "headers": withheld.raw_headers}
        await self._answer()

    async def _record(self) -> None:
        """The line of an answer to a caller with a name; of others the refused ones are counted. Raises Problem 503."""
        state, audit, body = self._state, self._running.audit, self._body
        caller = state.get("caller")
        if caller is None:
            if self.status in REFUSED:
                self.refused = self._running.refusals.count(self._address, self.status)
            return
        if audit is None:
            return
        line = (caller, state["call"], self.status, state.get("images", ()), state.get("model"), body)
        if state.get("intention"):
            await audit.conclude(state["intention"], outcome(*line))
        else:
            more = {"replay_of": state["replay_of"]} if "replay_of" in state else {}
            await audit.record(*line, **more)

    async def _answer(self) -> None:
        # A client that waits for `100 Continue` has sent nothing yet and must not be told to begin.
        if self._unread and not self._asked_first:
            await self._discard()
        # Without this uvicorn would go on swallowing what an endless sender sends.
        ending = [(b"connection", b"close")] if self._unread else []
        own = self._start.get("headers", [])
        set_already = {name.lower() for name, _ in own}
        secure = [(name, value) for name, value in SECURITY_HEADERS.items() if name not in set_already]
        await self._send({**self._start, "headers": [*own, *secure, *ending]})
        await self._send({"type": "http.response.body", "body": self._body})

    async def _discard(self) -> None:
        """Read on for a moment and keep nothing: closing on a sender resets the connection before it has read the answer."""
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while self._unread:
                    await self.receive()
        except TimeoutError:
            return
