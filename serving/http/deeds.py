"""Calls that write: first the intention in the audit log, then the deed with its row in one transaction, then the outcome.

A call that is repeated with the same `Idempotency-Key` gets the first answer again, which that row has. What is left where the
service is killed, or a disk is full, at any moment between is said in docs/decisions/032.
"""

import asyncio
import hashlib
import re
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from serving.contract.problems import Problem
from serving.contract.schemas import ModelName
from serving.http.running import Kept, Running
from serving.reports.store import Store
from serving.reports.tables import Deed
from serving.security.audit import outcome
from serving.upkeep.deeds import _LOG, forget_old, settle
from serving.upkeep.removal import GONE

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
KEY: Final = r"[!-~]([ -~]{0,253}[!-~])?"
PARAMETER: Final[dict[str, Any]] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "A name of your own for this call: sent again with it, the call is not done again, and the first answer comes "
    "once more, with `Idempotency-Replayed: true`.",
    "schema": {"type": "string", "pattern": f"^{KEY}$"},
}


class Done(NamedTuple):
    """What a call did: its answer, and of which images (SHA-256) and which model the audit log speaks.

    `said` stands in the log's line as it is.
    """

    answer: Response
    images: Sequence[str] = ()
    model: ModelName | None = None
    said: Mapping[str, str] = MappingProxyType({})


Work = Callable[[], Done]


class OutcomeUnknown(Problem):
    """500: whether the call was carried out cannot be said at present."""

    def __init__(self) -> None:
        detail = (
            "The store was lost while it wrote, so that it is not known whether the call was carried out. "
            f"Repeat it with the same {HEADER}, or look at the report before you send it again."
        )
        super().__init__(500, "outcome-unknown", "Outcome unknown", detail)


def digest_of(*parts: str | bytes) -> str:
    """What tells what was asked from anything else: of each part its length and its bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()


def note(request: Request, images: Sequence[str], model: ModelName | None) -> None:
    """What the audit log's line of this call says beside the call and its answer."""
    request.state.images, request.state.model = images, model


def key_of(request: Request) -> str | None:
    """The call's Idempotency-Key; raises Problem 422 for one that is none."""
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    if len(given) > 1 or not re.fullmatch(KEY, given[0]):
        detail = f"The header {HEADER} takes one key of 1 to 255 printable ASCII characters."
        raise Problem(422, "bad-parameter", "Parameter not accepted", detail, parameter=HEADER)
    return given[0]


@asynccontextmanager
async def begun(request: Request, *asked: str | bytes) -> AsyncIterator["Begun"]:
    """A call that writes, from when its body has been read. `asked` are the parts of what it asks for, beside method and path.

    Raises Problem 422 for a bad key, and for a key that came with a different call. Raises Problem 409 while the first call with
    the key is under way.
    """
    running: Running = request.app.state.running
    key, kept = key_of(request), running.kept
    digest = digest_of(request.method, request.url.path, *asked)
    begun = Begun(request, kept, key, digest)
    if key is None or kept is None:
        yield begun
        return
    name = (begun.caller, key)
    if name in running.keys_in_use:
        detail = "The first call with this key is still under way; its answer is the answer to this one, too."
        raise Problem(409, "idempotency-key-in-use", "Idempotency key in use", detail, {"Retry-After": "2"})
    running.keys_in_use.add(name)
    try:
        begun.known = await run_in_threadpool(begun.look_up, kept.store)
        yield begun
    finally:
        running.keys_in_use.discard(name)


async def carry_out(request: Request, work: Work, *asked: str | bytes) -> Response:
    """The answer to a call that writes: of the first time where it is a repetition, else `work` is done, in a thread.

    `work` may raise; then nothing was changed. All that it writes into the store is one transaction. Raises Problem as `begun`
    and `Begun.carry_out`.
    """
    async with begun(request, *asked) as call:
        return call.known or await call.carry_out(work)


