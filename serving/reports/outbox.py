"""The outbox: signed reports on their way to the hospital's system, over MLLP, at least once.

A message enters the outbox in the transaction that signs its report: neither can be without the other. It leaves the outbox when
the receiver has acknowledged it. What happens to a message:

- `AA`: delivered.
- `AE` or `AR`: failed, with the receiver's reason; the others go on. Only a person can put it right, and then `send_again`.
- the receiver cannot be reached: tried again for ever, waiting 1, 2, 4 ... 60 seconds; the others wait behind it, in order.
- it was sent but not acknowledged: the same, but after `retries` times the others go past it.

A new signature or a withdrawal retires the report's messages before it, whether they wait or were refused
(serving/reports/messages.py): nothing older is sent after it. While a signed report is being amended its message waits. The order
within a report is that of the messages' numbers, not of a clock.
"""

import logging
import socket
import threading
import time
from collections.abc import Container
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, case, exists, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, aliased, object_session

from serving.contract.site import Hl7Receiver
from serving.formats.hl7 import Acknowledgement, BadAcknowledgement, frame, may_be_whole, parse_acknowledgement, unframe
from serving.reports.store import Store
from serving.reports.tables import Message, Report
from wbc_model.core.errors import counted

FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 60.0
POLL_SECONDS: Final = 1.0
LEASE_MARGIN: Final = 2.0
QUIET_SECONDS: Final = 1.0  # after which an answer without the end of a frame is taken to be all
MAX_ACKNOWLEDGEMENT: Final = 64 * 1024

log = logging.getLogger("bentoml.wbc")  # BentoML sets up the log of what is called `bentoml`


class Unreachable(Exception):
    """No connection."""


class Unanswered(Exception):
    """There was a connection, but no acknowledgement of this message came back."""


class Backlog(NamedTuple):
    """Messages that are `pending` and `failed`, and for how many seconds the oldest pending one has waited."""

    pending: int
    failed: int
    oldest_seconds: float


def _now() -> datetime:
    return datetime.now(UTC)


def send(text: str, control_id: str, receiver: Hl7Receiver) -> Acknowledgement:
    """Send one message and wait for its acknowledgement; raises Unreachable or Unanswered. Blocks.

    The message has left after twice `timeout_seconds` or does not leave any more: what comes after it need not wait longer.
    """
    deadline = time.monotonic() + 2 * receiver.timeout_seconds
    try:
        connection = socket.create_connection((receiver.host, receiver.port), receiver.timeout_seconds)
    except (OSError, UnicodeError) as error:  # the latter for a name that cannot be looked up, such as a..b
        raise Unreachable(f"no connection: {getattr(error, 'strerror', None) or error}") from None
    with connection:
        if (left := deadline - time.monotonic()) <= 0:
            raise Unreachable("no connection: it took too long")
        connection.settimeout(min(left, receiver.timeout_seconds))
        try:
            connection.sendall(frame(text))
            return parse_acknowledgement(_receive(connection, receiver.timeout_seconds), control_id)
        except (OSError, BadAcknowledgement) as error:
            raise Unanswered(f"no acknowledgement: {error}") from None


def _receive(connection: socket.socket, timeout: float) -> str:
    """What came back, up to the end of its frame; without one, what there was when no more came."""
    deadline = time.monotonic() + timeout
    received = b""
    while (text := unframe(received)) is None:
        try:
            chunk = _more(connection, deadline, may_be_whole(received))
        except OSError as error:
            if may_be_whole(received):
                return received.decode(errors="replace")
            raise ConnectionError(
                f"{error}, after {counted(len(received), 'byte')} without the end of a frame" if received else error
            ) from None
        received += chunk
        if len(received) > MAX_ACKNOWLEDGEMENT:
            raise ConnectionError(f"the answer is longer than {MAX_ACKNOWLEDGEMENT} bytes")
    return text


def _more(connection: socket.socket, deadline: float, may_be_all: bool) -> bytes:
    """The next bytes; raises OSError where none come before the deadline, or soon where what is there may be all."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    connection.settimeout(min(left, QUIET_SECONDS) if may_be_all else left)
    chunk = connection.recv(4096)
    if not chunk:
        raise ConnectionError("the receiver closed the connection")
    return chunk


def lease(receiver: Hl7Receiver) -> timedelta:
    """For how long a message is claimed by whoever sends it: connecting, sending, and waiting for the acknowledgement."""
    return timedelta(seconds=3 * receiver.timeout_seconds + LEASE_MARGIN)


def _next() -> ColumnElement[bool]:
    """That no earlier message of the same report waits."""
    earlier = aliased(Message)
    waits = (earlier.report_id == Message.report_id) & (earlier.state == "pending") & (earlier.id < Message.id)
    return ~exists(select(earlier.id).where(waits))


def _in_force() -> ColumnElement[bool]:
    """That the report is not just being amended, and by no model of drawn cells; a withdrawal goes all the same."""
    settled = or_((Report.status != "preliminary") & ~Report.rendered, Report.withdrawn_at.is_not(None))
    return exists(select(Report.id).where(Report.id == Message.report_id, settled))


def lock_messages(report: Report) -> None:
    """Read a report's messages again, for this transaction alone: a sender may have taken one since the report was read."""
    session = object_session(report)
    for message in report.messages:
        if session is not None and message.id is not None:
            session.refresh(message, with_for_update=True)


