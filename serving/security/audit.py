"""The audit log: who asked what about which images, when, which model answered what. Append-only, each line chained to the last.

Of a call that changes something it has two lines: the intention before the deed, the outcome after it (serving/http/deeds.py). It
holds no image, file name or specimen id. See docs/decisions/019 for what it can prove, 032 for the order of things.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from serving.contract.schemas import ModelName
from serving.security.chain import Intentions, Link, chained, head_path, last_link, read_head, rotated_files, tail
from serving.security.errors import LogNotWritable
from serving.security.refusals import Refusals
from wbc_model.core.errors import WbcError
from wbc_model.core.lock import take

AUDIT_LOG: Final = "WBC_AUDIT_LOG"
AUDIT_MIB: Final = "WBC_AUDIT_MIB"
ROTATE_AT: Final = 64  # MiB
TICK_SECONDS: Final = 1.0  # how often the writer looks for what nobody waits for
ROTATE_SECONDS: Final = 20.0  # how long `rotate` waits for a running service

_LOG = logging.getLogger("bentoml.wbc")


class InUse(WbcError):
    """Another process writes to the log."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass
class _Entry:
    """A record that waits to be written. What is `owed` is written later where it cannot be now: the deed is done."""

    fields: dict[str, Any]
    done: "Future[None]"
    owed: bool = False


