"""The audit log: who asked what about which images, when, which model answered what. Append-only, each line chained to the last.

One JSON object a line. `hash` is the SHA-256 of the line without it, `previous` the hash of the line before, so that a line
that is changed, taken out or put elsewhere breaks the chain there. The file FILE.head says how far the chain went, so that
lines cut off the end are missed. It holds no image, file name or specimen id. See docs/decisions/019 for what it can prove.
"""

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from serving.problems import Problem
from serving.schemas import ModelName
from wbc_model.errors import WbcError

AUDIT_LOG: Final = "WBC_AUDIT_LOG"
START: Final = "0" * 64  # what the first record is chained to
TAIL_BYTES: Final = 2**20  # a record of 256 images has 18 kB

_LOG = logging.getLogger("bentoml.wbc")


@dataclass(frozen=True)
class Link:
    """Where a chain is: the number and the hash of its last record."""

    number: int = 0
    digest: str = START


def _line(fields: Mapping[str, Any], after: Link) -> tuple[str, Link]:
    """A record as it stands in the file, without the line's end, and the link that it is."""
    record = {"n": after.number + 1, **fields, "previous": after.digest}
    digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return json.dumps({**record, "hash": digest}), Link(after.number + 1, digest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# --- writing -------------------------------------------------------------------------------------------------------------


class AuditLog:
    """Appends records from a thread of its own: those that come while it writes share the next fsync."""

    def __init__(self, path: Path) -> None:
        """Open or make the log; raises WbcError where it cannot be written, is in use, or does not end as it was left."""
        self.path = path
        self._waiting: queue.SimpleQueue[tuple[dict[str, Any], Future[None]] | None] = queue.SimpleQueue()
        self._broken = False  # whether the last write failed
        self._open()
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "AuditLog | None":
        """The log that WBC_AUDIT_LOG names; None where it names none."""
        name = environment.get(AUDIT_LOG, "").strip()
        return cls(Path(name)) if name else None

    async def record(
        self, caller: str, call: str, status: int, images: Sequence[str], model: ModelName | None, answer: bytes
    ) -> None:
        """Add a record and wait until it is on the disk: no answer leaves that is not in the log.

        `images` are SHA-256 digests of the posted files, `answer` is the body of the response. Raises Problem 503 where the
        log cannot be written.
        """
        fields = {
            "time": _now(),
            "caller": caller,
            "call": call,
            "status": status,
            "images": list(images),
            "model": model.model_dump() if model else None,
            "answer": hashlib.sha256(answer).hexdigest(),
        }
        done: Future[None] = Future()
        self._waiting.put((fields, done))
        try:
            await asyncio.wrap_future(done)
        except OSError:
            detail = "The answer is withheld, since it cannot be written into the audit log; the operator must make room for it."
            raise Problem(503, "audit-log", "Audit log not writable", detail, {"Retry-After": "10"}) from None

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._waiting.put(None)
        self._thread.join()
        self._file.close()
        self._head.close()

    def _open(self) -> None:
        try:
            self._file = open(self.path, "ab+", buffering=0, opener=_private)  # noqa: SIM115 - closed by close()
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._head = open(_head_path(self.path), "r+b", buffering=0, opener=_private)  # noqa: SIM115 - closed by close()
            self._last, torn = _tail(self._file.fileno())
            self._check_head()
            if torn:
                fields = {"time": _now(), "torn": hashlib.sha256(torn).hexdigest(), "bytes": len(torn)}
                self._append([fields], "\n")
                _LOG.warning("%s ended within a line, as after a crash; the chain goes on behind it", self.path)
        except BlockingIOError:
            raise WbcError(f"{self.path}: another service writes to this audit log; give each one of its own") from None
        except OSError as error:
            raise WbcError(f"{self.path}: the audit log cannot be written: {error.strerror}") from None

    def _check_head(self) -> None:
        """Refuse to go on behind records that are missing or changed; a new log gets its head."""
        known = _read_head(self.path)
        if known is None and self._last == Link():
            self._write_head(self._last)
            os.fdatasync(self._head.fileno())
            directory = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
            return
        if known is None or known.number > self._last.number or (known.number == self._last.number and known != self._last):
            what = f"record {known.number}, as {_head_path(self.path).name} has it" if known else "a .head beside it"
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
            _LOG.error("%s: %s", _head_path(self.path), error)

    def _write(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            records = [item for item in batch if item is not None]
            self._write_batch(records)
            if len(records) < len(batch):
                return

    def _write_batch(self, records: Sequence[tuple[dict[str, Any], "Future[None]"]]) -> None:
        waiting = [done for _, done in records if done.set_running_or_notify_cancel()]  # some callers may have gone
        try:
            if self._broken:
                self._reopen()
            self._append([fields for fields, _ in records])
        except (OSError, WbcError) as error:
            self._broken = True
            _LOG.error("%s: %d answers withheld: %s", self.path, len(records), error)
            failure = error if isinstance(error, OSError) else OSError(str(error))
            for done in waiting:
                done.set_exception(failure)
        else:
            for done in waiting:
                done.set_result(None)
            self._flush_head()

    def _reopen(self) -> None:
        """After a write that failed half way, begin as after a crash: what is torn stays and is named."""
        self._file.close()
        self._head.close()
        self._open()
        self._broken = False

    def _append(self, records: Sequence[Mapping[str, Any]], before: str = "") -> None:
        if not records:
            return
        lines, last = [], self._last
        for fields in records:
            line, last = _line(fields, last)
            lines.append(line + "\n")
        data = (before + "".join(lines)).encode()
        while data:
            data = data[os.write(self._file.fileno(), data) :]
        os.fsync(self._file.fileno())
        # Only now, so that the head never leads the log.
        self._write_head(last)
        self._last = last


def _private(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_CREAT, 0o600)


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _read_head(path: Path) -> Link | None:
    """The link that FILE.head has, or None where it is missing or empty; raises WbcError where it is damaged."""
    head = _head_path(path)
    text = head.read_text(encoding="utf-8", errors="replace") if head.is_file() else ""
    if not text:
        return None
    number, _, digest = text.strip().partition(" ")
    if not number.isdecimal() or len(digest) != 64:
        raise WbcError(f"{head} is damaged: it does not say where the audit log ended")
    return Link(int(number), digest)


def _tail(file: int) -> tuple[Link, bytes]:
    """The last record in an open file, and the bytes of what a crash left behind it.

    A last record that lacks only its end of line gets it.
    """
    size = os.fstat(file).st_size
    data = os.pread(file, TAIL_BYTES, max(0, size - TAIL_BYTES))
    lines = data.split(b"\n")
    for place in range(len(lines) - 1, -1, -1):
        link = _link_of(lines[place])
        if link is None:
            continue
        if place == len(lines) - 1:
            os.write(file, b"\n")
            return link, b""
        return link, b"\n".join(lines[place + 1 :])
    return Link(), data


def _link_of(line: bytes) -> Link | None:
    """The link that a line is, or None where it is no whole record."""
    record = _record(line)
    return Link(record["n"], record["hash"]) if record else None


def _record(line: bytes) -> dict[str, Any] | None:
    """A line's content where it is, letter by letter, a record with its own hash."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("n")) is not int or not isinstance(record.get("previous"), str):
        return None
    fields = {name: value for name, value in record.items() if name not in ("n", "previous", "hash")}
    rebuilt, _ = _line(fields, Link(record["n"] - 1, record["previous"]))
    return record if rebuilt.encode() == line else None


async def recorded(request: Request, images: Sequence[str], model: ModelName | None, answer: Response) -> Response:
    """The answer, once it is in the service's audit log where there is one. `images` are SHA-256 digests; raises Problem 503."""
    audit: AuditLog | None = request.app.state.running.audit
    if audit is not None:
        call = f"{request.method} {request.url.path}"
        await audit.record(request.state.caller, call, answer.status_code, images, model, bytes(answer.body))
    return answer


# --- verifying -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """An unbroken chain: how many records, how many lines torn by a crash, the last record's hash."""

    records: int
    torn: int
    last: str


def verify(path: Path, contains: str | None = None) -> Verified:
    """Follow the chain from its first line to its last.

    `contains` is a record's hash that was noted elsewhere: it must be in the chain. Raises WbcError naming the first line that
    is broken, or what is missing at the end.
    """
    if not path.is_file():
        raise WbcError(f"{path}: there is no audit log")
    head = _read_head(path)  # before the log: a running service may go on meanwhile
    if head is None:
        raise WbcError(f"{_head_path(path)} is missing: without it nobody can tell whether the log's last records are")
    chain = _Chain(path, wanted={head.digest, contains or head.digest} - {START})
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            chain.follow(number, raw.removesuffix(b"\n"))
    if head.digest in chain.wanted:
        where = f"line {chain.torn_from}" if chain.torn else f"the end, after record {chain.last.number}"
        raise WbcError(f"{path}: broken at {where}: {_head_path(path).name} knows of {head.number} records")
    if chain.wanted:
        raise WbcError(f"{path}: no record has the hash {contains}")
    return Verified(chain.last.number, chain.torn_lines, chain.last.digest)


class _Chain:
    """Follows a log line by line; `wanted` are hashes that have not been met yet."""

    def __init__(self, path: Path, wanted: set[str]) -> None:
        self.path = path
        self.wanted = wanted
        self.last = Link()
        self.torn: list[bytes] = []  # lines since the last record that are none
        self.torn_from = 0
        self.torn_lines = 0

    def follow(self, number: int, line: bytes) -> None:
        """Take the next line; raises WbcError where the chain breaks."""
        record = _record(line)
        if record is None:
            self.torn_from = self.torn_from if self.torn else number
            self.torn.append(line)
            self.torn_lines += 1
            return
        # What is no record must be named by the one behind it: only then did a crash leave it.
        if self.torn and record.get("torn") != hashlib.sha256(b"\n".join(self.torn)).hexdigest():
            raise WbcError(f"{self.path}: broken at line {self.torn_from}: it is not the record that was written there")
        self.torn = []
        if (record["n"], record["previous"]) != (self.last.number + 1, self.last.digest):
            after = f"record {record['n']} does not follow record {self.last.number}"
            raise WbcError(f"{self.path}: broken at line {number}: {after}")
        self.last = Link(record["n"], record["hash"])
        self.wanted.discard(self.last.digest)