def retire(report: Report, now: datetime, kept: Container[str]) -> datetime:
    """Let no message of the report be sent any more, in the caller's transaction, but those whose control ids are `kept`;
    returns when the next one may be.

    A message that may be on its way at this moment cannot be called back: the next waits until it has arrived or has failed.
    """
    due = now
    for message in report.messages:
        if message.state == "pending" and message.attempts:
            due = max(due, message.not_before)
        if message.state in ("pending", "failed") and message.control_id not in kept:
            message.state, message.finished_at = "retired", now
    return due


def _put_clock_right(session: Session, receiver: Hl7Receiver, now: datetime) -> None:
    claimed = lease(receiver)
    longest = max(timedelta(seconds=LONGEST_WAIT), claimed)
    ahead = (Message.state == "pending") & (Message.not_before > now + longest)
    session.execute(update(Message).where(ahead).values(not_before=now + claimed))


def take(store: Store, receiver: Hl7Receiver) -> Message | None:
    """The message to send now, claimed for as long as sending it may last; None where nothing is due."""
    now = _now()
    set_aside = Message.unanswered >= receiver.retries
    query = (
        select(Message)
        .where(Message.state == "pending", _next(), _in_force())
        .where(or_(~set_aside, Message.not_before <= now))
        .order_by(set_aside, Message.id)
        .limit(1)
        .with_for_update()
    )
    with store.writing() as session:
        _put_clock_right(session, receiver, now)
        message = session.scalar(query)
        if message is None or message.not_before > now:
            return None
        message.attempts += 1
        message.not_before = now + lease(receiver)
        return message


def wait_after(attempts: int) -> float:
    """Seconds from the `attempts`-th failed attempt to the next."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempts - 1, 16))


def deliver_one(store: Store, receiver: Hl7Receiver) -> bool:
    """Send the message that is due and keep what became of it; False where none was due or it has to be sent again."""
    taken = take(store, receiver)
    if taken is None:
        return False
    answer: Acknowledgement | None = None
    failure: Unreachable | Unanswered | None = None
    try:
        answer = send(taken.text, taken.control_id, receiver)
    except (Unreachable, Unanswered) as error:
        failure = error
    with store.writing() as session:
        message = session.get_one(Message, taken.id, with_for_update=True)
        if message.state == "retired" and (answer is None or not answer.accepted):
            message.error = str(failure) if answer is None else f"{answer.code}: {answer.reason}"
        elif answer is not None:
            message.state = "delivered" if answer.accepted else "failed"
            message.error = None if answer.accepted else f"{answer.code}: {answer.reason}"
            message.finished_at = _now()
        else:
            message.not_before = _now() + timedelta(seconds=wait_after(message.attempts))
            message.unanswered += isinstance(failure, Unanswered)
            message.error = str(failure)
    # The receiver's own words stay in the store: they may name a patient.
    log.info("message %s: %s", taken.control_id, failure or f"{message.state} ({answer.code if answer else ''})")
    return answer is not None


def refused(store: Store) -> list[Message]:
    """The messages that the receiver has refused and that were not superseded, in order."""
    with store.reading() as session:
        return list(session.scalars(select(Message).where(Message.state == "failed").order_by(Message.id)))


def send_again(store: Store) -> int:
    """Put every failed message back in the queue; returns how many. One that was superseded has retired and is none.

    One that was once not answered may have arrived then: that is not forgotten.
    """
    once = case((Message.unanswered > 0, 1), else_=0)
    fresh = {"state": "pending", "attempts": once, "unanswered": once, "not_before": _now(), "finished_at": None}
    with store.writing() as session:
        failed = list(session.scalars(select(Message.id).where(Message.state == "failed").with_for_update()))
        session.execute(update(Message).where(Message.id.in_(failed)).values(fresh))
        return len(failed)


def backlog(store: Store) -> Backlog:
    """What is in the outbox now."""
    with store.reading() as session:
        counts = dict(session.execute(select(Message.state, func.count()).group_by(Message.state)).tuples().all())
        oldest = session.scalar(select(func.min(Message.created_at)).where(Message.state == "pending"))
    waited = (_now() - oldest).total_seconds() if oldest else 0.0
    return Backlog(counts.get("pending", 0), counts.get("failed", 0), max(0.0, waited))


class Sender:
    """A thread that empties the outbox."""

    def __init__(self, store: Store, receiver: Hl7Receiver) -> None:
        self._store = store
        self._receiver = receiver
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is a new message: do not wait for the next look."""
        self._wake.set()

    def close(self) -> None:
        """End. A message that is under way has a moment to be acknowledged; if it is not, it is sent again at the next start."""
        self._ended = True
        self._wake.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._ended:
            try:
                busy = deliver_one(self._store, self._receiver)
            except SQLAlchemyError as error:
                log.error("the outbox cannot be read: %s", type(error).__name__)
                busy = False
            if not busy:
                self._wake.wait(POLL_SECONDS)
                self._wake.clear()
