"""Signed reports reach a real MLLP listener, a process of its own, at least once, whatever is killed on the way."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import ROOT, clean_environment, free_port
from specimens import PERSON, read, several, site
from sqlalchemy import select

from serving.intake import take_in
from serving.outbox import LONGEST_WAIT, Sender, Unreachable, backlog, deliver_one, send, send_again, wait_after
from serving.review import correct, sign
from serving.site import Hl7Receiver
from serving.specimen import Specimen
from serving.store import Message, Store, sqlite_url

LISTENER = Path(__file__).with_name("mllp_listener.py")


def eventually(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def deliver_due(store: Store, receiver: Hl7Receiver) -> int:
    """Send what is due, in order, until nothing is or the receiver fails; returns how many were acknowledged."""
    count = 0
    while deliver_one(store, receiver):
        count += 1
    return count


class Listener:
    """The receiving system, which can be started, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.file = folder / "received"
        self.file.touch()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, delay: float = 0.0) -> None:
        command = [sys.executable, str(LISTENER), str(self.port), str(self.file), str(delay)]
        self.process = subprocess.Popen(command, env=clean_environment(), stderr=subprocess.DEVNULL)
        eventually(self._listens)

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def receiver(self, retries: int = 3, timeout: float = 5.0) -> Hl7Receiver:
        return Hl7Receiver(host="127.0.0.1", port=self.port, timeout_seconds=timeout, retries=retries)

    def messages(self) -> list[str]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def specimens(self) -> list[str]:
        return [message.split("\rSPM|1|")[1].split("|")[0] for message in self.messages()]

    def control_ids(self) -> list[str]:
        return [message.split("|")[9] for message in self.messages()]


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path)
    yield made
    made.kill()


def signed(store: Store, specimen: str, receiver: Hl7Receiver) -> str:
    """A signed report of 12 cells, whose message is in the outbox."""
    of = site(receiver)
    report = take_in(store, read(several("Neutrophil", 12)), Specimen(None, specimen), of).report
    sign(store, report.id, PERSON, 1, of)
    return report.id


def outbox(store: Store) -> list[Message]:
    with store.reading() as session:
        return list(session.scalars(select(Message).order_by(Message.id)))


def due_now(store: Store) -> None:
    """Spare the test the waiting."""
    with store.writing() as session:
        for message in session.scalars(select(Message)):
            message.not_before = datetime.now(UTC)


def test_messages_are_delivered_once_and_in_the_order_of_signing(store: Store, listener: Listener) -> None:
    listener.start()
    names = [f"S-{number}" for number in range(5)]
    for name in names:
        signed(store, name, listener.receiver())
    assert backlog(store)[:2] == (5, 0)
    assert backlog(store).oldest_seconds > 0
    assert deliver_due(store, listener.receiver()) == 5
    assert listener.specimens() == names
    kept = outbox(store)
    assert listener.messages() == [message.text for message in kept]
    assert listener.control_ids() == [message.control_id for message in kept]
    assert {(one.state, one.attempts, one.error) for one in kept} == {("delivered", 1, None)}
    assert all(one.finished_at for one in kept)
    assert backlog(store) == (0, 0, 0.0)
    assert deliver_due(store, listener.receiver()) == 0
    assert len(listener.messages()) == 5


def test_what_the_receiver_refuses_is_kept_with_its_reason_and_holds_up_nobody(store: Store, listener: Listener) -> None:
    listener.start()
    for name in ("REJECT-1", "ERROR-1", "S-1"):
        signed(store, name, listener.receiver())
    assert deliver_due(store, listener.receiver()) == 3
    kept = [(one.state, one.error) for one in outbox(store)]
    assert kept == [("failed", "AR: Unknown specimen"), ("failed", "AE: Unknown specimen"), ("delivered", None)]
    assert backlog(store)[:2] == (0, 2)
    assert send_again(store) == 2
    assert backlog(store)[:2] == (2, 0)
    deliver_due(store, listener.receiver())
    assert listener.specimens() == ["REJECT-1", "ERROR-1", "S-1", "REJECT-1", "ERROR-1"]
    assert listener.control_ids()[:2] == listener.control_ids()[3:]


def test_while_the_receiver_is_away_messages_wait_in_order(store: Store, listener: Listener) -> None:
    names = ["S-1", "S-2", "S-3"]
    for name in names:
        signed(store, name, listener.receiver(retries=1))
    for _ in range(4):
        assert deliver_due(store, listener.receiver(retries=1)) == 0
        due_now(store)
    first, *others = outbox(store)
    assert (first.state, first.attempts, first.error) == ("pending", 4, "no connection: Connection refused")
    assert {one.attempts for one in others} == {0}
    listener.start()
    assert deliver_due(store, listener.receiver()) == 3
    assert listener.specimens() == names


