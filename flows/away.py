"""An MLflow server that is away, or takes calls and never answers: its client asks again by itself (urllib3). Here is what bounds
that, and what makes it a line for a person."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from wbc_model.core.errors import WbcError

_TRIES: Final = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_ANSWER: Final = "MLFLOW_HTTP_REQUEST_TIMEOUT"
ANSWER_SECONDS: Final = 60  # that a server may be silent for, as one that hands a model on to a bucket; MLflow has two minutes
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


def bound_waiting() -> None:
    """Have MLflow's client wait ANSWER_SECONDS for an answer, unless the user has set it. With what it waits between its tries a
    call ends after some twelve minutes."""
    os.environ.setdefault(_ANSWER, str(ANSWER_SECONDS))


@contextmanager
def mlflow_answering(uri: str, say: Callable[[str], None]) -> Iterator[None]:
    """For the block: a server that is away, or silent, is asked again, and `say` is told so. Raises WbcError after that."""
    from mlflow.exceptions import MlflowException

    with told_when_retrying(lambda: say(f"MLflow at {uri} does not answer: it is asked again for some minutes")):
        try:
            yield
        except MlflowException as error:
            if not is_away(error):
                raise
            kept = "finished work is kept, and the same command continues"
            raise WbcError(f"MLflow at {uri} has stopped answering; {kept}") from error


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
