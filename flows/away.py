"""An MLflow server that is away: its client asks again by itself (urllib3), and here is what makes that a line for a person."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_TRIES: Final = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_LOG: Final = "urllib3.connectionpool"  # which warns of each further attempt
_QUIET_SECONDS: Final = 300  # after which an outage is a new one


class _Teller(logging.Handler):
    """Calls `tell` at the first warning of an outage, and lets no other out."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell, self.last = tell, -float("inf")

    def emit(self, record: logging.LogRecord) -> None:
        """See the class."""
        if record.created - self.last > _QUIET_SECONDS:
            self.tell()
        self.last = record.created


@contextmanager
def told_when_retrying(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` once for each outage of a server that is asked again within the block."""
    log, handler = logging.getLogger(_LOG), _Teller(tell)
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


@contextmanager
def one_try() -> Iterator[None]:
    """Have MLflow's client ask once only within the block."""
    before = os.environ.get(_TRIES)
    os.environ[_TRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TRIES]
        else:
            os.environ[_TRIES] = before


def is_away(error: BaseException) -> bool:
    """Whether an error of MLflow's client says that nobody answers, or only with errors that pass."""
    from requests.exceptions import RequestException

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RequestException):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
