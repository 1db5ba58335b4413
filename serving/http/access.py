"""The check that every call but the health calls begins with: the caller's key, its scopes, its rate.

A route says what it needs with `dependencies=CLASSIFY` (or REVIEW, LABEL, ADJUDICATE, ADMIN, ANY_KEY), once.
"""

from typing import Annotated, Final

from fastapi import Security
from fastapi.params import Depends
from fastapi.security import APIKeyHeader, SecurityScopes
from starlette.requests import Request

from serving.contract.problems import Problem, bad_field
from serving.http.running import Running
from serving.security.errors import AnotherPerson, LacksScope
from serving.security.keys import HEADER, LOCAL


async def authorise(
    request: Request,
    scopes: SecurityScopes,
    key: Annotated[str | None, Security(APIKeyHeader(name=HEADER, auto_error=False))] = None,
) -> None:
    """Put the key's name into `state.caller`, whose it is into `state.person`, and what it may do into `state.scopes`.

    Raises UnknownKey, LacksScope or Problem 429 before the body is read.
    """
    running: Running = request.app.state.running
    found = running.keys.check(key, scopes.scopes)
    wait = running.rate.take(found.name) if found.name != LOCAL else 0
    if wait:
        detail = f"The key {found.name} may send {running.rate.per_minute} requests a minute."
        raise Problem(429, "rate-limit", "Too many requests", detail, {"Retry-After": str(wait)})
    request.state.caller, request.state.person, request.state.scopes = found.name, found.person, found.scopes


def who(request: Request, given: str | None) -> str:
    """Who does what a request asks for: the person of its key, else whom it names in `by`.

    Raises AnotherPerson where the key is a person's and `by` names someone else. Raises Problem 422 where neither says who.
    """
    person: str = request.state.person
    if person and given not in (None, person):
        raise AnotherPerson(person)
    if not person and given is None:
        raise bad_field("by", "by: Say who does this; only the key of a person says it by itself.")
    return person or str(given)


def any_of(request: Request, *scopes: str) -> None:
    """Raises LacksScope unless the key has one of the scopes."""
    if not set(scopes) & request.state.scopes:
        raise LacksScope(request.state.caller, [" or ".join(scopes)])


ANY_KEY: Final[list[Depends]] = [Security(authorise)]
CLASSIFY: Final[list[Depends]] = [Security(authorise, scopes=["classify"])]
REVIEW: Final[list[Depends]] = [Security(authorise, scopes=["review"])]
LABEL: Final[list[Depends]] = [Security(authorise, scopes=["label"])]
ADJUDICATE: Final[list[Depends]] = [Security(authorise, scopes=["adjudicate"])]
ADMIN: Final[list[Depends]] = [Security(authorise, scopes=["admin"])]
