"""Grids of alike cells: one that nobody has read yet, and those whose embeddings are nearest to it (by cosine).

They are alike in the network's eye, not by what it says of them. The embeddings of a queue do not change; they are read once.
Among them are known cells and repetitions that are alike, at the places at which single reading would have some.
"""

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from serving.contract.site import Site
from serving.labelling.queue import COUNTED, free_cells, place_of
from serving.labelling.tasks import (
    Given,
    current_queue,
    first_behind,
    free_lapsed,
    give,
    known_cells,
    locked_reader,
    measured_by,
    open_tasks,
    repeatable,
)
from serving.reports.labelling_tables import Asked, AskedImage, Queue, Reader, TaskKind
from serving.reports.store import Store

NEAREST: Final = 8  # times as many cells as a grid has are looked at: others may have been given some of them
_READ: Final[WeakKeyDictionary[Store, "Embeddings"]] = WeakKeyDictionary()
_LOCK: Final = threading.Lock()


class Embeddings(NamedTuple):
    """Of the cells of a queue that have one: names, and rows of unit length (n, d)."""

    queue_id: str
    published_at: object
    names: tuple[str, ...]
    rows: NDArray[np.float32]

    def nearest(self, name: str, count: int) -> list[str]:
        """The cells that are most alike to one, itself first; only that one where it has no embedding."""
        if name not in self.names:
            return [name]
        alike = self.rows @ self.rows[self.names.index(name)]
        order = np.argsort(-alike, kind="stable")[:count]
        return [name, *(self.names[place] for place in order if self.names[place] != name)]


def sweep_tasks(store: Store, reader: str, count: int, site: Site) -> list[Given]:
    """A grid of alike cells for the reader: the one that waits from before, else a new one.

    It is empty where nothing is left for the reader, and where no cell has an embedding.
    """
    with store.reading() as session:
        queue = current_queue(session, reader)
        if queue is None:
            return []
        if waiting := open_tasks(session, queue.id, reader, count, sweep=True):
            return waiting
        known = embeddings(store, session, queue)
    if not known.names:
        return []
    with store.writing() as session:
        row = locked_reader(session, queue.id, reader)
        cells = _grid(session, row, known, count)
        if not cells and free_lapsed(session, row):
            cells = _grid(session, row, known, count)
        return [give(session, row, cell, kind, sweep=True) for cell, kind in _mixed(session, row, cells, count, site)]


def _grid(session: Session, row: Reader, known: Embeddings, count: int) -> list[Asked]:
    """Cells that are alike, the nearest first: free ones, locked, of which the first is a seed that was given the fewest times,
    at a place that is drawn; and those that can measure the reader."""
    free = select(Asked).where(free_cells(row.queue_id, row.reader))
    place = place_of(f"{row.queue_id} {row.reader}", f"sweep {row.number}")
    seed = first_behind(session, free.where(Asked.given == 0), place) or first_behind(session, free, place)
    if seed is None:
        return []
    names = known.nearest(seed.sha256, NEAREST * count)
    query = free.where(Asked.sha256.in_(names)).with_for_update(skip_locked=True, of=Asked)
    found = {cell.sha256: cell for cell in session.scalars(query.execution_options(populate_existing=True))}
    measures = known_cells(row.queue_id, row.reader) | (Asked.sha256.in_(repeatable(row)) & (Asked.queue_id == row.queue_id))
    found |= {cell.sha256: cell for cell in session.scalars(select(Asked).where(measures, Asked.sha256.in_(names)))}
    return [found[name] for name in names if name in found]


def _mixed(session: Session, row: Reader, cells: Sequence[Asked], count: int, site: Site) -> list[tuple[Asked, TaskKind]]:
    """The cells of a grid with the kinds of their tasks. At a place that measures the reader comes the nearest cell that can."""
    again = set(session.scalars(repeatable(row).where(Asked.sha256.in_([cell.sha256 for cell in cells]))))
    waiting: dict[str, list[Asked]] = {"known": [], "repeat": [], "free": []}
    for cell in cells:
        waiting["known" if cell.purpose == "known" else "repeat" if cell.sha256 in again else "free"].append(cell)
    mixed: list[tuple[Asked, TaskKind]] = []
    while len(mixed) < count and waiting["free"]:
        measure = measured_by(row, row.number + 1 + len(mixed), site)
        if measure is not None and waiting[measure]:
            mixed.append((waiting[measure].pop(0), measure))
        else:
            cell = waiting["free"].pop(0)
            mixed.append((cell, "second" if cell.given else "first"))
    return mixed


def embeddings(store: Store, session: Session, queue: Queue) -> Embeddings:
    """Those of a queue's cells that readers are to name, and of known ones; read when they are asked for the first time."""
    with _LOCK:
        known = _READ.get(store)
        if known is None or (known.queue_id, known.published_at) != (queue.id, queue.published_at):
            known = _READ[store] = _read(session, queue)
        return known


def _read(session: Session, queue: Queue) -> Embeddings:
    query = select(AskedImage.sha256, AskedImage.embedding).join(
        Asked, (Asked.queue_id == AskedImage.queue_id) & (Asked.sha256 == AskedImage.sha256)
    )
    query = query.where(
        AskedImage.queue_id == queue.id, AskedImage.embedding.is_not(None), Asked.purpose.in_((*COUNTED, "known"))
    )
    found = session.execute(query.order_by(AskedImage.sha256)).tuples().all()
    names = tuple(name for name, _ in found)
    return Embeddings(queue.id, queue.published_at, names, _unit([bytes(data) for _, data in found if data is not None]))


def _unit(rows: Sequence[bytes]) -> NDArray[np.float32]:
    if not rows:
        return np.zeros((0, 0), np.float32)
    table = np.stack([np.frombuffer(row, np.float16).astype(np.float32) for row in rows])
    length = np.sqrt((table**2).sum(axis=1, keepdims=True))
    return (table / np.where(length > 0, length, 1)).astype(np.float32)
