"""The audit log's files as a chain of lines: reading, linking, and following it from the first line to the last.

Each line is one JSON object. `hash` is the SHA-256 of the line without it, `previous` the hash of the line before. A line that is
changed, taken out or put elsewhere breaks the chain there. FILE.head says how far the chain went: lines cut off the end are
missed. A log that was rotated goes on from FILE.000001, FILE.000002 ... to FILE. See docs/decisions/019 and 032.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from wbc_model.core.errors import WbcError

START: Final = "0" * 64  # what the first record is chained to
TAIL_BYTES: Final = 2**20  # a record of 4,096 images has 280 kB


@dataclass(frozen=True)
class Link:
    """Where a chain is: the number and the hash of its last record."""

    number: int = 0
    digest: str = START


def chained(fields: Mapping[str, Any], after: Link) -> tuple[str, Link]:
    """A record as it stands in the file, without the line's end, and the link that it is."""
    record = {"n": after.number + 1, **fields, "previous": after.digest}
    digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return json.dumps({**record, "hash": digest}), Link(after.number + 1, digest)


def read_record(line: bytes) -> dict[str, Any] | None:
    """A line's content where it is, letter by letter, a record with its own hash."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("n")) is not int or not isinstance(record.get("previous"), str):
        return None
    fields = {name: value for name, value in record.items() if name not in ("n", "previous", "hash")}
    rebuilt, _ = chained(fields, Link(record["n"] - 1, record["previous"]))
    return record if rebuilt.encode() == line else None


def tail(file: int, before: Link) -> tuple[Link, bytes]:
    """The last record in an open file, `before` where it has none, and the bytes of what a crash left behind it.

    A last record that lacks only its end of line gets it.
    """
    size = os.fstat(file).st_size
    data = os.pread(file, TAIL_BYTES, max(0, size - TAIL_BYTES))
    lines = data.split(b"\n")
    for place in range(len(lines) - 1, -1, -1):
        record = read_record(lines[place])
        if record is None:
            continue
        link = Link(record["n"], record["hash"])
        if place == len(lines) - 1:
            os.write(file, b"\n")
            return link, b""
        return link, b"\n".join(lines[place + 1 :])
    return before, data


# --- the files -----------------------------------------------------------------------------------------------------------


def head_path(path: Path) -> Path:
    """The file that says how far the chain went."""
    return path.with_name(path.name + ".head")


def read_head(path: Path) -> Link | None:
    """The link that FILE.head has, or None where it is missing or empty; raises WbcError where it is damaged."""
    head = head_path(path)
    text = head.read_text(encoding="utf-8", errors="replace") if head.is_file() else ""
    if not text:
        return None
    number, _, digest = text.strip().partition(" ")
    if not number.isdecimal() or len(digest) != 64:
        raise WbcError(f"{head} is damaged: it does not say where the audit log ended")
    return Link(int(number), digest)


def rotated_files(path: Path) -> list[Path]:
    """The files that a log was before its rotations, the oldest first."""
    numbered = re.compile(re.escape(path.name) + r"\.\d{6,}")
    found = [one for one in path.parent.glob(f"{path.name}.*") if numbered.fullmatch(one.name)]
    return sorted(found, key=lambda one: int(one.name.rpartition(".")[2]))


def last_link(path: Path) -> Link:
    """The last record of a file that nobody writes to any more; raises WbcError where it does not end with one."""
    with path.open("rb") as file:
        link, torn = tail(file.fileno(), Link())
    if torn or link == Link():
        raise WbcError(f"{path}: the audit log's earlier file does not end with a record: look with `wbc audit verify`")
    return link


# --- intentions ----------------------------------------------------------------------------------------------------------


class Intentions(dict[str, dict[str, str]]):
    """What callers were about to do, {id: {caller, intends}}, and whose outcome the log does not have yet."""

    def follow(self, record: Mapping[str, Any]) -> bool:
        """Take the next record; False where it is the outcome of no open intention, or an intention that is open already."""
        if "rotated" in record:
            # They were open in the file before, which may lie elsewhere.
            self.update({one["intention"]: {"caller": one["caller"], "intends": one["intends"]} for one in record["open"]})
        name = record.get("intention")
        if name is None:
            return True
        if "intends" not in record:
            return self.pop(name, None) is not None
        if name in self:
            return False
        self[name] = {"caller": record["caller"], "intends": record["intends"]}
        return True

    def listed(self) -> list[dict[str, str]]:
        """As the first record behind a rotation has them."""
        return [{"intention": name, **what} for name, what in self.items()]

    def read(self, file: IO[bytes], start: int = 0) -> None:
        """Follow a file's lines from a byte on; what is no record is passed over, the verifier finds it."""
        file.seek(start)
        for line in file:
            if b'"intention"' in line or b'"rotated"' in line:
                record = read_record(line.removesuffix(b"\n"))
                if record is not None:
                    self.follow(record)


