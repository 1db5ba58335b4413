"""What one request may cost, these numbers from the environment, and the few threads that make answers which take long."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial, wraps
from math import ceil
from typing import Any, Final, TypeVar

from starlette.responses import Response

from wbc_model.core.errors import WbcError
from wbc_model.core.images import MAX_BYTES

T = TypeVar("T")
MIB: Final = 2**20
MAX_IMAGES: Final = 256
BUCKETS: Final = 1024  # callers remembered before those are forgotten who have their whole allowance again
# More would not be faster, as most of the work holds the interpreter's lock: they would only take it from the event loop.
HEAVY_THREADS: Final = 2
_HEAVY: Final = ThreadPoolExecutor(HEAVY_THREADS, "heavy")


@dataclass(frozen=True)
class Limits:
    """Over `images` a request, `image_bytes` a file or `body_bytes` a request the answer is 413; over `in_flight_bytes` or
    `waiting_images` of all requests together 503; a body that takes longer than `read_seconds` to arrive is 408; a key that
    sends more than `requests_per_minute` gets 429; an answer that takes longer than `answer_seconds` is 504. A header must
    arrive in `header_seconds`, and one address has at most `connections`; others are closed."""

    images: int = MAX_IMAGES
    image_bytes: int = MAX_BYTES
    body_bytes: int = 128 * MIB
    in_flight_bytes: int = 512 * MIB
    waiting_images: int = 1024
    read_seconds: int = 60
    answer_seconds: int = 170
    requests_per_minute: int = 6000
    header_seconds: int = 15
    connections: int = 256

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Limits":
        """The defaults, changed by WBC_MAX_BODY_MIB, WBC_MAX_IN_FLIGHT_MIB, WBC_MAX_WAITING_IMAGES, WBC_READ_SECONDS,
        WBC_ANSWER_SECONDS, WBC_REQUESTS_PER_MINUTE, WBC_HEADER_SECONDS and WBC_CONNECTIONS; raises WbcError naming a bad one."""
        waiting = _positive(environment, "WBC_MAX_WAITING_IMAGES", cls.waiting_images)
        if waiting < cls.images:
            raise WbcError(f"WBC_MAX_WAITING_IMAGES is {waiting}: one request may have {cls.images}, so give at least that")
        return cls(
            waiting_images=waiting,
            body_bytes=_positive(environment, "WBC_MAX_BODY_MIB", cls.body_bytes // MIB) * MIB,
            in_flight_bytes=_positive(environment, "WBC_MAX_IN_FLIGHT_MIB", cls.in_flight_bytes // MIB) * MIB,
            read_seconds=_positive(environment, "WBC_READ_SECONDS", cls.read_seconds),
            answer_seconds=_positive(environment, "WBC_ANSWER_SECONDS", cls.answer_seconds),
            requests_per_minute=_positive(environment, "WBC_REQUESTS_PER_MINUTE", cls.requests_per_minute),
            header_seconds=_positive(environment, "WBC_HEADER_SECONDS", cls.header_seconds),
            connections=_positive(environment, "WBC_CONNECTIONS", cls.connections),
        )


def _positive(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise WbcError(f"{name} is {text!r}: give a whole number of at least 1, or leave it unset for {default}")
    return int(text)


class InFlight:
    """The bytes of request bodies that the process holds, and the images that wait or are worked on.

    Only the event loop touches them, so they need no lock.
    """

    def __init__(self, limit: int, image_limit: int) -> None:
        self.limit = limit
        self.image_limit = image_limit
        self.held = 0
        self.images = 0

    @property
    def full(self) -> bool:
        """Whether not one image more is taken."""
        return self.images >= self.image_limit

    def take(self, size: int, images: int = 0) -> bool:
        """Count bytes and images in; False, and nothing counted, when that is more than the process may hold."""
        if self.held + size > self.limit or self.images + images > self.image_limit:
            return False
        self.held += size
        self.images += images
        return True

    def give(self, size: int, images: int = 0) -> None:
        """Count bytes and images out again."""
        self.held -= size
        self.images -= images

    @contextmanager
    def also(self, images: int) -> Iterator[bool]:
        """Count images in for as long as the block lasts; False, and nothing counted, when there is no room for them."""
        room = self.take(0, images)
        try:
            yield room
        finally:
            self.give(0, images if room else 0)


class RateLimit:
    """A token bucket for each caller: `per_minute` requests at once, refilled evenly over a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # caller: tokens left, and when that was so

    def take(self, caller: str) -> int:
        """Count one request: 0 where it may go on, else the seconds after which the next one may."""
        now = self._clock()
        if len(self._buckets) >= BUCKETS:
            self._buckets = {
                name: bucket for name, bucket in self._buckets.items() if self._tokens(bucket, now) < self.per_minute
            }
        tokens = self._tokens(self._buckets.get(caller, (self.per_minute, now)), now)
        self._buckets[caller] = (tokens - 1 if tokens >= 1 else tokens, now)
        return 0 if tokens >= 1 else max(1, ceil((1 - tokens) * 60 / self.per_minute))

    def _tokens(self, bucket: tuple[float, float], now: float) -> float:
        tokens, since = bucket
        return min(self.per_minute, tokens + (now - since) * self.per_minute / 60)


def heavy(answer: Callable[..., Response]) -> Callable[..., Awaitable[Response]]:
    """A route whose answer takes long to make, such as a PDF: it is made in a thread of its own kind, and waits for one in order.

    So many of them do not hold up the rest.
    """

    @wraps(answer)
    async def in_thread(*arguments: Any, **named: Any) -> Response:
        return await made(partial(answer, *arguments, **named))

    return in_thread


async def made(make: Callable[[], T]) -> T:
    """What is made in one of these threads; in the context of the call, so that its statements are found below its span."""
    return await asyncio.get_running_loop().run_in_executor(_HEAVY, partial(copy_context().run, make))
