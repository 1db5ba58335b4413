"""Whatever people do to a report and whatever becomes of its messages: in the end the receiver holds what is signed."""

import contextlib
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from specimens import PERSON, read, several, site
from sqlalchemy import select

from serving.contract.differential import Differential
from serving.contract.errors import Refused
from serving.contract.site import Hl7Receiver, Site
from serving.contract.specimen import Specimen
from serving.formats.hl7 import Acknowledgement
from serving.reports import outbox
from serving.reports.intake import take_in
from serving.reports.outbox import Unanswered, Unreachable, deliver_one, send_again
from serving.reports.review import Action, correct, find, follow, put_right, reinstate, sign, undo, withdraw
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Message, Report

RECEIVER = Hl7Receiver(host="127.0.0.1", port=1, timeout_seconds=1, retries=2)
CELLS = 15


class Receiver:
    """The hospital's system: files values by specimen number and term, and takes a message once."""

    def __init__(self, chance: random.Random) -> None:
        self.held: dict[str, dict[str, str]] = {}
        self.chance: random.Random | None = chance
        self._known: set[str] = set()

    def send(self, text: str, control_id: str, _: Hl7Receiver) -> Acknowledgement:
        """In the place of `outbox.send`: all goes well, or is lost on the way or on the way back, or is refused."""
        fate = (
            "taken"
            if self.chance is None
            else self.chance.choice(["taken", "taken", "unreachable", "unanswered", "refused", "known"])
        )
        if fate == "unreachable":
            raise Unreachable("no connection")
        if fate == "refused" or (fate == "known" and control_id in self._known):
            return Acknowledgement("AE", "")
        if control_id not in self._known:
            self._known.add(control_id)
            self._file(text)
        if fate == "unanswered":
            raise Unanswered("no acknowledgement")
        return Acknowledgement("AA", "")

    def _file(self, text: str) -> None:
        segments = [line.split("|") for line in text.split("\r")]
        held = self.held.setdefault(next((fields[2] for fields in segments if fields[0] == "SPM"), ""), {})
        for fields in segments:
            if fields[0] == "OBX":
                held.pop(fields[3].partition("^")[0], None)
                if fields[11] in ("F", "C"):
                    held[fields[3].partition("^")[0]] = fields[5]


def steps(store: Store, report: str, of: Site, chance: random.Random) -> dict[str, Callable[[], object]]:
    """What may happen next."""
    action, cell = Action(report, PERSON, amend=True, reason="why"), chance.randrange(CELLS)

    def signed() -> None:
        follow(store, report, of)
        sign(store, action, of)

    return {
        "sign": signed,
        "correct": lambda: correct(store, action, cell, chance.choice(["Neutrophil", "Band", "Monocyte", None]), of),
        "undo": lambda: undo(store, action, cell, of),
        "count": lambda: put_right(store, action, {"wbc_count": chance.choice([None, 7.0, 8.0])}, of),
        "number": lambda: put_right(store, action, {"specimen_id": chance.choice(["A", "B", None])}, of),
        "withdraw": lambda: withdraw(store, action, of),
        "reinstate": lambda: reinstate(store, action),
        "deliver": lambda: deliver(store, chance.randint(1, 4)),
        "again": lambda: send_again(store),
    }


def deliver(store: Store, times: int) -> None:
    for _ in range(times):
        with store.writing() as session:
            for message in session.scalars(select(Message)):
                message.not_before = datetime.now(UTC)
        deliver_one(store, RECEIVER)


def settings() -> list[Site]:
    """A site over the years: more cells are asked for, a term is another one, bands are counted no more."""
    of = site(RECEIVER)
    terms = of.loinc.model_copy(update={"percent": {**of.loinc.percent, "Neutrophil": "770-8"}})
    kinds = of.labelling.model_copy(update={"further_kinds": []})
    return [
        of,
        site(RECEIVER, minimum_cells=14),
        *(of.model_copy(update=one) for one in ({"loinc": terms}, {"labelling": kinds})),
    ]


def what_is_signed(report: Report) -> dict[str, list[str]]:
    """By the specimen number the values of a report that a receiver must hold."""
    if report.withdrawn_at is not None or report.status == "preliminary":
        return {}
    of = Differential.model_validate(report.signatures[-1].differential)
    if of.kind == "too_few_cells":
        return {}
    values = [share.printed for share in of.classes.values()]
    values += [share.absolute.printed for share in of.classes.values() if share.absolute is not None]
    return {report.specimen_id or "": sorted([*values, *(further.printed for further in of.further.values() if further.loinc)])}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_in_the_end_the_receiver_holds_what_is_signed(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    receiver, store = Receiver(chance), Store.open(sqlite_url(tmp_path / "service.db"))
    monkeypatch.setattr(outbox, "send", receiver.send)
    of = settings()[0]
    cells = several("Neutrophil", 8) + several("Monocyte", CELLS - 8)
    report = take_in(store, read(cells), Specimen(7.0, "A"), of).report.id
    for _ in range(chance.randint(5, 25)):
        if chance.random() < 0.1:
            of = chance.choice(settings())
        happens = steps(store, report, of, chance)
        with contextlib.suppress(Refused):
            happens[chance.choice([*happens, "sign", "sign", "deliver"])]()
    with contextlib.suppress(Refused):
        steps(store, report, of, chance)[chance.choice(["sign", "withdraw"])]()
    if find(store, report).status == "preliminary" and find(store, report).withdrawn_at is None:
        withdraw(store, Action(report, PERSON, amend=True, reason="why"), of)
    receiver.chance = None
    for _ in range(4):
        send_again(store)
        deliver(store, 6)
    assert {one.state for one in find(store, report).messages} <= {"delivered", "retired"}
    assert {specimen: sorted(held.values()) for specimen, held in receiver.held.items() if held} == what_is_signed(
        find(store, report)
    )
    store.close()
