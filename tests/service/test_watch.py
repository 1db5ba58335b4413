"""Watching, through the store: what the service measures, what `wbc watch` finds in it, and what the service then shows."""

import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from live import form, of_class
from specimens import classified, site
from sqlalchemy import select
from sqlalchemy.exc import DatabaseError
from test_reports import assert_problem, client_of, posted
from typer import BadParameter

from flows.cli.loop import _decided
from flows.monitoring import served
from flows.monitoring.measures import FLOOR, Cells
from flows.monitoring.watch import watch
from serving.contract.schemas import ModelName
from serving.inference.classify import Classifier, Seen
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import WatchedCells, WatchWord
from serving.watch.overview import watch as overview
from serving.watch.record import Recorder
from tests.code.test_drift import cells
from wbc_model.core.errors import WbcError
from wbc_model.core.reference import MEASURES, WIDTH

ROOT = Path(__file__).parents[2]
MODEL = ModelName(name="wbc", version="m-1")
FIRST = date(2026, 11, 1)


@pytest.fixture(scope="module")
def classifier(model_dir: Path) -> Iterator[Classifier]:
    found = Classifier.open(model_dir)
    yield found
    found.close()


@pytest.fixture
def light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store on SQLite that the workspace of the test uses."""
    url = sqlite_url(tmp_path / "service.db")
    monkeypatch.setenv("WBC_STORE_URL", url)
    opened = Store.open(url)
    yield opened
    opened.close()


@pytest.fixture
def unpictured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, each of which takes a tenth of a second."""
    monkeypatch.setattr("flows.monitoring.watch.days_as_svg", lambda _: b"<svg/>")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "ward"
    folder.mkdir()
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    return folder


def day(number: int) -> str:
    """The number'th day, from 1."""
    return str(FIRST + timedelta(days=number - 1))


def serve(store: Store, number: int, of: Cells, where: str = "ward", model: str = "m-1") -> None:
    """Have the store say that these cells came on a day."""
    with store.writing() as session:
        for request in np.unique(of.request):
            rows = of.rows[of.request == request]
            row = {"site": where, "day": day(number), "model_version": model, "cells": len(rows), "measures": rows.tobytes()}
            session.add(WatchedCells(**row))


# ---------------------------------------------------------------- what the service keeps


def test_what_a_request_shows_is_kept_and_says_nothing_of_whose_it_is(classifier: Classifier, tmp_path: Path) -> None:
    for client in client_of(classifier, tmp_path, site()):
        posted(client, specimen_id="SMITH-1950")
        answer = client.post("/v1/classify", files=form(of_class("Monocyte"), of_class("Monocyte")))
        assert answer.status_code == 200
        client.post("/v1/classify?explain=true", files=form(of_class("Basophil")))
    store = Store.open(sqlite_url(tmp_path / "service.db"))
    with store.reading() as session:
        rows = session.scalars(select(WatchedCells).order_by(WatchedCells.id)).all()
    assert [(row.cells, row.model_version, row.site) for row in rows] == [(13, "tiny-1", "default"), (2, "tiny-1", "default")]
    measures = np.frombuffer(rows[1].measures, np.float32).reshape(-1, WIDTH)
    assert measures[:, 0].tolist() == [3, 3]
    assert np.isnan(measures[:, MEASURES["embedding"]]).all(), "the tiny model gives none, and is served on"
    columns = set(WatchedCells.__table__.columns.keys())
    assert columns == {"id", "site", "day", "model_version", "cells", "measures"}, "nothing else is kept of a request"
    store.close()


def test_measures_are_forgotten_after_their_time(store: Store) -> None:
    serve(store, 1, cells(100, 1), "default")
    serve(store, 40, cells(100, 2), "default")
    serve(store, 1, cells(100, 3), "another")
    recorder = Recorder(store, site(), lambda: datetime(2026, 12, 31, tzinfo=UTC) + timedelta(days=60), every=3600)
    assert recorder.forget() == 1, "the other site keeps its own as it says"
    recorder.take([Seen(classified("Monocyte"), None, np.zeros(WIDTH, np.float32)), Seen(classified("Monocyte"), None)], MODEL)
    recorder.close()
    with store.reading() as session:
        assert sorted(session.scalars(select(WatchedCells.cells))) == [1, 100, 100], "what waited is written at the end"


# ---------------------------------------------------------------- what the watch finds


