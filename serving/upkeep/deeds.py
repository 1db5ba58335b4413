"""What is left of deeds: the open ones that a start completes, and the answers that are forgotten."""

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from serving.reports.store import Store
from serving.reports.tables import Deed
from serving.security.audit import AuditLog
from serving.upkeep.clock import Clock

KEPT_DAYS: Final = 7  # how long the answer to a key is kept
CLEAN_SECONDS: Final = 3600.0
NOT_DONE: Final = 0  # the status of a deed that was not done and never will be
_LOG = logging.getLogger("bentoml.wbc")


def settle(store: Store, intention: str) -> Mapping[str, Any] | None:
    """What the audit log says of a deed that was done; None where it was not, and from now on never will be.

    A row of its own takes the intention's place. A transaction that was on its way when its process died can then not be
    committed any more. One that is being committed is waited for. In SQLite's file nothing is on its way: where the row finds no
    room, a look is enough.
    """
    void = Deed(
        intention=intention,
        caller="",
        key=None,
        digest="",
        status=NOT_DONE,
        headers={},
        body=b"",
        record={},
        at=datetime.now(UTC),
    )
    try:
        with store.writing() as session:
            session.add(void)
            session.flush()
    except (IntegrityError, OperationalError) as error:
        if isinstance(error, OperationalError) and not store.is_file:
            raise
        with store.reading() as session:
            deed = session.get(Deed, intention)
        return deed.record if deed is not None and deed.status != NOT_DONE else None
    return None


def complete(audit: AuditLog | None, store: Store | None) -> None:
    """At the start: give each intention that has no outcome the one that the store knows of. Raises SQLAlchemyError."""
    if audit is None or not audit.intentions:
        return
    if store is None:
        _LOG.warning("%s: %d intentions have no outcome, and no store can tell it", audit.path, len(audit.intentions))
        return
    for intention in list(audit.intentions):
        record = settle(store, intention)
        audit.complete(intention, record)
        _LOG.warning("the intention %s of before was %s", intention, "not carried out" if record is None else "carried out")


class Cleaned:
    """When deeds were last forgotten."""

    def __init__(self) -> None:
        self.next = 0.0


def forget_old(store: Store, audit: AuditLog | None, cleaned: Cleaned, clock: Clock) -> None:
    """Once an hour: forget the answers of KEPT_DAYS ago, but of no intention that still has no outcome."""
    now = time.monotonic()
    if now < cleaned.next:
        return
    cleaned.next = now + CLEAN_SECONDS
    open_ones = [] if audit is None else list(audit.intentions)
    try:
        old = Deed.at < clock.now() - timedelta(days=KEPT_DAYS)
        with store.writing() as session:
            session.execute(delete(Deed).where(old, Deed.intention.not_in(open_ones)))
    except DBAPIError as error:
        _LOG.error("old answers could not be deleted: %s", type(error).__name__)