class AuditLog:
    """Appends records from a thread of its own: those that come while it writes share the next fsync."""

    def __init__(self, path: Path, rotate_at: int = ROTATE_AT * 2**20) -> None:
        """Open or make the log; raises WbcError where it cannot be written, is in use, or does not end as it was left.

        A file of `rotate_at` bytes is moved to FILE.000001, FILE.000002, ... and the chain goes on in a new one.
        """
        self.path = path
        self.intentions = Intentions()
        self.refusals = Refusals()
        self._rotate_at = rotate_at
        self._last = Link()
        self._known: int | None = None  # bytes of the file whose intentions are known
        self._owed: list[dict[str, Any]] = []
        self._waiting: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._broken = False  # whether the last write failed
        self._open()
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "AuditLog | None":
        """The log that WBC_AUDIT_LOG names; None where it names none."""
        name = environment.get(AUDIT_LOG, "").strip()
        size = environment.get(AUDIT_MIB, "").strip() or str(ROTATE_AT)
        if not size.isdecimal() or int(size) < 1:
            raise WbcError(f"{AUDIT_MIB} is {size!r}: give a whole number of at least 1, or leave it unset for {ROTATE_AT}")
        return cls(Path(name), int(size) * 2**20) if name else None

    async def intend(self, caller: str, call: str, person: str = "") -> str:
        """Write down what a caller is about to do; returns the intention's id once the line is on the disk.

        Raises LogNotWritable; then nothing was done, and nothing must be.
        """
        intention = uuid.uuid4().hex
        await self._put({"time": _now(), "caller": caller, **_named(person), "intends": call, "intention": intention})
        return intention

    async def record(
        self,
        caller: str,
        call: str,
        status: int,
        images: Sequence[str],
        model: ModelName | None,
        answer: bytes,
        person: str = "",
        **more: str | bool,
    ) -> None:
        """Add a record and wait until it is on the disk: no answer leaves that is not in the log.

        `images` are SHA-256 digests of the posted files, `answer` is the body of the response, `more` stands in the record as
        it is. Raises LogNotWritable.
        """
        fields = outcome(caller, call, status, images, model, answer, person)
        await self._put({"time": _now(), **fields, **more})

    async def conclude(self, intention: str, record: Mapping[str, Any]) -> None:
        """Add the outcome of an intention; where the log cannot be written now it is owed, and written as soon as it can be."""
        done: Future[None] = Future()
        self._waiting.put(_Entry({"time": _now(), **record, "intention": intention}, done, owed=True))
        await asyncio.wrap_future(done)

    def complete(self, intention: str, record: Mapping[str, Any] | None) -> None:
        """At the start: add the outcome of an intention from before; None says that it was not carried out. Blocks."""
        what = self.intentions[intention]
        record = record or _not_done(what)
        done: Future[None] = Future()
        self._waiting.put(_Entry({"time": _now(), **record, "intention": intention, "completed": True}, done, owed=True))
        done.result()

    async def _put(self, fields: dict[str, Any]) -> None:
        done: Future[None] = Future()
        self._waiting.put(_Entry(fields, done))
        try:
            await asyncio.wrap_future(done)
        except OSError:
            raise LogNotWritable from None

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._waiting.put(None)
        self._thread.join()
        self._file.close()
        self._head.close()

    # --- the writer's thread ---

    def _write(self) -> None:
        ended = False
        while not ended:
            batch: list[_Entry | None] = []
            with contextlib.suppress(queue.Empty):
                batch.append(self._waiting.get(timeout=TICK_SECONDS))
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            entries = [entry for entry in batch if entry is not None]
            ended = len(entries) < len(batch)
            if not self._broken or ended:  # else they wait where their number is bounded
                self._owed += self.refusals.take(everything=ended)
            if entries or self._owed:
                self._write_batch(entries)
            if not self._broken and ((self._known or 0) >= self._rotate_at or marker(self.path).exists()):
                self._rotate()

    def _write_batch(self, entries: Sequence[_Entry]) -> None:
        waiting = [entry for entry in entries if entry.done.set_running_or_notify_cancel()]  # some callers may have gone
        try:
            if self._broken:
                self._reopen()
            self._append([*self._owed, *(entry.fields for entry in entries)])
        except (OSError, WbcError) as error:
            self._fail(error, entries, waiting)
            return
        self._owed = []
        for entry in waiting:
            entry.done.set_result(None)
        self._flush_head()

    def _fail(self, error: Exception, entries: Sequence[_Entry], waiting: Sequence[_Entry]) -> None:
        """Tell those who wait; what is done already is remembered, and its answer leaves."""
        if entries or not self._broken:
            _LOG.error("%s: %d lines could not be written: %s", self.path, len(entries), error)
        self._broken = True
        self._owed += [entry.fields for entry in entries if entry.owed]
        failure = error if isinstance(error, OSError) else OSError(str(error))
        for entry in waiting:
            if entry.owed:
                entry.done.set_result(None)
            else:
                entry.done.set_exception(failure)

    def _reopen(self) -> None:
        """After a write that failed half way, begin as after a crash: what is torn stays and is named.

        A line may stand there whole although its flush failed. Its call was refused where it is an intention: that is closed. An
        outcome is owed no longer.
        """
        before = set(self.intentions)
        self._file.close()
        self._head.close()
        self._open()
        self._broken = False
        self._owed = [one for one in self._owed if "intention" not in one or one["intention"] in self.intentions]
        for name in set(self.intentions) - before:
            self._owed.append({"time": _now(), **_not_done(self.intentions[name]), "intention": name})

    def _append(self, records: Sequence[Mapping[str, Any]], before: str = "") -> None:
        if not records:
            return
        lines, last = [], self._last
        for fields in records:
            line, last = chained(fields, last)
            lines.append(line + "\n")
        data = (before + "".join(lines)).encode()
        while data:
            data = data[os.write(self._file.fileno(), data) :]
        os.fsync(self._file.fileno())
        # Only now, so that the head never leads the log.
        self._write_head(last)
        self._last = last
        for fields in records:
            self.intentions.follow(fields)
        self._known = os.fstat(self._file.fileno()).st_size

    def _rotate(self) -> None:
        """Move the file away and go on in a new one; killed in between, the next start does the rest."""
        if not self._known:
            return
        earlier = rotated_files(self.path)
        number = int(earlier[-1].name.rpartition(".")[2]) + 1 if earlier else 1
        try:
            self.path.rename(self.path.with_name(f"{self.path.name}.{number:06d}"))
            _flush_folder(self.path.parent)
            self._known = 0
            self._reopen()
            marker(self.path).unlink(missing_ok=True)
        except (OSError, WbcError) as error:
            self._broken = True
            _LOG.error("%s could not be rotated: %s", self.path, error)

    # --- opening ---

    def _open(self) -> None:
        try:
            self._file = open(self.path, "ab+", buffering=0, opener=_private)  # noqa: SIM115 - closed by close()
            self._head = open(head_path(self.path), "r+b", buffering=0, opener=_private)  # noqa: SIM115 - closed by close()
            # the head too, since a rotation puts another file in the first one's place
            if not all(take(file, wait=False) for file in (self._file, self._head)):
                raise InUse(f"{self.path}: another service writes to this audit log; give each one of its own")
            earlier = rotated_files(self.path)
            begins = last_link(earlier[-1]) if earlier else Link()
            self._last, torn = tail(self._file.fileno(), begins)
            self._check_head()
            self._read_intentions(earlier[-1] if self._last == begins and earlier else None)
            fields: dict[str, Any] = {"time": _now()}
            if torn:
                fields |= {"torn": hashlib.sha256(torn).hexdigest(), "bytes": len(torn)}
                _LOG.warning("%s ended within a line, as after a crash; the chain goes on behind it", self.path)
            if earlier and self._last == begins:
                fields |= {"rotated": earlier[-1].name, "open": self.intentions.listed()}
            if len(fields) > 1:
                self._append([fields], "\n" if torn else "")
        except OSError as error:
            raise WbcError(f"{self.path}: the audit log cannot be written: {error.strerror}") from None

    def _read_intentions(self, before: Path | None) -> None:
        """Those of the file behind what is known of it; `before` is the file before one that has no record yet."""
        if before is not None and self._known is None:
            with before.open("rb") as file:
                self.intentions.read(file)
        with self.path.open("rb") as file:
            self.intentions.read(file, self._known or 0)
        self._known = os.fstat(self._file.fileno()).st_size

    def _check_head(self) -> None:
        """Refuse to go on behind records that are missing or changed; a new log gets its head."""
        known = read_head(self.path)
        if known is None and self._last == Link():
            self._write_head(self._last)
            os.fdatasync(self._head.fileno())
            _flush_folder(self.path.parent)
            return
        if known is None or known.number > self._last.number or (known.number == self._last.number and known != self._last):
            what = f"record {known.number}, as {head_path(self.path).name} has it" if known else "a .head beside it"
            raise WbcError(
                f"{self.path}: the audit log does not end with {what}: look with `wbc audit verify`, keep both files elsewhere; "
                "the service then begins new ones"
            )

    def _write_head(self, link: Link) -> None:
        """In place: the 86 bytes lie in one sector, which a power cut leaves old or new, and no folder has to be flushed."""
        os.pwrite(self._head.fileno(), f"{link.number:020d} {link.digest}\n".encode(), 0)

    def _flush_head(self) -> None:
        """After the answers have left, which wait for the disk long enough; what the head then still lacks is their lines."""
        try:
            os.fdatasync(self._head.fileno())
        except OSError as error:
            self._broken = True
            _LOG.error("%s: %s", head_path(self.path), error)


