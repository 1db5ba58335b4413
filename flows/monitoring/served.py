"""What the store has of the watch: the cells of each site and day, the usual state of a site, and what was found."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from flows.monitoring.alarms import Alarm, note
from flows.monitoring.drift import Day, Usual, Verdict
from flows.monitoring.measures import Cells
from wbc_model.core.errors import WbcError
from wbc_model.core.reference import WIDTH

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from serving.reports.store import Store
    from serving.reports.tables import WatchWord

_MEASURES: Final = np.dtype("<f4")
_WITH_REQUEST: Final = np.dtype([("request", "<i8"), ("row", "<f4", (WIDTH,))])


class Stream(NamedTuple):
    """A site under one model: what is compared is of one stream."""

    site: str
    model_version: str


def streams(store: "Store") -> list[Stream]:
    """The sites and models that the store has cells of."""
    from sqlalchemy import select

    from serving.reports.tables import WatchedCells

    with store.reading() as session:
        found = session.execute(select(WatchedCells.site, WatchedCells.model_version).distinct())
        return sorted(Stream(site, model) for site, model in found)


def days_of(store: "Store", stream: Stream, after: str, before: str) -> list[Day]:
    """The days of a stream after one and before another, the earliest first."""
    from sqlalchemy import select

    from serving.reports.tables import WatchedCells

    query = select(WatchedCells.day, WatchedCells.measures).order_by(WatchedCells.day, WatchedCells.id)
    query = query.where(WatchedCells.site == stream.site, WatchedCells.model_version == stream.model_version)
    requests = defaultdict[str, list[np.ndarray]](list)
    with store.reading() as session:
        for day, measures in session.execute(query.where(WatchedCells.day > after, WatchedCells.day < before)):
            requests[day].append(np.frombuffer(measures, _MEASURES).reshape(-1, WIDTH))
    return [Day(day, Cells.of_requests(of_day)) for day, of_day in requests.items()]


def usual_of(store: "Store", stream: Stream) -> Usual:
    """The usual state of a stream: the one that was kept; where a person's word came since, one that begins on the day of it."""
    from serving.reports.tables import UsualCells

    with store.reading() as session:
        word = _standing(session, stream)
        kept = session.get(UsualCells, stream)
        if kept is not None and kept.word == (None if word is None else word.id):
            table = np.frombuffer(kept.measures, _WITH_REQUEST)
            cells = Cells(table["row"].astype(np.float32), table["request"].astype(np.int64))
            return Usual(kept.since, kept.through, cells)
        return Usual() if word is None else Usual(through=str(date.fromisoformat(word.since) - timedelta(days=1)))


def _standing(session: "Session", stream: Stream) -> "WatchWord | None":
    """The last word of a person on a stream that was not taken back."""
    from sqlalchemy import select

    from serving.reports.tables import WatchWord

    undone = select(WatchWord.undoes).where(WatchWord.undoes.is_not(None))
    query = select(WatchWord).where(WatchWord.site == stream.site, WatchWord.model_version == stream.model_version)
    query = query.where(WatchWord.undoes.is_(None), WatchWord.id.not_in(undone))
    return session.scalar(query.order_by(WatchWord.id.desc()).limit(1))


def keep(store: "Store", stream: Stream, verdicts: Sequence[Verdict], usual: Usual, alarms: Sequence[Alarm] = ()) -> None:
    """Keep what was found of some days, in the place of what was found of them before, and the usual state after them. With it
    goes which alarms are to be told: all of it or nothing."""
    from serving.reports.tables import Drift, UsualCells

    with store.writing() as session:
        for one in verdicts:
            found = one.compared
            session.merge(
                Drift(
                    **stream._asdict(),
                    day=one.day,
                    measure=one.measure,
                    against=one.against,
                    cells=one.cells,
                    effective=None if found is None else found.effective,
                    p=None if found is None else found.p,
                    effect=None if found is None else found.effect,
                    from_training=one.training,
                    state=one.state,
                )
            )
        for alarm in alarms:
            note(session, alarm)
        if len(usual.cells):
            word = _standing(session, stream)
            table = np.empty(len(usual.cells), _WITH_REQUEST)
            table["request"], table["row"] = usual.cells.request, usual.cells.rows
            session.merge(
                UsualCells(
                    **stream._asdict(),
                    since=usual.since,
                    through=usual.through,
                    word=None if word is None else word.id,
                    cells=len(table),
                    measures=table.tobytes(),
                )
            )


def alarms_on(store: "Store", stream: Stream, day: str) -> set[str]:
    """The measures whose last judged day before `day` was an alarm."""
    from sqlalchemy import select

    from serving.reports.tables import Drift

    query = select(Drift.measure, Drift.state).where(Drift.site == stream.site, Drift.model_version == stream.model_version)
    with store.reading() as session:
        rows = session.execute(query.where(Drift.day < day, Drift.state != "few").order_by(Drift.day)).tuples()
        return {measure for measure, state in dict(rows.all()).items() if state == "alarm"}


def accept(store: "Store", site: str, since: str, reason: str, by: str) -> Stream:
    """A person's word that a site's cells from a day on are its usual state, under the model of that day; returns the stream.

    Raises WbcError where the site has no cells of that day.
    """
    from sqlalchemy import select

    from serving.reports.tables import WatchedCells, WatchWord

    query = select(WatchedCells.model_version).where(WatchedCells.site == site, WatchedCells.day == since)
    with store.writing() as session:
        model = session.scalar(query.order_by(WatchedCells.id.desc()).limit(1))
        if model is None:
            raise WbcError(f"site {site!r} has no watched cells of {since}: `wbc watch` lists the sites")
        word = {"site": site, "model_version": model, "since": since, "reason": reason, "by": by, "at": datetime.now(UTC)}
        session.add(WatchWord(**word))
    return Stream(site, model)


def take_back(store: "Store", site: str, reason: str, by: str) -> Stream:
    """Take back the last word on a site; returns the stream that it was about. Raises WbcError where none stands."""
    from sqlalchemy import select

    from serving.reports.tables import WatchWord

    with store.writing() as session:
        models = session.scalars(select(WatchWord.model_version).where(WatchWord.site == site).distinct())
        words = [word for model in models if (word := _standing(session, Stream(site, model))) is not None]
        if not words:
            raise WbcError(f"no word on site {site!r} stands that could be taken back")
        last = max(words, key=lambda word: word.id)
        back = {"since": last.since, "reason": reason, "by": by, "at": datetime.now(UTC), "undoes": last.id}
        session.add(WatchWord(site=site, model_version=last.model_version, **back))
        return Stream(site, last.model_version)


def effects(store: "Store", stream: Stream) -> dict[str, list[tuple[str, float | None, float | None, str]]]:
    """By measure the days of a stream: day, effect, effect from training, state."""
    from sqlalchemy import select

    from serving.reports.tables import Drift

    query = select(Drift).where(Drift.site == stream.site, Drift.model_version == stream.model_version).order_by(Drift.day)
    found = defaultdict[str, list[tuple[str, float | None, float | None, str]]](list)
    with store.reading() as session:
        for row in session.scalars(query):
            found[row.measure].append((row.day, row.effect, row.from_training, row.state))
    return found


def keep_pictures(store: "Store", site: str, pictures: Iterable[tuple[str, bytes]]) -> None:
    """Keep the pictures of a site's page, (name, SVG), in the place of those before."""
    from serving.reports.tables import WatchPicture

    with store.writing() as session:
        for name, data in pictures:
            session.merge(WatchPicture(site=site, name=name, data=data))
