"""Connections that send nothing, or a header that never ends: uvicorn keeps them for ever, so this closes them.

BentoML gives no way to choose uvicorn's protocol; `install` puts ours in the place of the one that uvicorn would choose.
"""

import asyncio
import resource
from typing import Final

import h11
import uvicorn.config
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.contract.problems import Problem
from serving.http.limits import Limits

SPARE_FILES: Final = 256  # that the process needs for other things than connections


class Connections:
    """The open connections, by address, in the order in which they came."""

    def __init__(self, limits: Limits) -> None:
        self.header_seconds = limits.header_seconds
        self.of_an_address = limits.connections
        self.in_all = 2**16
        self._open: dict[str, dict[BoundedProtocol, None]] = {}

    def add(self, address: str, one: "BoundedProtocol") -> bool:
        """Count one in; False where there is no room.

        Room is made by closing one that has not sent a whole header yet, the oldest first: so somebody who opens many of them
        does not keep out others, not even of the same address.
        """
        own = self._open.setdefault(address, {})
        if len(own) >= self.of_an_address and not self._make_room(own):
            return False
        if sum(map(len, self._open.values())) >= self.in_all:
            everybody = {each: None for ones in self._open.values() for each in ones}
            if not self._make_room(everybody):
                return False
        own[one] = None
        return True

    def _make_room(self, among: "dict[BoundedProtocol, None]") -> bool:
        waiting = next((one for one in among if one.waits_for_header), None)
        if waiting is None:
            return False
        self.remove(waiting.address, waiting)
        waiting.transport.abort()
        return True

    def remove(self, address: str, one: "BoundedProtocol") -> None:
        """Count one out."""
        own = self._open.get(address, {})
        own.pop(one, None)
        if not own:
            self._open.pop(address, None)


_CONNECTIONS: Connections = Connections(Limits())


class BoundedProtocol(H11Protocol):
    """A connection: its headers must arrive in time, and of one address there are only so many."""

    _timer: asyncio.TimerHandle | None = None
    address = ""

    @property
    def waits_for_header(self) -> bool:
        """Whether a header is awaited; between two requests uvicorn's own timer runs."""
        return self._timer is not None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else "unknown"
        if _CONNECTIONS.add(self.address, self):
            self._await_header()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._header_is_there()
        elif self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_header()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as everything is refused."""
        problem = Problem(400, "no-http", "Bad request", msg, {"Connection": "close"}).response()
        self.transport.write(
            self.conn.send(h11.Response(status_code=400, headers=problem.raw_headers, reason=b"Bad Request")) or b""
        )
        self.transport.write(self.conn.send(h11.Data(data=bytes(problem.body))) or b"")
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Either side has closed it."""
        self._header_is_there()
        _CONNECTIONS.remove(self.address, self)
        super().connection_lost(exc)

    def _await_header(self) -> None:
        self._timer = self.loop.call_later(_CONNECTIONS.header_seconds, self.transport.abort)

    def _header_is_there(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def install() -> None:
    """Let uvicorn use it from now on; called before BentoML starts the server. As many files may be open as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_most_files(), hard))
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:BoundedProtocol"


def use(limits: Limits) -> None:
    """The limits for the connections from now on."""
    global _CONNECTIONS
    _CONNECTIONS = Connections(limits)
    _CONNECTIONS.in_all = max(_most_files() - SPARE_FILES, _most_files() // 2)


def _most_files() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(hard, 2**16)
