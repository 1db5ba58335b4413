"""The check that every call but the health calls begins with: the caller's key, its scopes, its rate.

A route says what it needs with `dependencies=CLASSIFY` (or REVIEW, ADMIN, ANY_KEY), once.
"""

import re
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import Security
from fastapi.params import Depends
from fastapi.security import APIKeyHeader, SecurityScopes
from starlette.requests import Request

from serving.keys import HEADER, LOCAL
from serving.problems import Problem

if TYPE_CHECKING:
    from serving.api import Running


async def authorise(
    request: Request,
    scopes: SecurityScopes,
    key: Annotated[str | None, Security(APIKeyHeader(name=HEADER, auto_error=False))] = None,
) -> None:
    """Put the caller's name into `request.state.caller`; raises Problem 401, 403 or 429 before the body is read."""
    running: Running = request.app.state.running
    caller = running.keys.check(key, scopes.scopes)
    if caller == LOCAL:
        _check_local(request)
    wait = running.rate.take(caller) if caller != LOCAL else 0
    if wait:
        detail = f"The key {caller} may send {running.rate.per_minute} requests a minute."
        raise Problem(429, "rate-limit", "Too many requests", detail, {"Retry-After": str(wait)})
    request.state.caller = caller


def _check_local(request: Request) -> None:
    """Without keys the service is open to its own machine only: not to the network through a proxy, and not to a web page of
    somebody else's that the browser here shows (DNS rebinding changes what a name means, but not the Host header)."""
    host = request.headers.get("host", "").rsplit(":", 1)[0]
    named = "." in host and not re.fullmatch(r"127(\.\d+){3}", host)
    if "x-forwarded-for" in request.headers or named or request.headers.get("sec-fetch-site") == "cross-site":
        detail = "Without API keys the service answers its own machine only, directly: make a key with `wbc keys add`."
        raise Problem(403, "no-keys", "Forbidden", detail)


ANY_KEY: Final[list[Depends]] = [Security(authorise)]
CLASSIFY: Final[list[Depends]] = [Security(authorise, scopes=["classify"])]
REVIEW: Final[list[Depends]] = [Security(authorise, scopes=["review"])]
ADMIN: Final[list[Depends]] = [Security(authorise, scopes=["admin"])]