def test_a_week_is_judged_once_and_shown(light: Store, workspace: Path, classifier: Classifier, tmp_path: Path) -> None:
    for number in range(1, 7):
        serve(light, number, cells(500, number, shift=1.0 if number >= 5 else 0.0))
        serve(light, number, cells(120, 50 + number), "branch")
    assert watch(workspace, FIRST + timedelta(days=4)).alarms == []
    found = watch(workspace, FIRST + timedelta(days=5))
    assert [(one.site, one.day, one.what) for one in found.alarms] == [("ward", day(5), ("stain",))]
    assert "stain of its cells differ from the usual since 2026-11-05" in found.lines[0]
    assert found.judged == 2
    later = watch(workspace, FIRST + timedelta(days=6))
    assert later.alarms == [], "an alarm is told once"
    assert later.sites == [
        "site branch, up to 2026-11-06: as usual",
        "site ward, up to 2026-11-06: stain not as usual since 2026-11-05",
    ]
    assert watch(workspace, FIRST + timedelta(days=6)).judged == 0
    log = (workspace / ".wbc/logs/schedule.log").read_text()
    assert log.count("differ from the usual since") == 1

    of_ward = next(one for one in overview(light).sites if one.site == "ward")
    stain = next(one for one in of_ward.measures if one.measure == "stain")
    assert (stain.state, stain.since, stain.day, of_ward.usual_since) == ("alarm", day(5), day(6), day(1))
    assert stain.effect is not None
    assert stain.effect >= FLOOR
    for client in client_of(classifier, tmp_path, site()):
        said = client.get("/v1/watch").json()
        assert [one["site"] for one in said["sites"]] == ["branch", "ward"]
        picture = client.get("/v1/watch/ward/pictures/stain")
        assert picture.headers["content-type"] == "image/svg+xml"
        assert picture.content.lstrip().startswith(b"<?xml")
        assert_problem(client.get("/v1/watch/ward/pictures/none"), 404, "no-such-picture")
        metrics = client.get("/metrics").text
        assert 'wbc_drift_alarm{measure="stain",site="ward"} 1.0' in metrics
        assert 'wbc_drift_alarm{measure="stain",site="branch"} 0.0' in metrics
        assert 'endpoint="/v1/watch/{site}/pictures/{name}"' in metrics


@pytest.mark.usefixtures("unpictured")
def test_a_person_may_say_what_is_usual_and_take_it_back(light: Store, workspace: Path) -> None:
    for number in range(1, 8):
        serve(light, number, cells(500, number, shift=1.0 if number >= 3 else 0.0))
    assert [one.day for one in watch(workspace, FIRST + timedelta(days=5)).alarms] == [day(3)]
    with pytest.raises(WbcError, match=r"has no watched cells of 2026-12-24"):
        served.accept(light, "ward", "2026-12-24", "a new stain", "Dr. Ada")
    served.accept(light, "ward", day(3), "a new stain, checked", "Dr. Ada")
    again = watch(workspace, FIRST + timedelta(days=6))
    assert (again.alarms, again.sites) == ([], ["site ward, up to 2026-11-06: as usual"])
    [of_ward] = overview(light).sites
    assert of_ward.usual_since == day(3)
    assert {one.state for one in of_ward.measures} == {"usual"}
    served.take_back(light, "ward", "it was not checked", "Dr. Ada")
    back = watch(workspace, FIRST + timedelta(days=7))
    assert [(one.day, one.what) for one in back.alarms] == [(day(3), ("stain",))]
    with pytest.raises(WbcError, match="no word on site 'ward' stands"):
        served.take_back(light, "ward", "again", "Dr. Ada")


def test_a_word_stays_in_the_record(store: Store) -> None:
    serve(store, 1, cells(100, 1))
    served.accept(store, "ward", day(1), "from the start", "Dr. Ada")
    for statement in ("UPDATE watch_words SET reason = 'x'", "DELETE FROM watch_words"):
        with pytest.raises(DatabaseError, match="only ever added"), store.writing() as session:
            session.connection().exec_driver_sql(statement)
    with store.reading() as session:
        assert [(word.by, word.reason) for word in session.scalars(select(WatchWord))] == [("Dr. Ada", "from the start")]


@pytest.mark.usefixtures("unpictured")
def test_another_model_begins_anew(light: Store, workspace: Path) -> None:
    for number in range(1, 7):
        serve(light, number, cells(500, number, shift=1.0 if number >= 4 else 0.0), model="m-1" if number < 4 else "m-2")
    found = watch(workspace, FIRST + timedelta(days=6))
    assert found.alarms == [], "its cells are measured otherwise, and are compared with themselves"
    assert [line.partition(" has no reference")[0] for line in found.missing] == ["site ward: model m-1", "site ward: model m-2"]


def test_a_workspace_without_a_store_says_what_makes_one(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WBC_STORE_URL", raising=False)
    with pytest.raises(WbcError, match="`wbc serve` makes one"):
        watch(workspace)


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ((None, None, "2026-11-11", "", None), "--since belongs to"),
        ((None, None, None, "", "Ada"), "--by belongs to"),
        ((None, None, None, "a new stain", None), "--reason belongs to"),
        ((None, "ward", "2026-11-11", "a slip", None), "--since belongs to"),
        (("ward", None, None, "a new stain", None), "--usual needs --since"),
    ],
)
def test_an_option_that_would_be_passed_over_is_refused(options: tuple[str | None, ...], refusal: str) -> None:
    with pytest.raises(BadParameter, match=refusal):
        _decided(*options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the dashboard


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/wbc.json").read_text())
    source = "".join((ROOT / "serving" / name).read_text() for name in ("watch/gauges.py", "upkeep/metrics.py"))
    known = set(re.findall(r'"((?:wbc|bentoml)_[a-z_]+)"', source))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert asked
    used = {name for expr in asked for name in re.findall(r"\b(?:wbc|bentoml)_[a-z_]+", expr)}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} <= known
    gauges = set(re.findall(r'"(wbc_[a-z_]+)"', (ROOT / "serving/watch/gauges.py").read_text()))
    assert gauges <= used, "each is shown"