@pytest.mark.parametrize(("kind", "words"), [("SILENT", "timed out"), ("WRONG", "another message"), ("CLOSE", "closed")])
def test_a_message_that_is_not_acknowledged_is_sent_again_and_in_the_end_lets_the_others_pass(
    tmp_path: Path, listener: Listener, kind: str, words: str
) -> None:
    store = Store.open(sqlite_url(tmp_path / "service.db"))
    receiver = listener.receiver(retries=2, timeout=0.3)
    listener.start()
    report = signed(store, f"{kind}-1", receiver)
    signed(store, "S-2", receiver)
    assert deliver_due(store, receiver) == 0
    assert listener.specimens() == [f"{kind}-1"]
    assert deliver_due(store, receiver) == 0  # not due: it waits, and S-2 behind it
    due_now(store)
    deliver_due(store, receiver)
    assert deliver_due(store, receiver) == 1  # twice is enough
    correct(store, report, 0, "Basophil", PERSON, None, True, site(receiver))
    sign(store, report, PERSON, None, site(receiver))
    assert deliver_due(store, receiver) == 0  # the amendment does not overtake what it amends
    assert listener.specimens() == [f"{kind}-1", f"{kind}-1", "S-2"]
    first, second, amendment = outbox(store)
    assert (first.state, first.attempts, first.unanswered) == ("pending", 2, 2)
    assert words in str(first.error)
    assert (second.state, amendment.attempts) == ("delivered", 0)
    store.close()


def test_two_senders_of_one_store_send_nothing_twice(store: Store, listener: Listener) -> None:
    listener.start(0.01)
    names = [f"S-{number}" for number in range(8)]
    for name in names:
        signed(store, name, listener.receiver())
    senders = [Sender(store, listener.receiver()) for _ in range(2)]
    eventually(lambda: backlog(store).pending == 0)
    for sender in senders:
        sender.close()
    assert listener.specimens() == names


@pytest.mark.parametrize("store_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
def test_the_listener_is_killed_in_the_middle_and_nothing_is_lost(store: Store, listener: Listener) -> None:
    listener.start(0.05)
    names = [f"S-{number}" for number in range(16)]
    for name in names:
        signed(store, name, listener.receiver())
    sender = Sender(store, listener.receiver())
    try:
        eventually(lambda: len(listener.messages()) >= 4)
        listener.kill()
        arrived = len(listener.messages())
        assert 4 <= arrived < 16
        time.sleep(0.3)
        listener.start()
        sender.wake()
        eventually(lambda: backlog(store).pending == 0)
    finally:
        sender.close()
    by_control_id = dict(zip(listener.control_ids(), listener.messages(), strict=True))
    assert {message.control_id: message.text for message in outbox(store)} == by_control_id
    first_arrivals = list(dict.fromkeys(listener.specimens()))
    assert first_arrivals == names
    assert len(listener.specimens()) <= 17  # only what was under way is sent twice


SENDER = """
import sys, time
from serving.outbox import Sender
from serving.site import Hl7Receiver
from serving.specimen import Specimen
from serving.store import Store
Sender(Store.open(sys.argv[1]), Hl7Receiver(host="127.0.0.1", port=int(sys.argv[2]), timeout_seconds=float(sys.argv[3])))
time.sleep(120)
"""


@pytest.mark.parametrize("store_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
def test_the_sender_is_killed_before_the_acknowledgement_and_the_message_is_sent_again(
    store: Store, store_url: str, listener: Listener
) -> None:
    timeout = 1.0
    for name in ("S-1", "S-2"):
        signed(store, name, listener.receiver())
    listener.start(60)
    command = [sys.executable, "-c", SENDER, store_url, str(listener.port), str(timeout)]
    first = subprocess.Popen(command, cwd=ROOT, env=clean_environment())
    try:
        eventually(lambda: len(listener.messages()) == 1)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert [(one.state, one.attempts) for one in outbox(store)] == [("pending", 1), ("pending", 0)]
    listener.kill()
    listener.start()
    second = subprocess.Popen(command, cwd=ROOT, env=clean_environment())
    try:
        eventually(lambda: backlog(store).pending == 0)
    finally:
        second.kill()
        second.wait()
    assert listener.specimens() == ["S-1", "S-1", "S-2"]
    again, once, _ = listener.messages()
    assert again == once
    assert [(one.state, one.attempts) for one in outbox(store)] == [("delivered", 2), ("delivered", 1)]


def test_a_receiver_that_trickles_or_floods_is_not_waited_for(tmp_path: Path) -> None:
    store = Store.open(sqlite_url(tmp_path / "service.db"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        receiver = Hl7Receiver(host="127.0.0.1", port=server.getsockname()[1], timeout_seconds=0.4, retries=5)
        signed(store, "S-1", receiver)

        def trickle() -> None:
            connection, _ = server.accept()
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.05)

        def flood() -> None:
            connection, _ = server.accept()
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(b"x" * 2**16)

        for peer, words in ((trickle, "timed out"), (flood, "longer than")):
            threading.Thread(target=peer, daemon=True).start()
            began = time.monotonic()
            assert deliver_due(store, receiver) == 0
            assert time.monotonic() - began < 5
            assert words in str(outbox(store)[0].error)
            due_now(store)
    store.close()


@given(st.integers(1, 10**6))
def test_waiting_doubles_up_to_a_minute(attempts: int) -> None:
    assert wait_after(1) == 1
    assert wait_after(attempts) <= wait_after(attempts + 1) <= min(2 * wait_after(attempts), LONGEST_WAIT)
    assert wait_after(100) == LONGEST_WAIT


def test_a_name_that_cannot_be_looked_up_is_a_receiver_that_cannot_be_reached() -> None:
    with pytest.raises(Unreachable, match="no connection"):
        send("MSH", "control-id", Hl7Receiver(host="a..b", port=2575))
