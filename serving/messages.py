"""The messages that a signature or a withdrawal puts into the outbox, in the same transaction.

What was waiting of the same report retires, whether or not the site has a receiver now: it may have one again, and nothing older
may then follow.
"""

import base64
import secrets
from datetime import datetime

from serving.differential import Differential
from serving.hl7 import Sent, Signed, oru_r01
from serving.outbox import retire
from serving.schemas import ModelName
from serving.site import Site
from serving.store import Message, Report


def announce_signature(report: Report, by: str, corrected: int, now: datetime, site: Site) -> None:
    """Put the message of a report that `by` has just signed into the outbox, where the site has a receiver.

    `corrected` is how many cells count as something else than what the model said.
    """
    due = retire(report, now)
    if site.hl7 is not None:
        said = _said(report, report.status, by, corrected, now)
        report.messages.append(_message(Differential.model_validate(report.differential), said, due, now, site))


def announce_withdrawal(report: Report, by: str, reason: str, now: datetime, site: Site) -> None:
    """Tell the receiver that the report, as it was signed last, is wrong; nothing where nothing of it was ever on its way."""
    on_its_way = any(message.attempts for message in report.messages)
    due = retire(report, now)
    if site.hl7 is not None and on_its_way:
        said = _said(report, "withdrawn", by, 0, now)._replace(reason=reason)
        report.messages.append(_message(Differential.model_validate(report.signatures[-1].differential), said, due, now, site))


def _said(report: Report, status: Sent, by: str, corrected: int, now: datetime) -> Signed:
    return Signed(
        report_id=report.id,
        status=status,
        specimen_id=report.specimen_id,
        model=ModelName(name=report.model_name, version=report.model_version),
        by=by,
        analysed=report.created_at,
        signed=now,
        corrected=corrected,
    )


def _message(differential: Differential, said: Signed, due: datetime, now: datetime, site: Site) -> Message:
    control_id = base64.b32encode(secrets.token_bytes(12)).decode().rstrip("=")
    return Message(control_id=control_id, text=oru_r01(differential, said, control_id, site), not_before=due, created_at=now)
