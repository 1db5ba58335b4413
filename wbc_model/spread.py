"""Work that goes shard by shard: in turn in this process, or wherever a runner takes it, with the same results either way.

The learner knows no cluster. Whoever has one (`flows/shards`) hands a runner in for a while; all work on shards then goes there.
A part may be done twice, as when its process was killed: the work must not mind.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Final, TypeVar

P = TypeVar("P")
R = TypeVar("R")
# Does the work on each of the parts, wherever; gives the results in the order of the parts. Work and parts can be pickled.
Runner = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
MOST_THREADS: Final = 8  # that wait for a disk or decode images
MOST_PARTS: Final = 256  # of work on many cells: each costs its way to a process and back

_runner: ContextVar[Runner | None] = ContextVar("runner of shards", default=None)


def each(work: Callable[[P], R], parts: Sequence[P]) -> Iterator[R]:
    """The results of `work` on the parts, in their order, by the runner that is there, or in turn."""
    runner = _runner.get()
    return map(work, parts) if runner is None or len(parts) < 2 else runner(work, parts)


def is_spread() -> bool:
    """Whether a runner takes shards elsewhere."""
    return _runner.get() is not None


@contextlib.contextmanager
def spread_by(runner: Runner) -> Iterator[None]:
    """Have the runner do all work on shards that is begun in this block."""
    before = _runner.set(runner)
    try:
        yield
    finally:
        _runner.reset(before)


def part_size(count: int, least: int) -> int:
    """How many of `count` cells make a part: `least`, or such a multiple of it that there are MOST_PARTS at most."""
    return least * max(1, -(-count // (least * MOST_PARTS)))


def threads() -> int:
    """How many threads work on a shard's images: one for each core, at most OMP_NUM_THREADS where that is set."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    most = int(given) if given.isdigit() and int(given) else MOST_THREADS
    return min(most, os.cpu_count() or 1, MOST_THREADS)