class Begun:
    """A call that writes. `known` is the answer of the first time, where this is a repetition."""

    def __init__(self, request: Request, kept: Kept | None, key: str | None, digest: str) -> None:
        self.caller: str = request.state.caller
        self._person: str = request.state.person
        self.known: Response | None = None
        self._request = request
        self._kept = kept
        self._key = key
        self._digest = digest

    async def carry_out(self, work: Work) -> Response:
        """Do it. Where no reports are kept `work` writes nothing, and has no row.

        Raises LogNotWritable where the intention cannot be written down, and SQLAlchemyError where the store refuses: then
        nothing was done. Raises OutcomeUnknown where the store was lost while it was asked to commit.
        """
        if self._kept is None:
            done = await run_in_threadpool(work)
            note(self._request, done.images, done.model)
            return done.answer
        return await asyncio.shield(asyncio.ensure_future(self._carry_out(self._kept, work)))

    async def _carry_out(self, kept: Kept, work: Work) -> Response:
        running: Running = self._request.app.state.running
        audit, state = running.audit, self._request.state
        intention = uuid.uuid4().hex
        if audit is not None:
            intention = await audit.intend(self.caller, state.call, self._person)
            state.intention = intention
        try:
            done = await run_in_threadpool(self._transaction, kept.store, intention, work)
        except OutcomeUnknown:
            state.intention = None  # it stays open in the audit log; the next start completes it
            raise
        note(self._request, done.images, done.model)
        state.said = done.said
        await run_in_threadpool(forget_old, kept.store, audit, running.cleaned, kept.clock)
        return done.answer

    def _transaction(self, store: Store, intention: str, work: Work) -> Done:
        made: list[Done] = []
        try:
            with store.writing() as session:
                done = work()
                session.add(self._row(intention, done))
                session.flush()
                made.append(done)
        except IntegrityError:
            # Another process, with the same store, was first with this key.
            if self._key is None or (known := self.look_up(store)) is None:
                raise
            return Done(known)
        except DBAPIError:
            # Before the commit all is undone; what a failed commit has done, the store must be asked.
            if not made or not _was_done(store, intention):
                raise
        return made[0]

    def _row(self, intention: str, done: Done) -> Deed:
        answer = done.answer
        body = bytes(answer.body)
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return Deed(
            intention=intention,
            caller=self.caller,
            key=self._key,
            digest=self._digest,
            status=answer.status_code,
            headers=headers,
            body=zlib.compress(body, 1) if self._key else b"",
            record={
                **outcome(self.caller, self._request.state.call, answer.status_code, done.images, done.model, body, self._person),
                **done.said,
            },
            at=datetime.now(UTC),
        )

    def look_up(self, store: Store) -> Response | None:
        """The answer that this key had; None where it is new. Raises Problem 422 where it came with something else."""
        with store.reading() as session:
            deed = session.scalar(select(Deed).where(Deed.caller == self.caller, Deed.key == self._key))
        if deed is None:
            return None
        if deed.digest != self._digest:
            detail = f"This {HEADER} came before, with another call or another body. Each call needs a key of its own."
            raise Problem(422, "idempotency-key-reused", "Idempotency key reused", detail)
        self._request.state.replay_of = deed.intention
        self._request.state.images = deed.record["images"]
        self._request.state.model = deed.record["model"] and ModelName.model_validate(deed.record["model"])
        if deed.status == GONE:
            detail = "The report that this call made or changed was removed since."
            return Problem(GONE, "removed", "Removed", detail, {REPLAYED: "true"}).response()
        return Response(zlib.decompress(deed.body), deed.status, {**deed.headers, REPLAYED: "true"})


# --- what is left over ---------------------------------------------------------------------------------------------------


def _was_done(store: Store, intention: str) -> bool:
    """Whether the transaction whose commit failed was committed after all; raises OutcomeUnknown."""
    try:
        return settle(store, intention) is not None
    except SQLAlchemyError as error:
        _LOG.error("the outcome of intention %s is unknown: %s", intention, type(error).__name__)
        raise OutcomeUnknown from None