# --- verifying -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """An unbroken chain.

    `records` is the number of its last record, `first` that of the first record that is here. A crash has `torn` lines, `open`
    intentions have no outcome, and `last` is the last record's hash.
    """

    records: int
    torn: int
    last: str
    open: int = 0
    first: int = 1


def verify(path: Path, contains: str | None = None, archived: bool = False) -> Verified:
    """Follow the chain from its first line to its last, over all files of its rotations.

    `contains` is a record's hash that was noted elsewhere: it must be in the chain. With `archived` the first files may be
    missing, as they were moved elsewhere. Raises WbcError naming the first line that is broken, or what is missing at the end.
    """
    if not path.is_file():
        raise WbcError(f"{path}: there is no audit log; `wbc serve` writes one")
    head = read_head(path)  # before the log: a running service may go on meanwhile
    if head is None:
        raise WbcError(f"{head_path(path)} is missing: without it nobody can tell whether the log's last records are")
    chain = _Chain(wanted={head.digest, contains or head.digest} - {START}, archived=archived)
    for name, number, line in lines(path):
        chain.follow(name, number, line)
    if head.digest in chain.wanted:
        where = f"line {chain.torn_from}" if chain.torn else f"the end, after record {chain.last.number}"
        raise WbcError(f"{path}: broken at {where}: {head_path(path).name} knows of {head.number} records")
    if chain.wanted:
        raise WbcError(f"{path}: no record has the hash {contains}")
    return Verified(chain.last.number, chain.torn_lines, chain.last.digest, len(chain.intentions), chain.first)


def lines(path: Path) -> Iterator[tuple[Path, int, bytes]]:
    """Each line of the log with its file and its number in it. The service may rotate the log meanwhile: then all over again."""
    with ExitStack() as stack:
        while True:
            names = [*rotated_files(path), path]
            files = [stack.enter_context(name.open("rb")) for name in names]
            if rotated_files(path) == names[:-1]:
                break
            stack.close()
        for name, file in zip(names, files, strict=True):
            for number, raw in enumerate(file, 1):
                yield name, number, raw.removesuffix(b"\n")


class _Chain:
    """Follows a log line by line; `wanted` are hashes that have not been met yet."""

    def __init__(self, wanted: set[str], archived: bool) -> None:
        self.wanted = wanted
        self.last = Link()
        self.first = 1
        self.intentions = Intentions()
        self.torn: list[bytes] = []  # lines since the last record that are none
        self.torn_from = 0
        self.torn_lines = 0
        self._archived = archived

    def follow(self, path: Path, number: int, line: bytes) -> None:
        """Take the next line; raises WbcError where the chain breaks."""
        record = read_record(line)
        if record is None:
            self.torn_from = self.torn_from if self.torn else number
            self.torn.append(line)
            self.torn_lines += 1
            return
        # What is no record must be named by the one behind it: only then did a crash leave it.
        if self.torn and record.get("torn") != hashlib.sha256(b"\n".join(self.torn)).hexdigest():
            raise WbcError(f"{path}: broken at line {self.torn_from}: it is not the record that was written there")
        self.torn = []
        if self._archived and self.last == Link() and "rotated" in record:
            self.first, self.last = record["n"], Link(record["n"] - 1, record["previous"])
        if (record["n"], record["previous"]) != (self.last.number + 1, self.last.digest):
            after = f"record {record['n']} does not follow record {self.last.number}"
            hint = ""
            if self.last == Link() and "rotated" in record:
                hint = f"; {record['rotated']} came before: was it moved elsewhere on purpose, say so with --archived"
            raise WbcError(f"{path}: broken at line {number}: {after}{hint}")
        if not self.intentions.follow(record):
            raise WbcError(f"{path}: broken at line {number}: its intention {record['intention']} does not wait for an outcome")
        self.last = Link(record["n"], record["hash"])
        self.wanted.discard(self.last.digest)
