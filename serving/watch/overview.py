"""What the watch has found: of each site the newest days, since when a measure is an alarm, and how right the model is in use."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from serving.contract.watching import LabelInUse, MeasureState, SiteWatch, Watch
from serving.reports.store import Store
from serving.reports.tables import Drift, InUse, UsualCells, WatchPicture

MEASURES: Final = ("class", "doubt", "stain", "sharpness", "embedding")  # in the order of the page


def watch(store: Store) -> Watch:
    """What is known of all sites whose cells are in the store."""
    with store.reading() as session:
        names = list(session.scalars(select(Drift.site).union(select(InUse.site)).order_by("site")))
        return Watch(sites=[_site(session, name) for name in names])


def picture(store: Store, site: str, name: str) -> bytes | None:
    """A picture as SVG, or None where there is none of this name."""
    with store.reading() as session:
        found = session.get(WatchPicture, (site, name))
        return None if found is None else bytes(found.data)


def _site(session: Session, name: str) -> SiteWatch:
    day = session.scalar(select(func.max(Drift.day)).where(Drift.site == name)) or ""
    newest = session.scalars(select(Drift).where(Drift.site == name, Drift.day == day)).all()
    model = max((one.model_version for one in newest), default="")
    rows = session.scalars(select(Drift).where(Drift.site == name, Drift.model_version == model).order_by(Drift.day)).all()
    in_use = list(session.scalars(select(InUse).where(InUse.site == name).order_by(InUse.at, InUse.label)))
    serving = model or (in_use[-1].model_version if in_use else "")
    usual = session.get(UsualCells, (name, model))
    return SiteWatch(
        site=name,
        model=serving,
        day=day,
        usual_since=None if usual is None else usual.since,
        measures=_measures(rows),
        in_use=[_in_use(one) for one in in_use if one.model_version == serving],
        pictures=sorted(session.scalars(select(WatchPicture.name).where(WatchPicture.site == name)), key=MEASURES.index),
    )


def _measures(rows: Iterable[Drift]) -> list[MeasureState]:
    """The newest state of each measure; `since` is the first day of the alarm that stands."""
    history = defaultdict[str, list[Drift]](list)
    for row in rows:
        history[row.measure].append(row)
    found = []
    for name in (one for one in MEASURES if one in history):
        judged = [row for row in history[name] if row.state != "few"]
        last = judged[-1] if judged else history[name][-1]
        since = None
        for row in reversed(judged):
            if row.state != "alarm":
                break
            since = row.day
        differed = next((row.day for row in judged if row.state == "differs"), None)
        found.append(
            MeasureState(
                measure=name,
                state=last.state,
                day=last.day,
                since=since,
                differed=differed,
                cells=last.cells,
                effective=last.effective,
                effect=last.effect,
                from_training=last.from_training,
            )
        )
    return found


def _in_use(row: InUse) -> LabelInUse:
    return LabelInUse(
        label=row.label or None,
        cells=row.cells,
        right=row.right,
        low=row.low,
        high=row.high,
        floor=row.floor,
        alarm=row.alarm,
    )
