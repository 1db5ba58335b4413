"""The operator's page: every setting is in it, with its default, and `wbc serve` sets what it says."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from live import ROOT
from tiny_model import write_model
from typer.testing import CliRunner

from flows.cli import app as command_line
from serving.keys import add_key
from serving.limits import MIB, Limits

PAGE = (ROOT / "docs/operation.md").read_text()


def test_every_setting_is_documented() -> None:
    read = {name for path in (ROOT / "serving").glob("*.py") for name in re.findall(r'"(WBC_[A-Z_]+)"', path.read_text())}
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
    }


def test_wbc_serve_takes_the_workspaces_keys_and_audit_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    write_model(tmp_path / "models/champion")
    add_key(tmp_path / "data/service.keys", "ward-3", ["classify"])
    started: dict[str, Any] = {}

    def instead(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        started.update(environment)

    monkeypatch.setattr(os, "execve", instead)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("WBC_API_KEYS_FILE", "WBC_AUDIT_LOG"):
        monkeypatch.setenv(name, "restored by monkeypatch")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command_line, ["serve"], catch_exceptions=False)
    assert result.exit_code == 0
    assert started["WBC_API_KEYS_FILE"] == str(tmp_path / "data/service.keys")
    assert started["WBC_AUDIT_LOG"] == str(tmp_path / "data/audit.jsonl")
    assert started["WBC_MODEL_DIR"] == str(tmp_path / "models/champion")
