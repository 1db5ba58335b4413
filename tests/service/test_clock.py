"""A clock that is wrong for a while ends nothing that was to be kept; one that is right in the end deletes what it must."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from live import ROOT, clean_environment
from sqlalchemy import update
from test_kept_images import keeping, stored, taken

from serving.reports.kept_images import delete_expired
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Report
from serving.upkeep.clock import AHEAD, Clock

DAYS = 30
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Computer:
    """One whose clock can be put wrong, and whose service can be off."""

    def __init__(self, store: Store) -> None:
        self.time = datetime.now(UTC)
        self.wrong = timedelta()
        self._ran = 0.0
        self._store = store
        self.start()

    def start(self) -> None:
        """Start the service, after `off`."""
        self.clock = Clock(self._store, lambda: self.time + self.wrong, lambda: self._ran)
        self.sweep()

    def off(self, duration: timedelta) -> None:
        self.time += duration
        self._ran = 7.0
        self.start()

    def sweep(self) -> None:
        delete_expired(self._store, DAYS, self.clock.now())

    def run(self, hours: int, step: int = 1) -> None:
        for _ in range(0, hours, step):
            self.time += step * HOUR
            self._ran += step * 3600
            self.sweep()

    def kept(self) -> bool:
        return bool(stored(self._store))


@pytest.fixture
def computer(store: Store) -> Iterator[Computer]:
    """With a report of now."""
    taken(store, keeping(days=DAYS))
    made = Computer(store)
    made.run(2)
    return made


def test_a_jump_of_the_clock_deletes_nothing_before_it_is_put_right(computer: Computer, caplog: pytest.LogCaptureFixture) -> None:
    computer.wrong = 400 * DAY
    computer.run(12)
    computer.off(HOUR)
    computer.run(11)
    assert computer.kept()
    assert len(caplog.messages) == 2  # one for each process
    assert "400 days later than when the store was used last: nothing is deleted for its age until" in caplog.text
    computer.wrong = timedelta()
    computer.run(24 * (DAYS - 2), step=24)
    assert computer.kept()
    assert "is believed again" in caplog.messages[2]
    computer.run(24 * 2, step=24)
    assert not computer.kept()


def test_what_was_off_for_weeks_goes_on_after_a_day(computer: Computer) -> None:
    """A day of running, which need not be one piece: a computer that is off each night deletes, too."""
    computer.off(40 * DAY)
    for _ in range(2):
        computer.run(11)
        assert computer.kept()
        computer.off(13 * HOUR)
    computer.run(2)
    assert not computer.kept()


@pytest.mark.parametrize("away", [13 * HOUR, AHEAD - HOUR])
def test_who_was_off_for_a_night_is_believed_at_once(computer: Computer, away: timedelta) -> None:
    computer.run(24 * DAYS - 12, step=12)
    assert computer.kept()
    computer.off(away)
    assert not computer.kept()


def test_a_clock_that_was_behind_is_believed_and_caught_when_it_jumps_back(computer: Computer) -> None:
    computer.wrong = -100 * DAY
    computer.run(2)
    computer.wrong = timedelta(days=DAYS + 1)
    computer.run(20)
    assert computer.kept()


def test_a_store_that_remembers_no_time_takes_that_of_its_last_report(store: Store) -> None:
    taken(store, keeping(days=DAYS))
    computer = Computer(store)
    with store.writing() as session:
        session.execute(update(Report).values(created_at=computer.time - 40 * DAY, changed_at=computer.time - 2 * HOUR))
    assert delete_expired(store, DAYS, Clock(store).now()) == 1
    other = taken(store, keeping(days=DAYS))
    with store.writing() as session:
        session.execute(update(Report).where(Report.id == other).values(created_at=computer.time - 40 * DAY))
        session.execute(update(Report).values(changed_at=computer.time - 40 * DAY))
        session.connection().exec_driver_sql("DELETE FROM clock")
    assert delete_expired(store, DAYS, Clock(store).now()) == 0


SERVICE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_kept_images import keeping
from serving.http.report_routes import Kept
from serving.reports.store import Store
kept = Kept(Store.open(sys.argv[2]), keeping(days=30))
kept.close()  # after the deletion that it may be at
"""


@pytest.mark.slow
def test_a_service_whose_clock_was_moved_keeps_its_images(tmp_path: Path) -> None:
    """A real clock, moved with libfaketime: 40 days pass in one start."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime not found: the clock cannot be moved")
    url = sqlite_url(tmp_path / "service.db")
    store = Store.open(url)
    taken(store, keeping(days=DAYS))
    line = [faketime, "--exclude-monotonic", "-f", "+40d", sys.executable, "-c", SERVICE, str(Path(__file__).parent), url]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(stored(store)) == 1
    assert "39 days later" in done.stderr or "40 days later" in done.stderr
    store.close()
