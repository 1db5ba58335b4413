"""Second opinions: a person asks another one by name, who answers; the question can be taken back until then.

Each step is a row that stays. None of them changes a result: a signed report stays signed, and an open question does not stand
in the way of a signature.
"""

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from serving.contract.report_schemas import ReportOpinion
from serving.contract.schemas import Step
from serving.reports.answers import opinions
from serving.reports.review import Action, locked
from serving.reports.store import Store
from serving.reports.tables import Opinion, Report
from serving.worklist.errors import (
    AnsweredAlready,
    AskedAlready,
    AsksThemselves,
    NoSuchOpinion,
    NotTheOneAsked,
    TakenBackAlready,
)


def ask(store: Store, action: Action, of: str, note: str) -> Report:
    """Ask the person `of` for a second opinion; returns the report.

    Raises NoSuchReport, ChangedMeanwhile, AsksThemselves and AskedAlready.
    """
    with store.writing() as session:
        report = locked(session, action.report_id, action.expected)
        if of == action.person.by:
            raise AsksThemselves
        if any(one.of == of and one.state == "open" for one in opinions(report)):
            raise AskedAlready(of)
        return _took(session, report, action, "asked", of, note)


def answer(store: Store, action: Action, number: int, text: str) -> Report:
    """Answer a question, or answer it once more; returns the report.

    Raises NoSuchReport, ChangedMeanwhile, NoSuchOpinion, NotTheOneAsked and TakenBackAlready.
    """
    with store.writing() as session:
        report = locked(session, action.report_id, action.expected)
        asked = _asked(report, number)
        if asked.of != action.person.by:
            raise NotTheOneAsked(asked.of)
        return _took(session, report, action, "answered", asked.of, text, number)


def take_back(store: Store, action: Action, number: int) -> Report:
    """Take a question back that was not answered, whoever has asked it; returns the report.

    Raises NoSuchReport, ChangedMeanwhile, NoSuchOpinion, TakenBackAlready and AnsweredAlready.
    """
    with store.writing() as session:
        report = locked(session, action.report_id, action.expected)
        asked = _asked(report, number)
        if asked.state == "answered":
            raise AnsweredAlready
        return _took(session, report, action, "taken_back", asked.of, "", number)


def _asked(report: Report, number: int) -> ReportOpinion:
    """The second opinion of this number, which was not taken back."""
    found = next((one for one in opinions(report) if one.id == number), None)
    if found is None:
        raise NoSuchOpinion(number)
    if found.state == "taken_back":
        raise TakenBackAlready
    return found


def _took(session: Session, report: Report, action: Action, step: Step, of: str, text: str, request: int | None = None) -> Report:
    report.version += 1
    report.opinions.append(
        Opinion(
            request=request,
            step=step,
            asked=of,
            text=text,
            by=action.person.by,
            caller=action.person.caller,
            at=datetime.now(UTC),
            version=report.version,
        )
    )
    session.flush()
    return report
