import contextlib
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wbc_model.cells import journal
from wbc_model.cells import pools as pools_module
from wbc_model.cells.pools import COLUMNS, POOLS, Pools, Reading, transaction, update
from wbc_model.cells.rejections import quarantined
from wbc_model.cells.tables import to_csv
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError

WAITING = 40


def sha256(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def row(number: int, pool: str, group: str = "") -> list[object]:
    known = pool != "unlabelled"
    label = CLASSES[number % 5] if known else ""
    by = ["manifest", "2026-11-22T00:00:00Z"] if known else ["", ""]
    return [f"cells/{number}.png", label, group, sha256(number), 0 if known else None, *by, "test"]


def some_pools(groups: bool = False) -> Pools:
    """Ten cells in each pool with labels, and WAITING unlabelled ones."""
    sizes = {"labelled": 10, "unlabelled": WAITING, "validation": 10, "test": 10}
    frames, start = {}, 0
    for name, size in sizes.items():
        side = "train" if name in ("labelled", "unlabelled") else name
        rows = [row(number, name, f"{side}-{number % 3}" if groups else "") for number in range(start, start + size)]
        frames[name] = pd.DataFrame(rows, columns=COLUMNS)
        start += size
    return Pools.empty().plus(frames)


def labels(numbers: list[int], label: str = "Monocyte") -> pd.DataFrame:
    rows = [(sha256(number), label, "ada", "2026-11-22T10:00:00Z") for number in numbers]
    return pd.DataFrame(rows, columns=["sha256", "label", "labelled_by", "labelled_at"])


def where(pools: Pools) -> dict[str, str]:
    return dict(pools.table()[["sha256", "pool"]].to_numpy())


def test_written_pools_read_back_the_same(tmp_path: Path) -> None:
    directory = tmp_path / "data" / "pools"
    pools = some_pools(groups=True)
    pools.write(directory)
    assert sorted(path.name for path in directory.iterdir()) == ["labelled.csv", "test.csv", "unlabelled.csv", "validation.csv"]
    again = Pools.read(directory)
    assert again.version() == pools.version()
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    again.write(directory)
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_labelling_moves_cells_once(tmp_path: Path) -> None:
    pools = some_pools()
    after = pools.label(labels([10, 11]), cycle=3)
    assert after.counts() == pools.counts() | {"labelled": 12, "unlabelled": WAITING - 2}
    new = after.frames["labelled"].set_index("sha256").loc[sha256(10)]
    assert (new["label"], new["cycle"], new["labelled_by"]) == ("Monocyte", 3, "ada")
    assert after.label(labels([11, 10]), cycle=9).version() == after.version()
    assert pools.counts()["labelled"] == 10, "a move gives a new value"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (labels([10], "Blast"), "Blast"),
        (labels([999]), "in no pool"),
        (pd.concat([labels([10]), labels([10], "Basophil")]), "two labels"),
    ],
)
def test_labels_that_cannot_be_taken(rows: pd.DataFrame, says: str) -> None:
    with pytest.raises(WbcError, match=says):
        some_pools().label(rows, cycle=1)


def test_a_label_is_put_right_where_its_cell_is() -> None:
    pools = some_pools()
    after = pools.label(labels([0, 55, 65]), cycle=3)
    assert after.counts() == pools.counts()
    for name, number in (("labelled", 0), ("validation", 55), ("test", 65)):
        cell = after.frames[name].set_index("sha256").loc[sha256(number)]
        assert (cell["label"], cell["cycle"], cell["labelled_by"]) == ("Monocyte", 0, "ada")
        assert after.truth(name) != pools.truth(name)
    assert after.version() != pools.version()
    by_another = pools.label(labels([65], CLASSES[0]).assign(labelled_by="ben"), 3)
    assert by_another.truth("test") == pools.truth("test"), "what it is, not who said so"


def test_the_version_forgets_times_and_sees_everything_else() -> None:
    pools = some_pools()
    later = {name: frame.assign(labelled_at="2030-01-01T00:00:00Z") for name, frame in pools.frames.items()}
    assert Pools(later).version() == pools.version()
    assert pools.label(labels([10]), 1).version() != pools.version()
    assert pools.label(labels([10], "Basophil"), 1).version() != pools.label(labels([10]), 1).version()


def test_a_version_is_the_hash_of_all_cells_as_csv() -> None:
    """What earlier versions of the project wrote into data/versions.csv names the same pools."""
    pools = some_pools(groups=True).label(labels([12, 11]), 3)
    assert pools.version() == "dcb30ae9a118"
    for name in ("a, b.png", "line\rbreak.png", 'quo"ted.png'):
        odd = {**pools.frames, "test": pools.frames["test"].assign(path=name)}
        text = Pools(odd).table().sort_values(["pool", "sha256"]).drop(columns="labelled_at")
        quoting = csv.QUOTE_ALL if "\r" in name else csv.QUOTE_MINIMAL
        expected = hashlib.sha256(text.to_csv(index=False, lineterminator="\n", quoting=quoting).encode()).hexdigest()[:12]
        assert Pools(odd).version() == expected


