"""API keys: where they come from and how a caller's key is compared with them."""

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from serving.problems import Problem
from wbc_model.errors import WbcError

KEYS, KEYS_FILE, HEADER = "WBC_API_KEYS", "WBC_API_KEYS_FILE", "X-API-Key"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class ApiKeys:
    """The digests of the accepted keys; without any, every caller is let in (the server then listens on loopback only)."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ApiKeys":
        """Keys of WBC_API_KEYS (separated by commas) and of the file WBC_API_KEYS_FILE (commas or lines).

        Raises WbcError where one of them is set but holds no key: an empty secret must not open the service to everybody.
        """
        keys: list[str] = []
        if KEYS in environment:
            keys += _split(environment[KEYS], KEYS)
        if KEYS_FILE in environment:
            path = Path(environment[KEYS_FILE])
            try:
                keys += _split(path.read_text(), f"{KEYS_FILE} ({path})")
            except (OSError, UnicodeDecodeError) as error:
                raise WbcError(f"{KEYS_FILE}: cannot read {path}: {error}") from None
        return cls(keys)

    def check(self, given: str | None) -> None:
        """Raise a 401 Problem unless `given` is one of the keys. Takes the same time whichever key it is, or none."""
        if not self._digests:
            return
        digest = _digest(given or "")
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if given is None or not any(matches):
            what = "is missing" if given is None else "is not one of the accepted keys"
            raise Problem(401, "unauthorised", "Unauthorised", f"The header {HEADER} {what}.", {"WWW-Authenticate": "ApiKey"})


def _split(text: str, source: str) -> list[str]:
    keys = [key for line in text.splitlines() for key in map(str.strip, line.split(",")) if key]
    if not keys:
        raise WbcError(f"{source} is set but holds no key; unset it to run without keys on loopback only")
    return keys
