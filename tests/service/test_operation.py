"""The operator's page: every setting is in it, with its default, and `wbc serve` sets what it says."""

import re

from live import ROOT

from serving.http.limits import MIB, Limits
from serving.security.audit import ROTATE_AT

PAGE = (ROOT / "docs/operation.md").read_text()


def test_every_setting_is_documented() -> None:
    read = {name for path in (ROOT / "serving").rglob("*.py") for name in re.findall(r'"(WBC_[A-Z_]+)"', path.read_text())}
    assert read <= set(re.findall(r"^\| `(WBC_[A-Z_]+)` \|", PAGE, re.MULTILINE))


def test_the_limits_are_the_documented_ones() -> None:
    rows = dict(re.findall(r"^\| `(WBC_[A-Z_]+)` \|.*\| (\d+) \|$", PAGE, re.MULTILINE))
    limits = Limits()
    assert {name: int(value) for name, value in rows.items()} == {
        "WBC_REQUESTS_PER_MINUTE": limits.requests_per_minute,
        "WBC_MAX_BODY_MIB": limits.body_bytes // MIB,
        "WBC_MAX_IN_FLIGHT_MIB": limits.in_flight_bytes // MIB,
        "WBC_MAX_WAITING_IMAGES": limits.waiting_images,
        "WBC_READ_SECONDS": limits.read_seconds,
        "WBC_ANSWER_SECONDS": limits.answer_seconds,
        "WBC_AUDIT_MIB": ROTATE_AT,
        "WBC_HEADER_SECONDS": limits.header_seconds,
        "WBC_CONNECTIONS": limits.connections,
    }