def test_rules_are_checked() -> None:
    pools = some_pools(groups=True)
    twice = pools.frames | {"test": pd.concat([pools.frames["test"], pools.frames["validation"].head(1)], ignore_index=True)}
    with pytest.raises(WbcError, match="exactly one pool"):
        Pools(twice).check()
    with pytest.raises(WbcError, match="split over"):
        pools.move([sha256(50)], "validation", "test")
    with pytest.raises(WbcError, match=r"unlabelled: .* has label 'Basophil'"):
        pools.move([sha256(0)], "labelled", "unlabelled")
    with pytest.raises(WbcError, match="not in the pool test"):
        pools.move([sha256(0)], "test", "labelled")
    wrong = pools.frames | {"labelled": pools.frames["labelled"].assign(label="Blast")}
    with pytest.raises(WbcError, match="Blast"):
        Pools(wrong).check()


@given(st.lists(st.tuples(st.sampled_from(POOLS), st.sampled_from(POOLS), st.sets(st.integers(0, 69), max_size=5)), max_size=8))
@settings(max_examples=20, deadline=None)
def test_whatever_moves_a_cell_is_in_exactly_one_pool_and_groups_stay_whole(moves: list[tuple[str, str, set[int]]]) -> None:
    pools = some_pools(groups=True)
    everyone = set(where(pools))
    for source, target, numbers in moves:
        columns = {"label": "", "cycle": None} if target == "unlabelled" else {"label": "Monocyte", "cycle": 1}
        with contextlib.suppress(WbcError):
            pools = pools.move([sha256(number) for number in numbers], source, target, **columns)
        table = pools.table()
        assert len(table) == len(everyone)
        assert set(table["sha256"]) == everyone
        sides = table.assign(side=table["pool"].map(pools_module.SIDES)).groupby("group")["side"].nunique()
        assert (sides == 1).all()


class _Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("survives", range(8))
def test_a_write_killed_between_any_two_renames_is_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    directory = tmp_path / "data" / "pools"
    other = tmp_path / "data" / "oracle.csv"
    before = some_pools()
    before.write(directory, also={other: "before"})
    after = before.label(labels([10, 11, 12]), 1).move([sha256(50)], "validation", "test")
    replacements = 0
    real = os.replace

    def replace(source: str, target: str) -> None:
        nonlocal replacements
        if replacements == survives:
            raise _Killed
        replacements += 1
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "unlink", lambda path: None)  # a killed process cleans nothing up
    killed = False
    try:
        after.write(directory, also={other: "after"})
    except _Killed:
        killed = True
    monkeypatch.undo()
    found = Pools.read(directory)
    assert found.version() == (before if survives == 0 else after).version()
    assert other.read_text() == ("before" if survives == 0 else "after")
    assert killed == (survives < 6), "one journal, four pools, one other file"
    found.label(labels([20]), 2).write(directory)
    assert sorted(path.name for path in directory.iterdir() if not path.name.startswith(".")) == sorted(f"{p}.csv" for p in POOLS)
    assert Pools.read(directory).counts()["labelled"] == found.counts()["labelled"] + 1


def test_an_unfinished_write_does_not_overwrite_another_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "data" / "pools"
    before = some_pools()
    before.write(directory)
    monkeypatch.setattr(journal, "_take_places", lambda due, journal: None)
    before.label(labels([10]), 1).write(directory)
    monkeypatch.undo()
    checked_out = before.label(labels([30, 31]), 1).frames["labelled"]
    (directory / "labelled.csv").write_text(to_csv(checked_out))
    with pytest.raises(WbcError, match=r"remove .*pools.journal"):
        Pools.read(directory)


def test_pools_that_were_written_since_a_reading_are_read_again(tmp_path: Path) -> None:
    directory = tmp_path / "data" / "pools"
    some_pools().write(directory)
    reading = Reading.of(directory)
    seen: list[Pools] = []

    def look(pools: Pools) -> tuple[Pools, dict[Path, str]]:
        seen.append(pools)
        return pools, {}

    transaction(directory, look, reading)
    update(directory, lambda pools: pools.label(labels([10]), 1))
    transaction(directory, look, reading)
    assert seen[0] is reading.pools
    assert seen[1].version() == Pools.read(directory).version() != seen[0].version()


