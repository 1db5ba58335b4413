"""Errors as RFC 9457 `application/problem+json`."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import Response

MEDIA_TYPE: Final = "application/problem+json"
PREFIX: Final = "urn:wbc:problem:"


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
