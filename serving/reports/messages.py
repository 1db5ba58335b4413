"""The messages that a signature or a withdrawal puts into the outbox, in the same transaction.

What was waiting of the same report retires, whether or not the site has a receiver now: it may have one again, and nothing older
may then follow. What corrects a result that a receiver may hold waits for it. A receiver files results by the specimen number:
where that was put right, the result under the former number is taken back first.
"""

import base64
import secrets
from datetime import datetime
from typing import Final

from serving.contract.differential import Differential
from serving.contract.schemas import ModelName
from serving.contract.site import Site
from serving.formats.hl7 import Sent, Signed, Told, about, observations_of, oru_r01
from serving.reports.outbox import lock_messages, retire
from serving.reports.tables import Message, Report

OTHER_SPECIMEN: Final = "the specimen number was wrong and has been corrected"


def announce_signature(report: Report, by: str, corrected: int, now: datetime, site: Site) -> None:
    """Put the message of a report that `by` has just signed into the outbox.

    The site has a receiver, or had one that may hold a result of the report.

    `corrected` is how many cells count as something else than what the model said.
    """
    lock_messages(report)
    told = _told(report)
    wrong = [specimen for specimen in told if specimen != report.specimen_id]
    due, kept = _retire_others(report, now)
    if site.hl7 is None and not told:
        return
    for specimen in wrong:
        if specimen not in kept:
            before = Differential.model_validate(report.signatures[-2].differential)
            taken_back = _said(report, "withdrawn", by, 0, now)
            taken_back = taken_back._replace(specimen_id=specimen, reason=OTHER_SPECIMEN, told=told[specimen])
            report.messages.append(_message(before, taken_back, due, now, site))
    said = _said(report, report.status, by, corrected, now)._replace(told=told.get(report.specimen_id, ()))
    report.messages.append(_message(Differential.model_validate(report.differential), said, due, now, site))


def announce_withdrawal(report: Report, by: str, reason: str, now: datetime, site: Site) -> None:
    """Tell the receiver that what it was told of the report is wrong; nothing where nothing can have reached it."""
    lock_messages(report)
    told = _told(report)
    due, kept = _retire_others(report, now)
    for specimen in told:
        if specimen not in kept:
            last = Differential.model_validate(report.signatures[-1].differential)
            said = _said(report, "withdrawn", by, 0, now)._replace(specimen_id=specimen, reason=reason, told=told[specimen])
            report.messages.append(_message(last, said, due, now, site))


def _told(report: Report) -> dict[str | None, list[Told]]:
    """By the specimen number what the receiver may hold of the report's results: what it was told and was not taken back."""
    told: dict[str | None, dict[str, Told]] = {}
    for message in report.messages:
        specimen, withdrawn = about(message.text)
        known = told.get(specimen, {})
        after = observations_of(message.text, known)
        if message.state == "delivered":
            told[specimen] = after
            if withdrawn and not after:
                del told[specimen]
        elif _may_have_arrived(message) and not withdrawn:  # and may not: what it takes back may still be there
            told[specimen] = known | after
    return {specimen: list(held.values()) for specimen, held in told.items()}


def _may_have_arrived(message: Message) -> bool:
    """Whether the receiver may have taken a message although it has not said so: what it refuses may be a repetition of that."""
    return bool(message.unanswered if message.state == "failed" else message.attempts)


def _retire_others(report: Report, now: datetime) -> tuple[datetime, set[str | None]]:
    """Retire all but the withdrawals of other specimen numbers; returns when the next message may go, and those numbers."""
    kept = {
        one.control_id: about(one.text).specimen
        for one in report.messages
        if one.state in ("pending", "failed") and about(one.text).withdrawn and about(one.text).specimen != report.specimen_id
    }
    return retire(report, now, kept.keys()), set(kept.values())


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
