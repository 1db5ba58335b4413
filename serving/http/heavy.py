"""Answers that take long to make, such as a PDF: in a few threads of their own, so that many of them do not hold up the rest."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Final, TypeVar

from starlette.responses import Response

T = TypeVar("T")
# More would not be faster, as most of the work holds the interpreter's lock: they would only take it from the event loop.
THREADS: Final = 2
_POOL: Final = ThreadPoolExecutor(THREADS, "heavy")


def heavy(answer: Callable[..., Response]) -> Callable[..., Awaitable[Response]]:
    """A route whose answer is made in one of these threads; those that find none free wait in order."""

    @wraps(answer)
    async def in_thread(*arguments: Any, **named: Any) -> Response:
        return await made(partial(answer, *arguments, **named))

    return in_thread


async def made(make: Callable[[], T]) -> T:
    """What is made in one of these threads."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, make)