def test_a_journal_of_earlier_versions_is_carried_out(tmp_path: Path) -> None:
    """It had the text of the files in it."""
    directory = tmp_path / "data" / "pools"
    before = some_pools()
    before.write(directory)
    after = before.label(labels([10, 11]), 1)
    entries = []
    for name in ("labelled", "unlabelled"):
        path = directory / f"{name}.csv"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append({"path": f"data/pools/{name}.csv", "before": digest, "text": to_csv(after.frames[name])})
    (tmp_path / ".wbc/pools.journal").write_text(json.dumps(entries))
    assert Pools.read(directory).version() == after.version()
    assert not (tmp_path / ".wbc/pools.journal").exists()


def test_a_full_disk_leaves_the_pools_as_they_were_and_nothing_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "data" / "pools"
    before = some_pools()
    before.write(directory)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        before.label(labels([10]), 1).write(directory)
    monkeypatch.undo()
    assert sorted(path.name for path in directory.iterdir()) == sorted(f"{name}.csv" for name in POOLS)
    assert Pools.read(directory).version() == before.version()


# For each line that it reads it becomes two: one writes labels and says who it is, the other waits for its end.
_WRITERS = """
import os, sys
from pathlib import Path
from tests.data.test_pools import labels, WAITING
from wbc_model.cells.pools import Pools, update
directory = Path(sys.argv[1])
for _ in sys.stdin:
    if writer := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]), flush=True)
        continue
    print(os.getpid(), flush=True)
    for number in range(10, 10 + WAITING):
        update(directory, lambda pools: pools.label(labels([number]), 1))
    os._exit(0)
"""


def test_sigkill_at_any_moment_loses_no_cell(tmp_path: Path) -> None:
    directory = tmp_path / "data" / "pools"
    some_pools().write(directory)
    everyone = set(where(some_pools()))
    root = Path(__file__).resolve().parents[2]
    chance = random.Random(7)
    stop = threading.Event()
    seen: list[int] = []

    def watch() -> None:
        while not stop.is_set():
            pools = Pools.read(directory)  # raises when it sees half a move
            assert set(where(pools)) == everyone
            seen.append(pools.counts()["labelled"])
            time.sleep(0.1)  # the writers need the processor too

    watcher = threading.Thread(target=watch)
    watcher.start()
    command = [sys.executable, "-c", _WRITERS, str(directory)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    killed = []
    try:
        with subprocess.Popen(command, **pipes, env=os.environ | {"PYTHONPATH": str(root)}, cwd=root) as writers:  # type: ignore[call-overload]
            # Some came to write at all, and some were killed.
            while len(killed) < 40 and (sum(killed) < 4 or Pools.read(directory).counts()["labelled"] <= 10):
                writers.stdin.write("\n")
                writers.stdin.flush()
                writer = int(writers.stdout.readline())
                time.sleep(chance.uniform(0.02, 0.3 + len(killed) / 5))  # longer where the machine is busy
                os.kill(writer, signal.SIGKILL)
                killed.append(int(writers.stdout.readline()) == -signal.SIGKILL)
                pools = Pools.read(directory)
                assert set(where(pools)) == everyone
                assert sorted(path.name for path in directory.iterdir()) == sorted(f"{name}.csv" for name in POOLS)
            writers.stdin.close()
    finally:
        stop.set()
        watcher.join()
    assert sum(killed) >= 4
    assert seen == sorted(seen), "a label that was written is never lost again"
    assert Pools.read(directory).counts()["labelled"] > 10


def test_two_writers_at_once_both_get_in(tmp_path: Path) -> None:
    directory = tmp_path / "data" / "pools"
    some_pools().write(directory)
    threads = [
        threading.Thread(target=update, args=(directory, lambda pools, number=number: pools.label(labels([number]), 1)))
        for number in range(10, 22)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Pools.read(directory).counts() == some_pools().counts() | {"labelled": 22, "unlabelled": WAITING - 12}


def test_pools_that_are_not_there_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WbcError, match="wbc ingest"):
        Pools.read(tmp_path / "data" / "pools")


def test_quarantine_takes_out_what_validation_found_and_not_what_a_refused_row_repeats(tmp_path: Path) -> None:
    header = "path,sha256,reason,detail\n"
    refused = f"cells/copy.png,{sha256(1)},duplicate,cells/1.png\n"
    (tmp_path / "rejected.csv").write_text(header + refused)
    (tmp_path / "quarantine.csv").write_text(header + refused + f"cells/2.png,{sha256(2)},blank,\n")
    assert quarantined(tmp_path) == {sha256(2)}
    assert some_pools().without({sha256(2)}).counts()["labelled"] == 9
    assert quarantined(tmp_path / "nothing") == set()
