"""The check that every call but the health calls begins with: the caller's key, its scopes, its rate.

A route says what it needs with `dependencies=CLASSIFY` (or REVIEW, ADMIN, ANY_KEY), once.
"""

from typing import Annotated, Final

from fastapi import Security
from fastapi.params import Depends
from fastapi.security import APIKeyHeader, SecurityScopes
from starlette.requests import Request

from serving.contract.problems import Problem
from serving.http.running import Running
from serving.security.keys import HEADER, LOCAL


async def authorise(
    request: Request,
    scopes: SecurityScopes,
    key: Annotated[str | None, Security(APIKeyHeader(name=HEADER, auto_error=False))] = None,
) -> None:
    """Put the caller's name into `state.caller`; raises UnknownKey, LacksScope or Problem 429 before the body is read."""
    running: Running = request.app.state.running
    caller = running.keys.check(key, scopes.scopes)
    wait = running.rate.take(caller) if caller != LOCAL else 0
    if wait:
        detail = f"The key {caller} may send {running.rate.per_minute} requests a minute."
        raise Problem(429, "rate-limit", "Too many requests", detail, {"Retry-After": str(wait)})
    request.state.caller = caller


ANY_KEY: Final[list[Depends]] = [Security(authorise)]
CLASSIFY: Final[list[Depends]] = [Security(authorise, scopes=["classify"])]
REVIEW: Final[list[Depends]] = [Security(authorise, scopes=["review"])]
ADMIN: Final[list[Depends]] = [Security(authorise, scopes=["admin"])]
