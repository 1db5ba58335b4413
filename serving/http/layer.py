"""The layer around the routes that every request passes."""

import asyncio
import logging
import time
from typing import Any

from fastapi import FastAPI
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.contract.problems import Problem, too_slow
from serving.http.refused import problem_of
from serving.http.running import Running
from serving.page.static import CONTENT_SECURITY_POLICY
from serving.security.audit import outcome
from serving.security.errors import LogNotWritable
from serving.security.refusals import REFUSED
from serving.upkeep.metrics import METHODS, call_of, endpoint
from serving.upkeep.telemetry import CODE

_LOG = logging.getLogger("bentoml.wbc")  # BentoML sets up the log of what is called `bentoml`

DISCARD_SECONDS = 2.0
COMPRESSED_FROM = 1024  # bytes: less fits into one packet anyway
# Of the page's files level 9 takes one byte in 120 less, in two thirds more time. What is compressed already is left as it is.
COMPRESSION = 5
NOT_COMPRESSED = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/pdf", "application/octet-stream")
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


class Around:
    """The ASGI layer around the routes.

    It counts requests, sets headers, and writes the audit log's line of each answer before the answer leaves. A client that is
    still sending hears a refusal. It is no Starlette application: BentoML hands it every path that is not its own, and 404 and
    405 are ours.
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
        with running.metrics.call(scope["method"], scope["path"], scope["headers"]) as about:
            try:
                app = self.app if (refusal := _refusal(scope, running)) is None else refusal.response()
                await exchange.within(running.limits.answer_seconds, app, scope)
            finally:
                about[CODE] = exchange.status
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
    _LOG.info("%s %s %d %.0f ms, caller %s%s", method, endpoint(scope["path"]), exchange.status, 1000 * seconds, caller, again)


# RFC 9112, 6.1: a proxy may have read the other length, and taken for a second request what is the body of the first.
_AMBIGUOUS = Problem(
    400, "ambiguous-length", "Bad request", "Content-Length and Transfer-Encoding exclude each other.", {"Connection": "close"}
)


def _refusal(scope: Scope, running: Running) -> Problem | None:
    """Why a request is not even looked at; None where it is."""
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        return _AMBIGUOUS
    refused = running.hosts.refusal(scope, keyless=not running.keys)
    return None if refused is None else problem_of(refused)


class _Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send, running: Running) -> None:
        self.started = time.perf_counter()
        self.status = 500
        self.refused = 0  # how many calls of its address in this minute, with this one
        self._running = running
        self._scope = scope
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
        except LogNotWritable as error:
            withheld = problem_of(error).response()
            self.status, self._body = withheld.status_code, bytes(withheld.body)
            self._start = {**self._start, "status": self.status, "headers": withheld.raw_headers}
        await self._answer()

    async def _record(self) -> None:
        """The line of an answer to a caller with a name; of others the refused ones are counted. Raises LogNotWritable."""
        state, audit, body = self._state, self._running.audit, self._body
        caller = state.get("caller")
        if caller is None:
            if self.status in REFUSED:
                self.refused = self._running.refusals.count(self._address, self.status)
            return
        if audit is None or state.get("unrecorded"):
            return
        line = (caller, state["call"], self.status, state.get("images", ()), state.get("model"), body, state.get("person", ""))
        if state.get("intention"):
            await audit.conclude(state["intention"], {**outcome(*line), **state.get("said", {})})
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
        self._start = {**self._start, "headers": [*own, *secure, *ending]}
        # Only here: what the audit log has the hash of is the answer, however it travels.
        compressing = GZipMiddleware(self._said, COMPRESSED_FROM, COMPRESSION, exclude_content_types=NOT_COMPRESSED)
        await compressing(self._scope, self._receive, self._send)

    async def _said(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The whole answer, as an application of its own."""
        await send(self._start)
        await send({"type": "http.response.body", "body": self._body})

    async def _discard(self) -> None:
        """Read on for a moment and keep nothing: closing on a sender resets the connection before it has read the answer."""
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while self._unread:
                    await self.receive()
        except TimeoutError:
            return
