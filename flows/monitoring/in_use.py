"""How right the model is in use: a share of the served cells is drawn at random, and readers name them on the page /label, blind.

Each cell of a report whose image is kept has the same chance, by a hash of where it is. So all that were read weigh the same.
Cells that nobody has read yet, or that are disputed, count when they are settled. A cell that readers call none of the five
classes was named wrong. Cells of one specimen are alike, so they count as fewer independent ones.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from flows.monitoring.alarms import RECALL, Alarm, note
from wbc_model.core.classes import CLASSES

if TYPE_CHECKING:
    from serving.contract.site import Site
    from serving.labelling.queue import AskedCell
    from serving.reports.store import Store

SETTLED: Final = {"agreed", "unnamed", "withdrawn"}  # cells that readers are not asked about again
WINDOW: Final = timedelta(days=14)  # in which a cell may be drawn; older ones are not asked about any more
LIMITS: Final = 0.99  # of what is shown and judged: it is looked at every night, and at five classes


def queue_name(site: str, model_version: str) -> str:
    """What the queues of a site and model are published under: no retraining takes their answers."""
    return f"in use: {site}: {model_version}"


# --- drawing ---------------------------------------------------------------------------------------------------------------


def draw(store: "Store", site: "Site", now: datetime | None = None) -> int:
    """Give readers the cells that were drawn, without those that they have named; returns how many are new to them."""
    from serving.labelling.queue import Notice, publish

    if not site.watching.share:
        return 0
    drawn = 0
    for model, chosen in _drawn(store, site, (now or datetime.now(UTC)) - WINDOW).items():
        name = queue_name(site.name, model)
        wanted = _not_settled(store, name, list(chosen))
        new = [sha256 for sha256, known in wanted.items() if not known]
        if new:
            queue = hashlib.sha256("".join([name, *sorted(new)]).encode()).hexdigest()[:12]
            notice = Notice(name, 0, model, next_step="the answers tell how right the model is in use")
            publish(store, queue, notice, _asked(store, {one: chosen[one] for one in wanted}), site)
            drawn += len(new)
    return drawn


Place = tuple[str, int, str, float]  # report, position, what the model said, and how sure it was


def _drawn(store: "Store", site: "Site", since: datetime) -> dict[str, dict[str, Place]]:
    """By model and cell where it is, for those that the hash draws."""
    from sqlalchemy import exists, select

    from serving.labelling.queue import share_of
    from serving.reports.tables import Cell, KeptImage, Report

    kept = exists().where(KeptImage.report_id == Cell.report_id, KeptImage.position == Cell.position)
    query = select(Cell.report_id, Cell.position).join(Report, Report.id == Cell.report_id)
    query = query.where(Report.created_at >= since, Report.withdrawn_at.is_(None), Cell.twin.is_(None), kept)
    found = defaultdict[str, dict[str, Place]](dict)
    with store.reading() as session:
        for report, position in session.execute(query.order_by(Report.created_at, Report.id, Cell.position)).tuples().all():
            if share_of("in use", report, position) < site.watching.share:
                cell = session.get_one(Cell, (report, position))
                model = session.get_one(Report, report).model_version
                if cell.result["status"] == "ok":
                    label = cell.result["label"]
                    found[model].setdefault(cell.sha256, (report, position, label, cell.result["probabilities"][label]))
    return found


def _not_settled(store: "Store", name: str, sha256s: Sequence[str]) -> dict[str, bool]:
    """Those of the cells that readers have not settled, and whether they were asked about them before."""
    from sqlalchemy import select

    from serving.reports.labelling_tables import Asked, Queue

    query = select(Asked.sha256, Asked.state).join(Queue, Queue.id == Asked.queue_id).where(Queue.workspace == name)
    states = defaultdict[str, set[str]](set)
    with store.reading() as session:
        for sha256, state in session.execute(query).tuples():
            states[sha256].add(state)
    return {one: one in states for one in sha256s if not states.get(one, set()) & SETTLED}


def _asked(store: "Store", chosen: Mapping[str, Place]) -> "Iterator[AskedCell]":
    from serving.labelling.queue import AskedCell
    from serving.reports.kept_images import images_of

    for rank, (sha256, (report, position, label, probability)) in enumerate(sorted(chosen.items()), 1):
        with store.reading() as session:
            images = images_of(session, report, [position])
        if images:
            yield AskedCell(sha256, images[position], rank, "drawn", "test", predicted=label, probability=probability)


# --- measuring -------------------------------------------------------------------------------------------------------------


def measure(store: "Store", site: str, floors: Mapping[str, float]) -> list[tuple[str, tuple[str, ...]]]:
    """Keep how right each model is in use; returns the models with the classes whose recall has come under its floor since. These
    alarms are to be told.

    The limits are those of `limits`, by specimens. A recall is under its floor where its upper limit is.
    """
    from serving.reports.tables import InUse

    new, at = [], datetime.now(UTC)
    for model, said in _settled(store, site).items():
        counts = {label: by_specimen(one for one in said if label in ("", one.truth)) for label in ("", *CLASSES)}
        under = []
        with store.writing() as session:
            for label, specimens in counts.items():
                floor = floors.get(label)
                right, cells = sum(one for one, _ in specimens), sum(number for _, number in specimens)
                low, high = limits(specimens, (1 - LIMITS) / 2)
                alarm = floor is not None and high < floor
                before = session.get(InUse, (site, model, label))
                if alarm and (before is None or not before.alarm):
                    under.append(label)
                numbers = {"cells": cells, "right": right, "low": low, "high": high, "floor": floor}
                session.merge(InUse(site=site, model_version=model, label=label, alarm=alarm, at=at, **numbers))
            if under:
                note(session, Alarm(RECALL, site, model, f"{at:%Y-%m-%d}", tuple(under)))
                new.append((model, tuple(under)))
    return new


class Read(NamedTuple):
    """A settled cell: its specimen (its report, where that has no number), what it is, and what the model named it."""

    specimen: str
    truth: str
    named: str


def _settled(store: "Store", site: str) -> dict[str, list[Read]]:
    """By model each settled cell; one that was asked about twice counts once, with its first report."""
    from sqlalchemy import func, select

    from serving.reports.labelling_tables import Asked, Queue
    from serving.reports.tables import Cell, Report

    specimen = func.coalesce(Report.specimen_id, Report.id)
    query = select(Queue.model_version, Asked.sha256, specimen, Asked.answer, Asked.predicted)
    query = query.join(Queue, Queue.id == Asked.queue_id).join(Cell, Cell.sha256 == Asked.sha256)
    query = query.join(Report, Report.id == Cell.report_id)
    query = query.where(Asked.state == "agreed", Queue.workspace.startswith(queue_name(site, "")))
    found = defaultdict[str, dict[str, Read]](dict)
    with store.reading() as session:
        for model, sha256, of, answer, predicted in session.execute(
            query.order_by(Asked.agreed_at, Report.created_at.desc())
        ).tuples():
            found[model][sha256] = Read(of, str(answer), predicted)
    return {model: list(cells.values()) for model, cells in found.items()}


def by_specimen(said: Iterable[Read]) -> list[tuple[int, int]]:
    """Of each specimen how many of its cells the model named right, and how many they are."""
    counts = defaultdict[str, list[bool]](list)
    for one in said:
        counts[one.specimen].append(one.truth == one.named)
    return [(sum(right), len(right)) for right in counts.values()]


def limits(specimens: Sequence[tuple[int, int]], tail: float) -> tuple[float, float]:
    """Limits of the share of cells that are right, each missed with a chance of `tail`, from (right, cells) of each specimen.

    They are exact (Clopper & Pearson 1934) where each specimen has one cell; 0 and 1 where there is none. Else the cells count
    as fewer: they are divided by the design effect (Kish 1965; Korn & Graubard 1998). That is the variance of the share by
    specimens, over that of as many independent cells. Few specimens may be alike by chance. So the variances are taken with two
    more of the usual size, one all right and one all wrong.
    """
    from scipy.stats import beta

    if not specimens:
        return 0.0, 1.0
    counts = np.array(specimens, np.float64)
    right, cells = counts.sum(axis=0)
    usual = (counts[:, 1] ** 2).sum() / cells
    more = np.concatenate([counts, [(usual, usual), (0, usual)]])
    share, all_ = more[:, 0].sum() / more[:, 1].sum(), more[:, 1].sum()
    spread = ((more[:, 0] - share * more[:, 1]) ** 2).sum() / (all_ * share * (1 - share))
    worth = cells / max(spread, 1.0)
    hits = worth * right / cells
    low = 0.0 if right == 0 else float(beta.ppf(tail, hits, worth - hits + 1))
    high = 1.0 if right == cells else float(beta.ppf(1 - tail, hits + 1, worth - hits))
    return low, high
