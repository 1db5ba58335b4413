"""API keys: where they come from, what each may do, and how a caller's key is compared with them.

A keyring is a text file that `wbc keys` writes. Its first line is KEYRING_HEADER; every other line is one key: name, scopes,
SHA-256 of the key, when it was made. Where a key is a person's, the first line is PEOPLE_HEADER, and each line ends with who.
See docs/decisions/018 for why a fast hash is right here, 050 for people.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import quote, unquote

from serving.contract.names import NAME, trimmed
from serving.security.errors import LacksScope, UnknownKey
from wbc_model.core.errors import WbcError
from wbc_model.core.files import make_folder, signature, write_atomic
from wbc_model.core.lock import locked_folder
from wbc_model.core.written import read_written

KEYS, KEYS_FILE, HEADER = "WBC_API_KEYS", "WBC_API_KEYS_FILE", "X-API-Key"
KEYRING_HEADER: Final = "# wbc keyring 1: name scopes sha256 created"
PEOPLE_HEADER: Final = "# wbc keyring 2: name scopes sha256 created person"
NOBODY: Final = "-"  # in a keyring with people, of a key that is no person's
LONGEST_PERSON: Final = 100  # characters, as of every name that signs a report
LOCAL: Final = "local"  # the caller's name where no key is configured
PAGE_KEY: Final = "page"  # the key that `wbc serve` makes on its first start, for whoever is at the machine
PAGE_SCOPES: Final = ("classify", "review", "label", "adjudicate")
LOOK_SECONDS: Final = 1.0  # how often the keys' file is looked at

Scope = Literal["classify", "review", "label", "adjudicate", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

_NAME = re.compile(r"(?!local$|(?:env|file)-\d+$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LOG = logging.getLogger("bentoml.wbc")  # BentoML sets up the log of what is called `bentoml`


@dataclass(frozen=True)
class Key:
    """A key without the key itself: `digest` is its SHA-256. `person` is whose it is; empty where it is a system's."""

    name: str
    scopes: frozenset[str]
    digest: bytes
    created: str = ""
    person: str = ""


ANYBODY: Final = Key(LOCAL, frozenset(SCOPES), b"")  # where no key is configured


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


# --- the keyring's file --------------------------------------------------------------------------------------------------


def add_key(path: Path, name: str, scopes: Collection[str], person: str = "") -> str:
    """Add a new key to the keyring and return it: 256 random bits that are kept nowhere else.

    `person` is whose key it is, as reports and answers are to name that person; empty for a system's key. Raises WbcError for a
    name that is taken or unusable, for an unknown scope, and for a damaged keyring.
    """
    if not _NAME.fullmatch(name):
        raise WbcError(f"{name!r} cannot name a key: use letters, digits, '.', '_' and '-', at most 64 of them")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise WbcError(f"a key's scopes are one or more of {', '.join(SCOPES)}")
    if person and (not re.search(NAME, person) or len(trimmed(person)) > LONGEST_PERSON):
        raise WbcError(f"--person: give a name of at most {LONGEST_PERSON} characters, with something to see in it")
    make_folder(path.parent)
    with _alone(path):
        keys = _parse_keyring(_read(path), path) if path.exists() else []
        if any(key.name == name for key in keys):
            raise WbcError(f"{path} has a key {name} already: revoke it first, or choose another name")
        secret = f"wbc_{secrets.token_urlsafe(32)}"
        created = datetime.now(UTC).isoformat(timespec="seconds")
        _write_keyring(path, [*keys, Key(name, frozenset(scopes), _digest(secret), created, trimmed(person))])
    return secret


def first_key(path: Path) -> str | None:
    """Make the page's key, and return it; None where the keyring has a key. Raises WbcError as `add_key`."""
    return None if path.exists() and list_keys(path) else add_key(path, PAGE_KEY, PAGE_SCOPES)