def outcome(
    caller: str,
    call: str,
    status: int | None,
    images: Sequence[str],
    model: ModelName | None,
    answer: bytes | None,
    person: str = "",
) -> dict[str, Any]:
    """What a record says of an answer; without `status` and `answer` that there was none, as nothing was done.

    `person` is whose key the caller's is; it stands in the record only where there is one.
    """
    return {
        "caller": caller,
        **_named(person),
        "call": call,
        "status": status,
        "images": list(images),
        "model": model.model_dump() if model else None,
        "answer": None if answer is None else hashlib.sha256(answer).hexdigest(),
    }


def _not_done(what: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome of an intention that was not carried out."""
    return outcome(what["caller"], what["intends"], None, (), None, None, what.get("person", ""))


def _named(person: str) -> dict[str, str]:
    return {"person": person} if person else {}


def _private(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_CREAT, 0o600)


def _flush_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def marker(path: Path) -> Path:
    """The file by which a running service is asked to rotate its log."""
    return path.with_name(path.name + ".rotate")


def rotate(path: Path) -> Path:
    """Rotate a log, also one that a running service writes to; returns the file that it was until now.

    Raises WbcError where there is no log, and where the service does not answer in time.
    """
    if not path.is_file() or not path.stat().st_size:
        raise WbcError(f"{path}: there is no audit log, or nothing in it yet; `wbc serve` writes one")
    before = rotated_files(path)
    marker(path).touch()
    try:
        AuditLog(path).close()
    except InUse:
        deadline = time.monotonic() + ROTATE_SECONDS
        while marker(path).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    marker(path).unlink(missing_ok=True)
    after = rotated_files(path)
    if after[-1:] == before[-1:]:
        raise WbcError(f"{path} was not rotated: the service that writes to it did not answer; its log has the reason")
    return after[-1]
