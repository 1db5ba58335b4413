"""What one request may cost, and reading these numbers from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from wbc_model.errors import WbcError
from wbc_model.images import MAX_BYTES

MIB: Final = 2**20
MAX_IMAGES: Final = 256


@dataclass(frozen=True)
class Limits:
    """Over `images` a request, `image_bytes` a file or `body_bytes` a request the answer is 413; over `in_flight_bytes` held by
    all requests together 503; a body that takes longer than `read_seconds` to arrive is 408."""

    images: int = MAX_IMAGES
    image_bytes: int = MAX_BYTES
    body_bytes: int = 128 * MIB
    in_flight_bytes: int = 512 * MIB
    read_seconds: int = 60

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Limits":
        """The defaults, changed by WBC_MAX_BODY_MIB, WBC_MAX_IN_FLIGHT_MIB and WBC_READ_SECONDS; WbcError names a bad one."""
        return cls(
            body_bytes=_positive(environment, "WBC_MAX_BODY_MIB", cls.body_bytes // MIB) * MIB,
            in_flight_bytes=_positive(environment, "WBC_MAX_IN_FLIGHT_MIB", cls.in_flight_bytes // MIB) * MIB,
            read_seconds=_positive(environment, "WBC_READ_SECONDS", cls.read_seconds),
        )


def _positive(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise WbcError(f"{name} is {text!r}: give a whole number of at least 1, or leave it unset for {default}")
    return int(text)


class InFlight:
    """How many bytes of request bodies the process holds; touched from the event loop only, so that it needs no lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, size: int) -> bool:
        """Count `size` more bytes in; False, and nothing counted, when that is more than the process may hold."""
        if self.held + size > self.limit:
            return False
        self.held += size
        return True

    def give(self, size: int) -> None:
        """Count `size` bytes out again."""
        self.held -= size
