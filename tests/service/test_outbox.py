"""Signed reports reach a real MLLP listener, a process of its own, at least once, whatever is killed on the way."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import ROOT, clean_environment, free_port
from specimens import MODEL, PERSON, read, several, site
from sqlalchemy import select

from serving.contract.site import Hl7Receiver
from serving.contract.specimen import Specimen
from serving.formats.hl7 import about
from serving.reports.intake import take_in
from serving.reports.outbox import (
    LONGEST_WAIT,
    Sender,
    Unreachable,
    backlog,
    deliver_one,
    lease,
    refused,
    send,
    send_again,
    wait_after,
)
from serving.reports.review import Action, correct, put_right, reinstate, sign, withdraw
from serving.reports.signing import say_rendered
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Message
from serving.upkeep.removal import remove

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
    sign(store, Action(report.id, PERSON, 1), of)
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
    correct(store, Action(report, PERSON, amend=True), 0, "Basophil", site(receiver))
    sign(store, Action(report, PERSON), site(receiver))
    assert deliver_due(store, receiver) == 0  # the amendment waits until what it amends cannot be on its way any more
    assert listener.specimens() == [f"{kind}-1", f"{kind}-1", "S-2"]
    first, second, amendment = outbox(store)
    assert (first.state, first.attempts, first.unanswered) == ("retired", 2, 2)
    assert words in str(first.error)
    assert (second.state, amendment.attempts, amendment.not_before) == ("delivered", 0, first.not_before)
    due_now(store)
    deliver_due(store, receiver)
    assert [one.attempts for one in outbox(store)] == [2, 1, 1]
    store.close()


def amended(store: Store, report: str, receiver: Hl7Receiver) -> None:
    """Corrected and signed again."""
    correct(store, Action(report, PERSON, amend=True), 0, "Basophil", site(receiver))
    sign(store, Action(report, PERSON), site(receiver))


def statuses(listener: Listener) -> list[str]:
    """OBR-25 of what arrived."""
    return [message.split("\rOBR|")[1].split("\r")[0].split("|")[24] for message in listener.messages()]


def test_a_superseded_result_is_never_sent_again(store: Store, listener: Listener) -> None:
    listener.start()
    receiver = listener.receiver()
    report = signed(store, "ONCE-1", receiver)
    deliver_due(store, receiver)
    assert [one.state for one in outbox(store)] == ["failed"]
    amended(store, report, receiver)
    assert [one.state for one in outbox(store)] == ["retired", "pending"]
    assert (refused(store), send_again(store)) == ([], 0)
    deliver_due(store, receiver)
    assert send_again(store) == 0
    assert deliver_due(store, receiver) == 0
    assert (listener.specimens(), statuses(listener)) == (["ONCE-1", "ONCE-1"], ["F", "C"])
    assert [one.state for one in outbox(store)] == ["retired", "delivered"]


def test_a_result_that_was_superseded_while_nothing_was_sent_is_not_sent_later(store: Store, listener: Listener) -> None:
    report = signed(store, "S-1", listener.receiver())
    correct(store, Action(report, PERSON, amend=True), 0, "Basophil", site())
    sign(store, Action(report, PERSON), site())  # the site has no receiver at this time
    listener.start()
    assert deliver_due(store, listener.receiver()) == 0
    assert (listener.messages(), [one.state for one in outbox(store)]) == ([], ["retired"])


def test_what_corrects_a_result_waits_for_a_receiver_that_is_out_of_the_settings(store: Store, listener: Listener) -> None:
    listener.start()
    receiver = listener.receiver()
    reports = [signed(store, specimen, receiver) for specimen in ("S-1", "S-2")]
    deliver_due(store, receiver)
    withdraw(store, Action(reports[0], PERSON, amend=True, reason=REASON), site())
    correct(store, Action(reports[1], PERSON, amend=True), 0, "Basophil", site())
    sign(store, Action(reports[1], PERSON), site())
    assert deliver_due(store, receiver) == 2
    assert [about(text) for text in listener.messages()[2:]] == [("S-1", True), ("S-2", False)]


def test_a_result_waits_while_it_is_being_amended(store: Store, listener: Listener) -> None:
    receiver = listener.receiver()
    report = signed(store, "S-1", receiver)
    signed(store, "S-2", receiver)
    correct(store, Action(report, PERSON, amend=True), 0, "Basophil", site(receiver))
    listener.start()
    assert deliver_due(store, receiver) == 1
    sign(store, Action(report, PERSON), site(receiver))
    assert deliver_due(store, receiver) == 1
    assert (listener.specimens(), statuses(listener)) == (["S-2", "S-1"], ["F", "C"])


def test_what_may_be_on_its_way_arrives_before_its_amendment(store: Store, listener: Listener) -> None:
    """The amendment is signed while the first message is being sent; a second sender does not overtake it."""
    listener.start(1.0)
    receiver = listener.receiver(timeout=5)
    report = signed(store, "S-1", receiver)
    sender = threading.Thread(target=deliver_one, args=(store, receiver))
    sender.start()
    eventually(lambda: len(listener.messages()) == 1)
    amended(store, report, receiver)
    assert not deliver_one(store, receiver)
    sender.join()
    first, amendment = outbox(store)
    assert first.state == "delivered"  # what the receiver has taken it has taken
    assert amendment.not_before == first.not_before > datetime.now(UTC)
    due_now(store)
    assert deliver_due(store, receiver) == 1
    assert statuses(listener) == ["F", "C"]


REASON = "another patient's tube"


def test_a_withdrawal_reaches_whoever_was_told(store: Store, listener: Listener) -> None:
    receiver = listener.receiver()
    of, told, untold = site(receiver), signed(store, "S-1", receiver), signed(store, "S-2", receiver)
    listener.start()
    assert deliver_one(store, receiver)
    for report in (told, untold):
        withdraw(store, Action(report, PERSON, amend=True, reason=REASON), of)
    assert deliver_due(store, receiver) == 1
    assert (listener.specimens(), statuses(listener)) == (["S-1", "S-1"], ["F", "C"])
    result, withdrawal = listener.messages()
    assert {line.split("|")[11] for line in withdrawal.split("\r") if line.startswith("OBX")} == {"W"}
    assert "|Withdrawn, not valid. By Dr. Ada: another patient's tube" in withdrawal
    assert [line.split("|")[:6] for line in withdrawal.split("\r") if line.startswith("OBX")] == [
        line.split("|")[:6] for line in result.split("\r") if line.startswith("OBX")
    ]
    assert [one.state for one in outbox(store)] == ["delivered", "retired", "delivered"]


def test_a_removal_says_how_many_messages_went_with_it(store: Store, listener: Listener) -> None:
    receiver = listener.receiver()
    told, untold = signed(store, "S-1", receiver), signed(store, "S-2", receiver)
    listener.start()
    assert deliver_one(store, receiver)
    assert [remove(store, report, "Dr. Ada", "asked for").unsent for report in (told, untold)] == [0, 1]


def test_after_a_withdrawal_that_was_taken_back_the_new_signature_is_the_last_word(store: Store, listener: Listener) -> None:
    receiver = listener.receiver()
    of, report = site(receiver), signed(store, "S-1", receiver)
    listener.start()
    deliver_due(store, receiver)
    withdraw(store, Action(report, PERSON, amend=True, reason=REASON), of)
    deliver_due(store, receiver)
    reinstate(store, Action(report, PERSON, reason=REASON))
    assert deliver_due(store, receiver) == 0
    sign(store, Action(report, PERSON), of)
    assert deliver_due(store, receiver) == 1
    assert [about(text) for text in listener.messages()] == [("S-1", False), ("S-1", True), ("S-1", False)]
    assert statuses(listener) == ["F", "C", "C"]
    withdraw(store, Action(report, PERSON, amend=True, reason=REASON), of)
    assert deliver_due(store, receiver) == 1
    assert about(listener.messages()[-1]) == ("S-1", True)


def test_what_a_model_of_drawn_cells_said_before_that_was_kept_does_not_leave(store: Store, listener: Listener) -> None:
    receiver = listener.receiver()
    told, untold = signed(store, "S-1", receiver), signed(store, "S-2", receiver)
    listener.start()
    assert deliver_one(store, receiver)
    say_rendered(store, MODEL)
    assert deliver_due(store, receiver) == 0
    for report in (told, untold):
        withdraw(store, Action(report, PERSON, amend=True, reason=REASON), site(receiver))
    assert deliver_due(store, receiver) == 1
    assert [about(text) for text in listener.messages()] == [("S-1", False), ("S-1", True)]


def test_a_withdrawal_that_still_waits_is_not_sent_when_it_was_taken_back(store: Store, listener: Listener) -> None:
    receiver = listener.receiver()
    of, report = site(receiver), signed(store, "S-1", receiver)
    listener.start()
    deliver_due(store, receiver)
    withdraw(store, Action(report, PERSON, amend=True, reason=REASON), of)
    reinstate(store, Action(report, PERSON, reason=REASON))
    assert deliver_due(store, receiver) == 0
    sign(store, Action(report, PERSON), of)
    assert deliver_due(store, receiver) == 1
    assert [about(text) for text in listener.messages()] == [("S-1", False), ("S-1", False)]
    assert [one.state for one in outbox(store)] == ["delivered", "retired", "delivered"]


def test_a_second_withdrawal_is_sent_where_the_first_may_not_have_arrived(store: Store, listener: Listener) -> None:
    """It was tried, the receiver was down, it was taken back and is withdrawn again: somebody must still tell the receiver."""
    receiver = listener.receiver()
    of, report = site(receiver), signed(store, "S-1", receiver)
    listener.start()
    deliver_due(store, receiver)
    listener.kill()
    withdraw(store, Action(report, PERSON, amend=True, reason=REASON), of)
    assert not deliver_one(store, receiver)
    reinstate(store, Action(report, PERSON, reason=REASON))
    withdraw(store, Action(report, PERSON, amend=True, reason=REASON), of)
    assert [one.state for one in outbox(store)] == ["delivered", "retired", "pending"]
    listener.start()
    due_now(store)
    assert deliver_due(store, receiver) == 1
    assert [about(text) for text in listener.messages()] == [("S-1", False), ("S-1", True)]


def test_a_result_under_a_wrong_specimen_number_is_taken_back(store: Store, listener: Listener) -> None:
    """Receivers file by the specimen number: a correction under another number leaves the first where it is."""
    listener.start()
    receiver = listener.receiver()
    of, report = site(receiver), signed(store, "S-1", receiver)
    deliver_due(store, receiver)
    put_right(store, Action(report, PERSON, amend=True, reason=REASON), {"specimen_id": "S^2"}, of)
    sign(store, Action(report, PERSON), of)
    assert deliver_due(store, receiver) == 2
    assert listener.specimens() == ["S-1", "S-1", r"S\S\2"]
    assert [about(text) for text in listener.messages()] == [("S-1", False), ("S-1", True), ("S^2", False)]
    put_right(store, Action(report, PERSON, amend=True, reason=REASON), {"specimen_id": "S-1"}, of)
    sign(store, Action(report, PERSON), of)
    assert deliver_due(store, receiver) == 2
    assert [about(text) for text in listener.messages()[3:]] == [("S^2", True), ("S-1", False)]


def observed(message: str) -> dict[str, list[str]]:
    """Per status the terms of its OBX."""
    found: dict[str, list[str]] = {}
    for fields in (line.split("|") for line in message.split("\r") if line.startswith("OBX")):
        found.setdefault(fields[11], []).append(fields[3].partition("^")[0])
    return found


def test_what_a_report_has_no_longer_is_taken_back(store: Store, listener: Listener) -> None:
    """A mistyped leukocyte count and a band that is none would stay final at the receiver."""
    listener.start()
    receiver = listener.receiver()
    of = site(receiver)
    percent, absolute, band = (list(of.loinc.percent.values()), list(of.loinc.absolute.values()), "26508-2")
    report = take_in(store, read(several("Neutrophil", 13)), Specimen(71.0, "S-1"), of).report.id
    correct(store, Action(report, PERSON), 0, "Band", of)
    sign(store, Action(report, PERSON), of)
    deliver_due(store, receiver)
    correct(store, Action(report, PERSON, amend=True), 0, "Neutrophil", of)
    put_right(store, Action(report, PERSON, amend=True, reason=REASON), {"wbc_count": None}, of)
    sign(store, Action(report, PERSON), of)
    deliver_due(store, receiver)
    amended(store, report, receiver)
    deliver_due(store, receiver)
    first, second, third = listener.messages()
    assert observed(first) == {"F": [*percent, *absolute, band]}
    assert observed(second) == {"C": percent, "W": [*absolute, band]}
    assert about(second) == ("S-1", False)
    told, taken_back = (
        [line.split("|")[5:9] for line in one.split("\r") if line.startswith("OBX")][5:] for one in (first, second)
    )
    assert told == taken_back
    assert observed(third) == {"C": percent}


def test_a_withdrawal_takes_back_all_that_was_told_since_the_last(store: Store, listener: Listener) -> None:
    """The amendment without the count has not left: the receiver holds the one before it."""
    listener.start()
    receiver = listener.receiver()
    of = site(receiver)
    report = take_in(store, read(several("Neutrophil", 12)), Specimen(71.0, "S-1"), of).report.id
    sign(store, Action(report, PERSON), of)
    deliver_due(store, receiver)
    put_right(store, Action(report, PERSON, amend=True, reason=REASON), {"wbc_count": None}, of)
    sign(store, Action(report, PERSON), of)
    withdraw(store, Action(report, PERSON, amend=True, reason=REASON), of)
    deliver_due(store, receiver)
    assert observed(listener.messages()[-1]) == {"W": [*of.loinc.percent.values(), *of.loinc.absolute.values()]}


def test_a_refused_repetition_of_what_may_have_arrived_is_still_withdrawn(store: Store, listener: Listener) -> None:
    """Its acknowledgement was lost, and the receiver refuses what it has already."""
    of = site(listener.receiver(timeout=0.5))
    report = signed(store, "S-1", listener.receiver())
    with store.writing() as session:
        for message in session.scalars(select(Message)):
            message.attempts, message.unanswered, message.state = 2, 1, "failed"
    assert send_again(store) == 1
    withdraw(store, Action(report, PERSON, amend=True, reason=REASON), of)
    assert [(one.state, about(one.text).withdrawn) for one in outbox(store)] == [("retired", False), ("pending", True)]


def test_a_withdrawal_that_was_refused_can_be_sent_again_until_the_number_is_used_again(store: Store, listener: Listener) -> None:
    listener.start()
    receiver = listener.receiver()
    of, report = site(receiver), signed(store, "TWICE-1", receiver)
    deliver_due(store, receiver)
    put_right(store, Action(report, PERSON, amend=True, reason=REASON), {"specimen_id": "S-2"}, of)
    sign(store, Action(report, PERSON), of)
    deliver_due(store, receiver)
    assert [one.state for one in outbox(store)] == ["delivered", "failed", "delivered"]
    assert send_again(store) == 1
    put_right(store, Action(report, PERSON, amend=True, reason=REASON), {"specimen_id": "TWICE-1"}, of)
    sign(store, Action(report, PERSON), of)
    assert [one.state for one in outbox(store)] == ["delivered", "retired", "delivered", "pending", "pending"]
    deliver_due(store, receiver)
    assert [about(text) for text in listener.messages()[-2:]] == [("S-2", True), ("TWICE-1", False)]


def test_a_message_of_a_clock_that_was_ahead_does_not_wait_for_that_time(store: Store, listener: Listener) -> None:
    receiver = listener.receiver(timeout=0.2)
    report = signed(store, "S-1", receiver)
    with store.writing() as session:
        [message] = session.scalars(select(Message).where(Message.report_id == report))
        message.not_before = datetime.now(UTC) + timedelta(days=400)
    listener.start()
    assert deliver_due(store, receiver) == 0
    [message] = outbox(store)
    assert message.not_before <= datetime.now(UTC) + lease(receiver)
    eventually(lambda: deliver_due(store, receiver) == 1, 5)


WITH_CLOCK = """
import sys
sys.path.insert(0, sys.argv[1])
from specimens import PERSON, site
from test_outbox import amended, deliver_due, signed
from serving.reports.outbox import send_again
from serving.contract.site import Hl7Receiver
from serving.reports.store import Store
store = Store.open(sys.argv[2])
receiver = Hl7Receiver(host="127.0.0.1", port=int(sys.argv[3]), timeout_seconds=0.3, retries=3)
for word in sys.argv[4:]:
    does, _, of = word.partition(":")
    if does == "sign":
        print(signed(store, of, receiver))
    elif does == "amend":
        amended(store, of, receiver)
    elif does == "send":
        deliver_due(store, receiver)
    else:
        print(send_again(store))
