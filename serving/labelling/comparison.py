"""How far readers agree, in numbers: what they said becomes the answer of `GET /v1/labelling/agreement`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import select
from sqlalchemy.orm import Session

from serving.contract.agreement_schemas import (
    Agreement,
    ConfusionRow,
    Hits,
    KindKappa,
    PairAgreement,
    ReaderAgreement,
    ReaderConfusion,
)
from serving.contract.labelling import UNSURE, answers_of
from serving.contract.site import Site
from serving.labelling.agreement import cohen_kappa, hits, kappa_of_class
from serving.labelling.confusion import MIN_COMPARED, compared, dawid_skene, reportable
from serving.labelling.queue import left_of, states_of
from serving.labelling.readings import Readings, readings_of
from serving.reports.labelling_tables import Queue, Reader
from serving.reports.store import Store


def agreement(store: Store, site: Site, lead: bool) -> Agreement:
    """How far the readers of the newest queue's workspace agree, over all its queues; empty where nothing was ever asked.

    Only for a `lead` there is how often each was right at known cells.
    """
    with store.reading() as session:
        newest = select(Queue).where(Queue.published_at.is_not(None)).order_by(Queue.published_at.desc(), Queue.id)
        queue = session.scalar(newest.limit(1))
        readings = Readings() if queue is None else readings_of(session, queue.workspace)
        progress = {} if queue is None else _progress(session, queue)
        states = Counter[str]() if queue is None else states_of(session, queue.id)
    kinds = _kinds(readings, site)
    return Agreement(
        workspace=None if queue is None else queue.workspace,
        pairs=pairs(readings, kinds),
        readers=readers(readings, progress, kinds, lead),
        disputed=states["disputed"],
        unnamed=states["unnamed"],
        needed_for_confusion=MIN_COMPARED,
        lead=lead,
    )


def _progress(session: Session, queue: Queue) -> dict[str, tuple[int, int]]:
    """By reader who was given a task of the queue: how many were answered, and how many the reader could still answer."""
    answered = select(Reader.reader, Reader.answered).where(Reader.queue_id == queue.id, Reader.number > 0)
    rows = session.execute(answered).tuples().all()
    return {reader: (done, 0 if queue.closed_at else left_of(session, queue.id, reader)) for reader, done in rows}


def _kinds(readings: Readings, site: Site) -> list[str]:
    """What a cell can be here, and what it could be when it was read."""
    said = {one.answer for one in readings.blind} | {one.truth for one in readings.blind} | set(readings.adjudicated.values())
    known = [answer for answer in answers_of(site) if answer != UNSURE]
    return [*known, *sorted(said - {*known, UNSURE, ""})]


def pairs(readings: Readings, kinds: Sequence[str]) -> list[PairAgreement]:
    """Kappa of each two readers who read a cell in common, over all kinds and for each."""
    return [_pair(readers, *answers, kinds) for readers, answers in readings.pairs().items()]


def _pair(readers: tuple[str, str], first: Sequence[str], second: Sequence[str], kinds: Sequence[str]) -> PairAgreement:
    both = [(a, b) for a, b in zip(first, second, strict=True) if a in kinds and b in kinds]
    per_class = []
    for kind in kinds:
        if (kappa := kappa_of_class(first, second, kind, kinds)) is not None:
            named, limits = sum(kind in pair for pair in both), {"kappa": kappa.value, "low": kappa.low, "high": kappa.high}
            per_class.append(KindKappa(answer=kind, n=kappa.n, named=named, **limits))
    overall = cohen_kappa(first, second, kinds)
    if overall is None:
        return PairAgreement(readers=readers, n=len(both), kappa=None, low=None, high=None, per_class=[])
    limits = {"kappa": overall.value, "low": overall.low, "high": overall.high}
    return PairAgreement(readers=readers, n=overall.n, **limits, per_class=per_class)


def confusions(readings: Readings, kinds: Sequence[str]) -> dict[str, ReaderConfusion]:
    """The confusion of each reader who has MIN_COMPARED answers that can be compared."""
    counts = compared(readings.blind, readings.adjudicated)
    if not any(count >= MIN_COMPARED for count in counts.values()):
        return {}
    found = {}
    for reader, confusion in dawid_skene(readings.blind, readings.adjudicated, kinds, UNSURE).items():
        if (shown := reportable(confusion)) is not None:
            rows = [ConfusionRow.model_validate(asdict(row)) for row in shown.rows]
            few = [row.truth for row in confusion.rows if row not in shown.rows]
            found[reader] = ReaderConfusion(answers=list(shown.answers), rows=rows, few=few)
    return found


def readers(
    readings: Readings, progress: Mapping[str, tuple[int, int]], kinds: Sequence[str], lead: bool
) -> list[ReaderAgreement]:
    """Each reader who ever answered, or was given a task; `progress` is how many tasks each has answered and could answer."""
    counts, estimates = compared(readings.blind, readings.adjudicated), confusions(readings, kinds)
    names = sorted({reading.reader for reading in readings.blind} | set(progress))
    return [
        ReaderAgreement(
            reader=name,
            answered=progress.get(name, (0, 0))[0],
            left=progress.get(name, (0, 0))[1],
            compared=counts[name],
            self_agreement=_hits(readings.twice.get(name, [])),
            known=_hits(readings.known.get(name, [])) if lead else None,
            confusion=estimates.get(name),
        )
        for name in names
    ]


def _hits(right: Sequence[bool]) -> Hits | None:
    found = hits(sum(right), len(right))
    return None if found is None else Hits.model_validate(asdict(found))