def empty_keyring(path: Path) -> None:
    """Make a keyring without a key where there is none: a running service then sees its first key. Raises WbcError."""
    make_folder(path.parent)
    with _alone(path):
        if not path.exists():
            _write_keyring(path, [])


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of the keyring; raises WbcError where there is none of that name."""
    with _alone(path):
        keys = list_keys(path)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise WbcError(f"{path} has no key {name}; it has {', '.join(key.name for key in keys) or 'none at all'}")
        _write_keyring(path, left)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Change the keyring while no other process does: it could write back a key that this one revokes. The folder is locked, as
    the file itself is replaced."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(path.parent))
        except OSError as error:
            raise WbcError(f"{path}: its folder cannot be read: {error.strerror}") from None
        yield


def list_keys(path: Path) -> list[Key]:
    """The keys of a keyring; raises WbcError naming the line that is damaged, or where there is no keyring."""
    if not path.exists():
        raise WbcError(f"{path} is not there: there is no key yet; `wbc keys add` makes one")
    return _parse_keyring(_read(path), path)


def _write_keyring(path: Path, keys: Sequence[Key]) -> None:
    people = any(key.person for key in keys)
    header = PEOPLE_HEADER if people else KEYRING_HEADER
    write_atomic(path, "\n".join([header, *(_line(key, people) for key in keys)]) + "\n")


def _line(key: Key, people: bool) -> str:
    scopes = ",".join(scope for scope in SCOPES if scope in key.scopes)
    fields = [key.name, scopes, key.digest.hex(), key.created]
    person = quote(key.person, safe="") or NOBODY if key.person != NOBODY else f"%{ord(NOBODY):X}"
    return " ".join([*fields, person] if people else fields)


def _read(path: Path) -> str:
    try:
        return read_written(path).replace("\r\n", "\n")
    except WbcError as error:
        raise WbcError(f"the file of API keys ({KEYS_FILE}): {error}") from None


def _parse_keyring(text: str, path: Path) -> list[Key]:
    header, *lines = text.split("\n")
    if header not in (KEYRING_HEADER, PEOPLE_HEADER) or lines[-1:] != [""]:
        raise WbcError(f"{path} is not a whole keyring: `wbc keys add` writes one")
    people = header == PEOPLE_HEADER
    keys = [_parse_line(line, f"{path}, line {number}", people) for number, line in enumerate(lines[:-1], 2)]
    for what in ([key.name for key in keys], [key.digest for key in keys]):
        if len(set(what)) != len(what):
            raise WbcError(f"{path}: two lines have the same name or the same key")
    return keys


def _parse_line(line: str, where: str, people: bool) -> Key:
    expected = (PEOPLE_HEADER if people else KEYRING_HEADER).partition(": ")[2]
    fields = line.split(" ")
    if len(fields) != len(expected.split(" ")):
        raise WbcError(f"{where}: expected `{expected}`")
    name, scopes, digest, created = fields[:4]
    person = "" if not people or fields[4] == NOBODY else trimmed(unquote(fields[4]))
    if not _NAME.fullmatch(name) or not set(scopes.split(",")) <= set(SCOPES) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise WbcError(f"{where}: the name, a scope ({', '.join(SCOPES)}) or the sha256 is not valid")
    return Key(name, frozenset(scopes.split(",")), bytes.fromhex(digest), created, person)


# --- the keys of a running service ---------------------------------------------------------------------------------------


class ApiKeys:
    """The accepted keys; where none is configured every caller is let in (the server then listens on loopback only).

    `plain` are keys as they are, with all scopes. `file` is a keyring, or plain keys separated by commas or lines; it is read
    again when it changes. A file that cannot be read then leaves the keys before it in use.
    """

    def __init__(self, plain: Sequence[str] = (), file: Path | None = None) -> None:
        self._plain = _plain_keys(plain, "env")
        self._file = file
        self._seen = signature(file) if file else None
        self._from_file = _read_keys_file(file) if file else []
        self._next_look = 0.0

    def __bool__(self) -> bool:
        return bool(self._plain) or self._file is not None

    @property
    def for_others(self) -> bool:
        """Whether there is another key than the one that `wbc serve` made for the page."""
        return any(key.name != PAGE_KEY for key in (*self._plain, *self._from_file))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ApiKeys":
        """Keys of WBC_API_KEYS (separated by commas) and of the file WBC_API_KEYS_FILE.

        Raises WbcError where one of them is set but holds no key: an empty secret must not open the service to everybody. Beside
        plain keys the keyring may be empty: its first key is taken when it is made.
        """
        plain = _split(environment[KEYS]) if KEYS in environment else []
        if KEYS in environment and not plain:
            raise _no_key(KEYS)
        keys = cls(plain, Path(environment[KEYS_FILE]) if KEYS_FILE in environment else None)
        if keys._file is not None and not keys._from_file and not plain:
            raise _no_key(f"{KEYS_FILE} ({keys._file})")
        return keys

    def check(self, given: str | None, scopes: Collection[str] = ()) -> Key:
        """The key that is `given`; where no key is configured one of the name "local" with all scopes.

        Raises UnknownKey unless it is one of the keys, LacksScope unless it has all of `scopes`. Takes the same time whichever
        key it is, or none: digests are compared, each in constant time, all of them always.
        """
        if not self:
            return ANYBODY
        self._look_at_file()
        digest = _digest(given or "")
        found = [key for key in (*self._plain, *self._from_file) if hmac.compare_digest(digest, key.digest)]
        if given is None or not found:
            raise UnknownKey(given is not None)
        missing = sorted(set(scopes) - found[0].scopes)
        if missing:
            raise LacksScope(found[0].name, missing)
        return found[0]

    def people(self, scope: Scope) -> list[str]:
        """The persons with a key of this scope, by name."""
        self._look_at_file()
        return sorted({key.person for key in (*self._plain, *self._from_file) if key.person and scope in key.scopes})

    def _look_at_file(self) -> None:
        now = time.monotonic()
        if self._file is None or now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        # Taken before the file is read: what changes in between is seen at the next look.
        signed = signature(self._file)
        if signed == self._seen:
            return
        self._seen = signed
        try:
            self._from_file = _read_keys_file(self._file)
        except WbcError as error:
            _LOG.error("%s; the keys from before stay in use", error)
        else:
            _LOG.info("%s was read again: %d keys", self._file, len(self._from_file))


def _read_keys_file(path: Path) -> list[Key]:
    """A keyring may be empty, since its last key can be revoked; a file of plain keys may not."""
    text = _read(path)
    if text.startswith("#"):  # whole or torn, but a keyring: its lines must not be taken for plain keys
        return _parse_keyring(text, path)
    plain = _split(text)
    if not plain:
        raise _no_key(f"{KEYS_FILE} ({path})")
    if any(re.search(r"\s", key) for key in plain):
        raise WbcError(f"{KEYS_FILE} ({path}): a key has a space in it; is this a keyring without its first line?")
    return _plain_keys(plain, "file")


def _plain_keys(plain: Sequence[str], source: str) -> list[Key]:
    return [Key(f"{source}-{number}", frozenset(SCOPES), _digest(key)) for number, key in enumerate(plain, 1)]


def _split(text: str) -> list[str]:
    return [key for line in text.splitlines() for key in map(str.strip, line.split(",")) if key]


def _no_key(source: str) -> WbcError:
    return WbcError(f"{source} is set but holds no key; unset it to run without keys on loopback only")
