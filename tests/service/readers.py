"""Queues for the tests of the labelling: cells that are small pictures, and readers that answer."""

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from live import encode

from serving.contract.site import Labelling, Site, read_site
from serving.labelling.answers import HowFar, answer
from serving.labelling.queue import AskedCell, Notice, publish
from serving.labelling.tasks import Who, next_tasks
from serving.reports.store import Store
from wbc_model.core.classes import CLASSES

QUEUE = "0123456789ab"
NOTICE = Notice(workspace="ward", cycle=3, model_version="m-1")
PICTURE = encode((200, 150, 160))


def site_of(second: float = 0.0, repeat: float = 0.0, known: float = 0.0, **more: Any) -> Site:
    """The default site with these shares of the labelling."""
    kinds = read_site().labelling.further_kinds
    block = Labelling(further_kinds=kinds, second_reader_share=second, repeat_share=repeat, known_share=known)
    return read_site().model_copy(update={"labelling": block, **more})


def sha_of(number: int) -> str:
    return hashlib.sha256(f"cell {number}".encode()).hexdigest()


def cell(number: int, **more: Any) -> AskedCell:
    """The cell of a number; its picture is not the one that its name is of, which nobody looks at here."""
    told = {"data": PICTURE, "rank": number, "reason": "uncertain", "predicted": CLASSES[number % 5], "probability": 0.5}
    return AskedCell(sha256=sha_of(number), **{**told, **more})


@cache
def direction(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).normal(size=16)


def in_groups(count: int, groups: int) -> list[AskedCell]:
    """Cells whose embeddings are those of so many groups."""
    return [
        cell(number, embedding=(direction(number % groups) + 0.01 * direction(1000 + number)).astype(np.float16).tobytes())
        for number in range(count)
    ]


def asked(store: Store, cells: int | Iterable[AskedCell], site: Site | None = None, queue: str = QUEUE) -> int:
    """Publish a queue of so many cells, or of these."""
    given = map(cell, range(cells)) if isinstance(cells, int) else cells
    return publish(store, queue, NOTICE, given, site or site_of())


def says(store: Store, reader: str, task: str, what: str, site: Site | None = None, seconds: float | None = 1.5) -> HowFar:
    return answer(store, Who(reader, f"key-{reader}"), task, what, site or site_of(), seconds)


def next_of(store: Store, reader: str, site: Site | None = None) -> str | None:
    """The reader's next task; None where there is none."""
    found = next_tasks(store, reader, 1, site or site_of())
    return found[0].name if found else None


def reads_all(store: Store, reader: str, what: str, site: Site | None = None) -> list[str]:
    """Answer until nothing is left; returns the tasks."""
    done = []
    while (task := next_of(store, reader, site)) is not None:
        says(store, reader, task, what, site)
        done.append(task)
    return done
