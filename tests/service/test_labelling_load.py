"""Many readers at once on PostgreSQL: no answer is lost or double, and none waits long; in one process, and over HTTP."""

import itertools
import os
import secrets
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from databases import new_database
from live import ROOT, Server, clean_environment, encode, free_port, serve_command, started
from readers import PICTURE, QUEUE, asked, cell, site_of
from sqlalchemy import func, select
from test_labelling_properties import READERS, THIRD, Room
from test_labelling_properties import check as check_record

from serving.contract.labelling import UNSURE
from serving.contract.site import Site
from serving.labelling.answers import answer, undo
from serving.labelling.errors import NoSuchDispute
from serving.labelling.overview import overview
from serving.labelling.queue import agreed, progress
from serving.labelling.tasks import Who, image_of, next_tasks
from serving.reports.labelling_tables import Answer, Asked, Task
from serving.reports.store import Store
from serving.security.keys import add_key
from wbc_model.rendering.cells import render_cells

SITE = site_of(second=0.2, repeat=0.05, known=0.05)
AHEAD = 4  # tasks that the page keeps ready


class Decision(NamedTuple):
    """What one decision cost, in seconds: the answer, and the next tasks."""

    answering: float
    asking: float


def queue_of(store: Store, cells: int, picture: bytes = PICTURE) -> None:
    """A queue with embeddings, and known cells among it; all have the same picture."""
    chance = np.random.default_rng(0)
    embeddings = chance.normal(size=(cells, 64)).astype(np.float16)
    known = [cell(10**6 + number, data=picture, purpose="known", truth="Monocyte") for number in range(cells // 20)]
    unknown = (cell(number, data=picture, embedding=embeddings[number].tobytes()) for number in range(cells))
    asked(store, itertools.chain(unknown, known), SITE)


def read(store: Store, reader: str, site: Site, pause: float, most: int) -> list[Decision]:
    """A reader as the page is one: some tasks ahead, an answer, a pause in which a person looks."""
    chance, spent = Random(reader), []
    time.sleep(chance.random() * pause)
    while len(spent) < most:
        began = time.perf_counter()
        waiting = next_tasks(store, reader, AHEAD, site)
        asking = time.perf_counter() - began
        if not waiting:
            break
        said = chance.choices(["Monocyte", "Lymphocyte", UNSURE], [90, 7, 3])[0]
        began = time.perf_counter()
        answer(store, Who(reader, "key"), waiting[0].name, said, site, 1.0)
        spent.append(Decision(time.perf_counter() - began, asking))
        time.sleep(pause * (0.5 + chance.random()))
    return spent


def all_read(store: Store, readers: int, pause: float, most: int) -> list[list[Decision]]:
    """By reader, the decisions in their order."""
    with ThreadPoolExecutor(readers) as pool:
        runs = [pool.submit(read, store, f"reader {number}", SITE, pause, most) for number in range(readers)]
        return [run.result() for run in runs]


def check(store: Store, decisions: int) -> None:
    """Every answer is there once, nobody read a cell twice, no cell has more readers than it wanted."""
    with store.reading() as session:
        rows = list(session.execute(select(Answer.reader, Answer.number, Answer.sha256)).tuples())
        tasks = list(session.scalars(select(Task)))
        cells = {one.sha256: one for one in session.scalars(select(Asked))}
    assert len(rows) == len({(reader, number) for reader, number, _ in rows}) == decisions
    assert sum(task.state == "answered" for task in tasks) == decisions
    first = [task for task in tasks if task.kind in ("first", "second")]
    assert len({(task.reader, task.sha256) for task in first}) == len(first)
    given = Counter(task.sha256 for task in first)
    assert all(count <= cells[name].readers_wanted for name, count in given.items())
    assert all(cells[name].given == count for name, count in given.items())
    numbers = Counter(task.reader for task in tasks)
    assert all(sorted(t.number for t in tasks if t.reader == reader) == [*range(1, n + 1)] for reader, n in numbers.items())


@pytest.mark.slow
def test_readers_at_once_lose_nothing_and_read_nothing_twice(postgres: str) -> None:
    """A small one: six readers without a pause, until nothing is left."""
    store = Store.open(new_database(postgres))
    queue_of(store, 120)
    decisions = sum(map(len, all_read(store, 6, 0.0, 10**6)))
    check(store, decisions)
    far = progress(store, "ward")
    assert far.open == 0
    assert far.agreed + far.disputed == 120
    assert len(agreed(store, "ward")) == far.agreed
    assert sum(far.readers.values()) == decisions
    for number in range(6):
        seen = overview(store, f"reader {number}")
        assert (seen.left, seen.done) == (0, far.readers[f"reader {number}"])
    store.close()


def test_one_reader_at_two_windows_is_given_nothing_twice(postgres: str) -> None:
    store = Store.open(new_database(postgres))
    asked(store, 40)
    together = threading.Barrier(4)

    def window(_: int) -> set[str]:
        together.wait()
        return {one.name for one in next_tasks(store, "Ada", 5, site_of())}

    with ThreadPoolExecutor(4) as pool:
        found = set().union(*pool.map(window, range(4)))
    assert found == {f"{QUEUE}.{number}" for number in range(1, 6)}
    assert image_of(store, "Ada", min(found)) == PICTURE
    store.close()


def test_two_windows_of_a_reader_take_back_two_answers(postgres: str) -> None:
    store = Store.open(new_database(postgres))
    asked(store, 8)
    names = [one.name for one in next_tasks(store, "Ada", 8, site_of())]
    for name in names:
        answer(store, Who("Ada", "k"), name, "Band", site_of())
    together = threading.Barrier(4)

    def window(_: int) -> str | None:
        together.wait()
        return undo(store, Who("Ada", "k")).task

    with ThreadPoolExecutor(4) as pool:
        assert sorted(map(str, pool.map(window, range(4)))) == sorted(names[4:])
    assert overview(store, "Ada").done == 4
    store.close()


def test_readers_who_change_their_minds_at_once_leave_a_record_that_is_whole(postgres: str) -> None:
    """Answers, undoing and decisions of five people at random, on the same few cells; then the record is replayed."""
    store = Store.open(new_database(postgres))
    with pytest.MonkeyPatch.context() as patch:
        room = Room(store, site_of(second=0.5), patch, at_once=True)

        def acts(who: str) -> None:
            chance = Random(who)
            for _ in range(25):
                said = chance.choice(["Monocyte", "Band", UNSURE])
                if who == THIRD:
                    with suppress(NoSuchDispute):  # somebody took an answer back meanwhile
                        room.decide(chance.randrange(3), said)
                    room.undo(who) if chance.random() < 0.3 else None
                    continue
                what = chance.choice(["ask", "say", "say", "say", "undo"])
                room.step(what, who, *{"ask": [chance.randrange(1, 4)], "say": [chance.randrange(8), said], "undo": []}[what])

        with ThreadPoolExecutor(5) as pool:
            for run in [pool.submit(acts, who) for who in (*READERS, "Dan", THIRD)]:
                run.result()
        check_record(room)
    store.close()


@pytest.mark.slow
def test_twenty_readers_in_a_queue_of_ten_thousand_do_not_wait(postgres: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A decision every 2 seconds each, for a minute: 20 readers, 30 decisions each.

    The first of each is not timed: then all open the page at once, and each is given four tasks over a new connection.
    """
    store, busy = Store.open(new_database(postgres)), os.getloadavg()[0]
    queue_of(store, 10_000)
    with store.reading() as session:
        assert session.scalar(select(func.count()).select_from(Asked)) == 10_500
    decisions = all_read(store, 20, 2.0, 30)
    check(store, 600)
    timed = [one for reader in decisions for one in reader[1:]]
    answering, asking = np.array([one.answering for one in timed]), np.array([one.asking for one in timed])
    figures = {
        name: [round(1000 * float(np.percentile(values, at)), 1) for at in (50, 99, 100)]
        for name, values in (("answer", answering), ("next tasks", asking), ("both", answering + asking))
    }
    with capsys.disabled():
        print(f"\nms at the median, p99 and most: {figures}")
    store.close()
    if busy > (os.cpu_count() or 1) / 2:
        pytest.skip(f"nothing was lost; other work had the processors (load {busy:.1f}), so that times say nothing: {figures}")
    assert np.percentile(answering, 99) < 0.1
    assert np.percentile(asking, 99) < 0.1


def read_page(server: Server, key: str, pause: float, most: int) -> list[tuple[float, float, float]]:
    """A reader at the page: an answer, the next tasks, the picture that came new; returns the seconds of each."""
    chance, spent, seen = Random(key), [], set[str]()
    headers = {"X-API-Key": key}
    with httpx.Client(base_url=f"{server.url}/v1/labelling/", headers=headers, timeout=30) as client:

        def timed(method: str, path: str, **more: Any) -> tuple[float, httpx.Response]:
            began = time.perf_counter()
            answer = client.request(method, path, **more)
            took = time.perf_counter() - began
            assert answer.status_code == 200, answer.text
            return took, answer

        time.sleep(chance.random() * pause)
        _, waiting = timed("GET", "tasks?count=4")
        for _ in range(most):
            tasks = [one["task"] for one in waiting.json()["tasks"]]
            said = chance.choices(["Monocyte", "Lymphocyte", UNSURE], [90, 7, 3])[0]
            deed = {"Idempotency-Key": secrets.token_hex(16)}
            answering, _ = timed("PUT", f"tasks/{tasks[0]}", json={"answer": said, "seconds": 1.5}, headers=deed)
            asking, waiting = timed("GET", "tasks?count=4")
            new = next((one["task"] for one in waiting.json()["tasks"] if one["task"] not in seen), tasks[0])
            seen.add(new)
            looking, _ = timed("GET", f"tasks/{new}/image")
            spent.append((answering, asking, looking))
            time.sleep(pause * (0.5 + chance.random()))
    return spent


@pytest.mark.slow
def test_twenty_readers_at_the_page_do_not_wait(
    postgres: str, tmp_path: Path, linear_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same over HTTP: a real server with keys, the audit log, Idempotency-Keys and pictures of 320 px."""
    url = new_database(postgres)
    store, busy = Store.open(url), os.getloadavg()[0]
    [rendered] = render_cells(1, 3, 320)
    queue_of(store, 10_000, encode(rendered.pixels, "JPEG"))
    keys = [add_key(tmp_path / "keys", f"reader-{n}", ["label"], f"Reader {n}") for n in range(20)]
    environment = clean_environment(WBC_STORE_URL=url, WBC_API_KEYS_FILE=str(tmp_path / "keys"))
    port = free_port()
    with started(serve_command(linear_model, port), port, tmp_path, environment, ROOT) as server, ThreadPoolExecutor(20) as pool:
        runs = [pool.submit(read_page, server, key, 2.0, 30) for key in keys]
        spent = np.array([decision for run in runs for decision in run.result()])
    check(store, 600)
    figures = {
        name: [round(1000 * float(np.percentile(spent[:, at], share)), 1) for share in (50, 99, 100)]
        for at, name in enumerate(("answer", "next tasks", "picture"))
    }
    with capsys.disabled():
        print(f"\nms at the median, p99 and most: {figures}")
    store.close()
    if busy > (os.cpu_count() or 1) / 2:
        pytest.skip(f"nothing was lost; other work had the processors (load {busy:.1f}), so that times say nothing: {figures}")
    assert np.percentile(spent[:, 0], 99) < 0.1
    assert np.percentile(spent[:, 1], 99) < 0.1
