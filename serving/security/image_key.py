"""The keys that kept images are encrypted with, in a file that lies outside the store (AES-256-GCM).

A key a line, 64 hexadecimal digits. New images are encrypted with the first; the others open what was encrypted before.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wbc_model.core.errors import WbcError
from wbc_model.core.written import read_written

IMAGE_KEY_FILE: Final = "WBC_IMAGE_KEY_FILE"
MAKE: Final = "make a key with `openssl rand -hex 32`"
_NONCE_BYTES: Final = 12
_HEXADECIMAL: Final = re.compile(r"[0-9a-fA-F]{64}")


class ImageKey:
    """Seals and opens what belongs to an image; `name` tells one key from another and nothing of either."""

    def __init__(self, secret: bytes) -> None:
        self.name = hashlib.sha256(b"wbc image key\0" + secret).hexdigest()[:16]
        self._cipher = AESGCM(secret)

    def seal(self, data: bytes, about: str) -> bytes:
        """Encrypted bytes, which open only with the same `about`: what is stored for one image cannot pass for another's."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, about.encode())

    def open(self, sealed: bytes, about: str) -> bytes:
        """What was sealed; raises WbcError where it was changed, is about something else, or was sealed with another key."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.encode())
        except (InvalidTag, ValueError):
            raise WbcError("a kept image cannot be decrypted: it was changed, or encrypted with another key") from None


class ImageKeys:
    """The keys of WBC_IMAGE_KEY_FILE; none where it is not set."""

    def __init__(self, keys: Sequence[ImageKey] = (), path: Path | None = None) -> None:
        self.newest = keys[0] if keys else None
        self.path = path
        self._by_name = {key.name: key for key in keys}

    @classmethod
    def read(cls, path: Path) -> "ImageKeys":
        """The keys of a file; raises WbcError in one line that never shows what is in it."""
        lines = [line.strip() for line in read_written(path).splitlines() if line.strip() and not line.startswith("#")]
        if not lines:
            raise WbcError(f"{IMAGE_KEY_FILE}: {path} holds no key; {MAKE}")
        for number, line in enumerate(lines, 1):
            if not _HEXADECIMAL.fullmatch(line):
                raise WbcError(f"{IMAGE_KEY_FILE}: key {number} of {path} is not 64 hexadecimal digits; {MAKE}")
        return cls([ImageKey(bytes.fromhex(line)) for line in lines], path)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ImageKeys":
        """The keys of the file that WBC_IMAGE_KEY_FILE names; none where it names none."""
        named = environment.get(IMAGE_KEY_FILE, "").strip()
        return cls.read(Path(named)) if named else NO_KEYS

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def named(self, name: str) -> ImageKey:
        """The key of a name; raises WbcError where it is not there."""
        if name not in self._by_name:
            where = f"{self.path} does not hold it" if self.path else "it is not set"
            raise WbcError(f"kept images are encrypted with the key {name}: {IMAGE_KEY_FILE} must name its file, and {where}")
        return self._by_name[name]


NO_KEYS: Final = ImageKeys()
