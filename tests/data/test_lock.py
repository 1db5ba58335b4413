"""Locks between real processes: who may hold them together, and what a killed holder leaves behind."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from wbc_model.core.lock import locked, locked_folder, take

HOLD = """
import sys
from pathlib import Path
from wbc_model.core.lock import locked, locked_folder
with {how} as held:
    print(held, flush=True)
    sys.stdin.readline()
"""
# What the versions before this module did
OLD = """
import fcntl, os, sys
descriptor = os.open({path!r}, {flags})
fcntl.flock(descriptor, {kind})
print(True, flush=True)
sys.stdin.readline()
"""
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    begun: list[subprocess.Popen[str]] = []

    def begin(code: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: "subprocess.Popen[str]") -> None:
    process.communicate("\n", timeout=30)
    assert process.returncode == 0


def held(lock: AbstractContextManager[bool]) -> bool:
    with lock as answer:
        return answer


@pytest.mark.parametrize(
    ("first", "second", "together"), [(False, False, False), (False, True, False), (True, False, False), (True, True, True)]
)
def test_only_those_who_share_hold_it_together(tmp_path: Path, start: Start, first: bool, second: bool, together: bool) -> None:
    path = tmp_path / "deep/lock"
    process = start(HOLD.format(how=f"locked(Path({str(path)!r}), shared={first})"))
    assert said(process) == "True"
    assert held(locked(path, shared=second, wait=False)) is together
    ended(process)
    assert held(locked(path, wait=False))


def test_who_waits_gets_it_when_the_holder_is_killed(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "lock"
    holder = start(HOLD.format(how=f"locked(Path({str(path)!r}))"))
    assert said(holder) == "True"
    waiting = start(HOLD.format(how=f"locked(Path({str(path)!r}))"))
    refused = start(HOLD.format(how=f"locked(Path({str(path)!r}), wait=False)"))
    assert said(refused) == "False"
    assert waiting.poll() is None
    holder.send_signal(signal.SIGKILL)
    assert said(waiting) == "True"
    ended(waiting)


def test_a_child_that_inherited_it_holds_it_after_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    assert take(descriptor, wait=False)
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[descriptor]
    )
    os.close(descriptor)
    assert not held(locked(path, wait=False))
    ended(child)
    assert held(locked(path, wait=False))


def test_a_folder_is_held_alone_and_gets_no_file(tmp_path: Path, start: Start) -> None:
    process = start(HOLD.format(how=f"locked_folder(Path({str(tmp_path)!r}))"))
    assert said(process) == "None"
    descriptor = os.open(tmp_path, os.O_RDONLY)
    assert not take(descriptor, wait=False)
    ended(process)
    assert take(descriptor, wait=False)
    os.close(descriptor)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), locked_folder(tmp_path / "none"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_it_is_the_lock_that_earlier_versions_hold(tmp_path: Path, start: Start, kind: int) -> None:
    path = tmp_path / "lock"
    process = start(OLD.format(path=str(path), flags=os.O_RDWR | os.O_CREAT, kind=kind))
    assert said(process) == "True"
    assert not held(locked(path, wait=False))
    assert held(locked(path, shared=True, wait=False)) is (kind == fcntl.LOCK_SH)
    ended(process)


def test_a_file_that_is_open_for_reading_only_can_be_taken(tmp_path: Path) -> None:
    path = tmp_path / "head"
    path.write_bytes(b"a line\n")
    with path.open("rb") as file, path.open("rb") as other:
        assert take(file, wait=False)
        assert not take(other, wait=False)


def test_a_lock_file_keeps_its_content_and_can_be_private(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert held(locked(path, mode=0o600))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("who holds it")
    assert held(locked(path))
    assert path.read_text() == "who holds it"
