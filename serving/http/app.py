"""The application: the routes, the page, and how errors are answered."""

import json
import logging
from http import HTTPStatus
from typing import Any, Final, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from serving.contract.errors import Refused
from serving.contract.labelling import TaskAnswer
from serving.contract.problems import MEDIA_TYPE, Problem, of_status
from serving.contract.schemas import (
    FhirBundle,
    NoneUsable,
    ProblemDocument,
    Rejected,
)
from serving.http.access import ADMIN
from serving.http.refused import problem_of
from serving.http.routes import router
from serving.http.running import running_of
from serving.page.static import add_page
from serving.reports.store import reason_of
from serving.upkeep.metrics import exposition
from wbc_model import __version__

_LOG: Final = logging.getLogger("bentoml.wbc")


async def metrics(request: Request) -> Response:
    """Prometheus metrics of all processes of this server: for keys with the scope admin."""
    running = running_of(request)
    store = None if running.kept is None else running.kept.store
    content, media_type = await run_in_threadpool(exposition, lambda: running.in_flight.images, store)
    return Response(content, media_type=media_type)


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's document plus the schemas that only problem responses and bodies refer to."""
        document = super().openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for kind in (ProblemDocument, NoneUsable, Rejected, FhirBundle, TaskAnswer):
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
    app.add_exception_handler(Refused, answer_refused)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(RequestValidationError, answer_parameter)
    app.add_exception_handler(OperationalError, answer_store)
    app.add_exception_handler(PoolTimeout, answer_store)
    app.add_exception_handler(Exception, answer_defect)
    return app


async def answer_problem(request: Request, problem: Exception) -> Response:
    """Exception handler for Problem."""
    return cast(Problem, problem).response()


async def answer_refused(request: Request, error: Exception) -> Response:
    """Exception handler for what the domain refuses."""
    return problem_of(cast(Refused, error)).response()


async def answer_http(request: Request, error: Exception) -> Response:
    """Exception handler for the framework's own errors: 404, 405."""
    error = cast(HTTPException, error)
    document = of_status(error.status_code, request.method, request.scope["path"])
    # A path may have several routes, and the framework names the methods of the first only.
    headers = {"Allow": ", ".join(_methods(request))} if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED else error.headers
    return Response(json.dumps(document), error.status_code, headers, MEDIA_TYPE)


def _methods(request: Request) -> list[str]:
    def taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") if taken(method)]


async def answer_parameter(request: Request, error: Exception) -> Response:
    """Exception handler for a parameter in path, query or header that is not what the call takes."""
    first = cast(RequestValidationError, error).errors()[0]
    name = str(first["loc"][-1])
    detail = f"The parameter {name!r} is not accepted: {first['msg']}."
    return Problem(422, "bad-parameter", "Parameter not accepted", detail, parameter=name).response()


async def answer_store(request: Request, error: Exception) -> Response:
    """Exception handler for a store that cannot be reached, is full, or is busy for too long; the log gets the reason."""
    _LOG.error("the store: %s", reason_of(error))
    detail = "The store of reports cannot be reached; nothing was changed. Try again."
    return Problem(503, "store-unavailable", "Store unavailable", detail, {"Retry-After": "5"}).response()


async def answer_defect(request: Request, error: Exception) -> Response:
    """Exception handler for everything else: says nothing of the inside; the traceback goes to the log."""
    return Problem(500, "internal", "Internal error", "The service failed on this request; its log has the reason.").response()