"""


def with_clock(moved: str, store_url: str, listener: Listener, *words: str) -> str:
    """What a process of its own prints whose clock is `moved`."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime not found: the clock cannot be moved")
    line = [faketime, "--exclude-monotonic", "-f", moved, sys.executable, "-c", WITH_CLOCK, str(Path(__file__).parent)]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    command = [*line, store_url, str(listener.port), *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_nothing_older_follows_whatever_the_clock_says_and_whoever_restarts(
    store: Store, store_url: str, listener: Listener
) -> None:
    listener.start()
    report = with_clock("+0", store_url, listener, "sign:ONCE-1", "send")
    with_clock("-3d", store_url, listener, f"amend:{report}", "send")  # the clock is put back, the service is started anew
    assert with_clock("+5d", store_url, listener, "again", "send") == "0"
    assert with_clock("+0", store_url, listener, "again", "send") == "0"
    assert statuses(listener) == ["F", "C"]


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_clock_that_was_two_days_ahead_blocks_nothing(store: Store, store_url: str, listener: Listener) -> None:
    with_clock("+2d", store_url, listener, "sign:S-1", "send")  # nobody listens: it is to be tried again, two days ahead
    [message] = outbox(store)
    assert (message.state, message.attempts) == ("pending", 1)
    assert message.not_before > datetime.now(UTC) + timedelta(days=1)
    listener.start()
    receiver = listener.receiver(timeout=0.3)
    eventually(lambda: deliver_due(store, receiver) == 1, 10)


def answering(*answers: bytes, then_close: bool = True) -> Iterator[int]:
    """A port where each connection's message is taken and answered with the next of the answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        opened: list[socket.socket] = []

        def serve() -> None:
            for answer in answers:
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    opened.append(connection)
                    received = b""
                    while b"\x1c\r" not in received:
                        received += connection.recv(4096)
                    control_id = received.split(b"|")[9]
                    connection.sendall(answer.replace(b"ID", control_id))
                    if then_close:
                        connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        for connection in opened:
            connection.close()


MSH = b"MSH|^~\\&|LIS||WBC||20261123||ACK^R01^ACK|1|P|2.5.1"
OFF_ITS_FRAME = {
    "no start": MSH + b"\rMSA|AA|ID\r\x1c\r",
    "no carriage return behind the end": b"\x0b" + MSH + b"\rMSA|AA|ID\r\x1c",
    "line feed behind the end": b"\x0b" + MSH + b"\rMSA|AA|ID\r\x1c\n",
    "no frame": MSH + b"\rMSA|AA|ID\r",
    "no end": b"\x0b" + MSH + b"\rMSA|AA|ID\r",
    "line feeds": b"\x0b" + MSH + b"\nMSA|AA|ID\n\x1c\r",
    "a mark before it": b"\x0b\xef\xbb\xbf" + MSH + b"\r\nMSA|AA|ID\r\n\x1c\r",
    "MSA alone": b"\x0bMSA|AA|ID\r\x1c\r",
    "two starts": b"\x0b\x0b" + MSH + b"\rMSA|AA|ID\x1c\r",
    "small letters": b"\x0b" + MSH + b"\rMSA|aa| ID \r\x1c\r",
}


@pytest.mark.parametrize("then_close", [True, False])
@pytest.mark.parametrize("kind", OFF_ITS_FRAME)
def test_an_acknowledgement_that_can_be_read_is_taken(tmp_path: Path, kind: str, then_close: bool) -> None:
    store = Store.open(sqlite_url(tmp_path / "service.db"))
    for port in answering(OFF_ITS_FRAME[kind], then_close=then_close):
        receiver = Hl7Receiver(host="127.0.0.1", port=port, timeout_seconds=5)
        signed(store, "S-1", receiver)
        assert deliver_one(store, receiver)
    assert [(one.state, one.error) for one in outbox(store)] == [("delivered", None)]
    store.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection"),
        (b"\x0b" + MSH, "closed the connection, after 51 bytes without the end of a frame"),
        (b"\x0b" + MSH + b"\r\x1c\r", "has no MSA segment"),
        (b"\x0bOK\x1c\r", "has no HL7 segment MSH or MSA"),
        (b"\x0b" + MSH + b"\rMSA|AA|OTHER\r\x1c\r", "acknowledges another message"),
        (b"\x0b" + MSH + b"\rMSA|AA\r\x1c\r", "does not say in MSA-2 which message"),
        (b"\x0b" + MSH + b"\rMSA|OK|ID\r\x1c\r", "has no acknowledgement code in MSA-1"),
    ],
)
def test_of_another_answer_the_reason_says_what_is_wrong_with_it(tmp_path: Path, answer: bytes, words: str) -> None:
    store = Store.open(sqlite_url(tmp_path / "service.db"))
    for port in answering(answer):
        receiver = Hl7Receiver(host="127.0.0.1", port=port, timeout_seconds=5)
        signed(store, "S-1", receiver)
        assert not deliver_one(store, receiver)
    [message] = outbox(store)
    assert words in str(message.error)
    assert "timed out" not in str(message.error)
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
from serving.reports.outbox import Sender
from serving.contract.site import Hl7Receiver
from serving.contract.specimen import Specimen
from serving.reports.store import Store
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
