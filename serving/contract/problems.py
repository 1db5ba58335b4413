"""Errors as RFC 9457 `application/problem+json`."""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, cast

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from serving.reports.store import reason_of

MEDIA_TYPE: Final = "application/problem+json"
PREFIX: Final = "urn:wbc:problem:"


_LOG: Final = logging.getLogger("bentoml.wbc")


def described(description: str, *schemas: str) -> dict[str, Any]:
    """An error answer in the OpenAPI document: a problem document, or one of these that say more."""
    references = [{"$ref": f"#/components/schemas/{name}"} for name in (*schemas, "ProblemDocument")]
    return {"description": description, "content": {MEDIA_TYPE: {"schema": {"anyOf": references} if schemas else references[0]}}}


class Problem(Exception):
    """An answer other than the one asked for. `kind` becomes the type `urn:wbc:problem:KIND`; `members` are added as they are."""

    def __init__(
        self, status: int, kind: str, title: str, detail: str, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})
        self.document: dict[str, Any] = {"type": PREFIX + kind, "title": title, "status": status, "detail": detail, **members}

    def response(self) -> Response:
        """The problem as an HTTP response."""
        return Response(json.dumps(self.document), self.status, self.headers, MEDIA_TYPE)


def not_multipart(detail: str) -> Problem:
    """415: the body is not what the call takes."""
    return Problem(415, "not-multipart", "Not multipart/form-data", detail, {"Accept": "multipart/form-data"})


def malformed(detail: str) -> Problem:
    """422: a multipart body that breaks off or cannot be parsed."""
    return Problem(422, "malformed-body", "Malformed multipart body", detail)


def bad_field(field: str, detail: str) -> Problem:
    """422: a field of a form or a JSON body that is unknown, missing or of the wrong kind."""
    return Problem(422, "bad-field", "Field not accepted", detail, field=field)


def too_large(detail: str, limit: int) -> Problem:
    """413: more images or bytes than one request may hold."""
    return Problem(413, "too-large", "Request too large", detail, limit=limit)


def too_slow(seconds: float) -> Problem:
    """504: the answer took too long, and what was begun may still be carried out."""
    detail = (
        f"There was no answer within {seconds:g} seconds, and it is not known whether the call was carried out. "
        "Repeat it with the same Idempotency-Key, or look at the report before you send it again."
    )
    return Problem(504, "too-slow", "Too slow", detail)


def of_status(status: int, method: str, path: str) -> dict[str, Any]:
    """The document of an error that says no more than its status."""
    phrase = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": phrase, "status": status, "detail": f"{method} {path}: {phrase.lower()}"}


async def answer_problem(request: Request, problem: Exception) -> Response:
    """Exception handler for Problem."""
    return cast(Problem, problem).response()


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
