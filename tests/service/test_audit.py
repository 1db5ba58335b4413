"""The audit log: what is in it, that tampering shows, and that no crash or full disk breaks it or lets an answer pass by."""

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import ROOT, clean_environment, fails_to_start, free_port, of_class, serve_command, started
from typer.testing import CliRunner

from flows.cli import app as command_line
from serving.contract.schemas import ModelName
from serving.security import refusals
from serving.security.audit import AuditLog
from serving.security.chain import Link, rotated_files, verify
from serving.security.keys import add_key
from wbc_model.core.errors import WbcError

MODEL = ModelName(name="wbc", version="tiny-1")


async def write(path: Path, count: int, caller: str = "ward-3") -> None:
    log = AuditLog(path)
    for number in range(count):
        await log.record(caller, "POST /v1/classify", 200, [hashlib.sha256(bytes([number])).hexdigest()], MODEL, b"answer")
    log.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    asyncio.run(write(path, 6))
    return path


def test_a_record_says_who_when_what_and_the_hash_can_be_worked_out_by_hand(log: Path) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["n"] for line in lines] == [1, 2, 3, 4, 5, 6]
    first, second = lines[:2]
    assert list(first) == ["n", "time", "caller", "call", "status", "images", "model", "answer", "previous", "hash"]
    assert first["previous"] == "0" * 64
    assert second["previous"] == first["hash"]
    text = log.read_text().splitlines()[0]
    without = text[: text.index(', "hash"')] + "}"
    assert first["hash"] == hashlib.sha256(without.encode()).hexdigest()
    assert first["images"] == [hashlib.sha256(b"\0").hexdigest()]
    assert first["answer"] == hashlib.sha256(b"answer").hexdigest()
    assert verify(log).records == 6
    assert log.stat().st_mode & 0o077 == 0, "only the service's user may read it"


def test_a_chain_goes_on_after_a_restart(log: Path) -> None:
    asyncio.run(write(log, 3))
    assert (verify(log).records, verify(log).torn) == (9, 0)


def tampered(kind: str, lines: list[bytes], at: int, to: int) -> tuple[list[bytes], int]:
    """The lines after tampering, and the first line that must be named."""
    if kind == "delete":
        return lines[:at] + lines[at + 1 :], at + 1
    if kind == "swap":
        changed = list(lines)
        changed[at], changed[to] = changed[to], changed[at]
        return changed, min(at, to) + 1
    if kind == "repeat":
        return lines[: at + 1] + lines[at:], at + 2
    change = {"change": (b"ward-3", b"ward-4"), "respace": (b'"n": ', b'"n":'), "answer": (b'"status": 200', b'"status": 422')}
    return [*lines[:at], lines[at].replace(*change[kind], 1), *lines[at + 1 :]], at + 1


@pytest.mark.parametrize("kind", ["delete", "swap", "repeat", "change", "respace", "answer"])
@pytest.mark.parametrize(("at", "to"), [(0, 1), (2, 4), (4, 5), (5, 0)])
def test_tampering_is_found_where_it_begins(log: Path, kind: str, at: int, to: int) -> None:
    lines, broken = tampered(kind, log.read_bytes().splitlines(keepends=True), at, to)
    log.write_bytes(b"".join(lines))
    if kind == "delete" and at == 5:
        with pytest.raises(WbcError, match="broken at the end, after record 5"):
            verify(log)
    else:
        with pytest.raises(WbcError, match=f"broken at line {broken}:"):
            verify(log)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_byte_can_be_changed_or_cut(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    asyncio.run(write(path, 3))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:place])
        whole = place == len(content) - 1  # all that is missing is the last end of line
    else:
        other = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
        path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
        whole = False
    if whole:
        assert verify(path).records == 3
    else:
        with pytest.raises(WbcError, match="broken"):
            verify(path)


def test_the_end_cut_off_shows_even_at_a_line_and_a_hash_noted_elsewhere_shows_the_rest(log: Path) -> None:
    noted = verify(log).last
    head = log.with_name("audit.jsonl.head")
    four = b"".join(log.read_bytes().splitlines(keepends=True)[:4])
    log.write_bytes(four)
    with pytest.raises(WbcError, match="knows of 6 records"):
        verify(log)
    with pytest.raises(WbcError, match="does not end with record 6"):
        AuditLog(log)
    head.write_text(f"{4:020d} {json.loads(four.splitlines()[-1])['hash']}\n")  # whoever changes both is found out by the note
    assert verify(log).records == 4
    with pytest.raises(WbcError, match="no record has the hash"):
        verify(log, noted)
    head.unlink()
    with pytest.raises(WbcError, match="head is missing"):
        verify(log)
    with pytest.raises(WbcError, match="does not end with a"):
        AuditLog(log)


def test_a_log_that_is_gone_is_not_begun_anew_in_silence(log: Path) -> None:
    log.unlink()
    with pytest.raises(WbcError, match="does not end with record 6"):
        AuditLog(log)


def test_a_crash_at_any_byte_of_a_line_is_named_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    head = tmp_path / "audit.jsonl.head"
    asyncio.run(write(path, 2))
    before, head_before = path.read_bytes(), head.read_bytes()
    asyncio.run(write(path, 1))
    after = path.read_bytes()
    for cut in range(len(before) + 1, len(after) + 1, 7):
        path.write_bytes(after[:cut])
        head.write_bytes(head_before)
        assert verify(path).torn == (cut < len(after) - 1), "seen by the verifier before the service is back"
        asyncio.run(write(path, 2))
        assert path.read_bytes().startswith(after[:cut]), "nothing is ever taken out of the file"
        found = verify(path)
        assert found.torn == (cut < len(after) - 1)
        assert found.records == 2 + 1 + 2  # torn and its note, or whole after all
    cut = len(before) + 40
    torn = after[len(before) : cut]
    path.write_bytes(after[:cut] + b"\n" + b'{"n": 3, "ti')  # a second crash while the first was noted
    head.write_bytes(head_before)
    asyncio.run(write(path, 1))
    assert verify(path).records == 4
    assert torn in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(torn, torn[:-1] + b"!"))
    with pytest.raises(WbcError, match="broken at line 3:"):
        verify(path)


def test_a_power_cut_takes_no_line_whose_answer_left_and_hides_no_cut_but_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a disk holds after a power cut is what was flushed to it: kept here beside the files at every flush."""
    path, disk, cut = tmp_path / "audit.jsonl", tmp_path / "disk", tmp_path / "cut"
    disk.mkdir()
    cut.mkdir()

    def flushed(flush: Callable[[int], None]) -> Callable[[int], None]:
        def keep(descriptor: int) -> None:
            flush(descriptor)
            file = Path(f"/proc/self/fd/{descriptor}").readlink()
            if file.is_file():
                (disk / "new").write_bytes(file.read_bytes())
                (disk / "new").replace(disk / file.name)  # at once: the test looks on while the log goes on

        return keep

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, flushed(getattr(os, name)))

    def hidden(keep: int) -> bool:
        """Whether nobody sees that what is on the disk was cut after so many lines."""
        lines = (disk / path.name).read_bytes().splitlines(keepends=True)
        (cut / path.name).write_bytes(b"".join(lines[:keep]))
        shutil.copy(disk / "audit.jsonl.head", cut)
        try:
            return verify(cut / path.name).records == keep
        except WbcError:
            return False

    async def answers() -> None:
        log = AuditLog(path)
        for number in range(1, 6):
            await log.record("ward-3", "POST /v1/classify", 200, [], MODEL, b"")
            assert verify(disk / path.name).records == number
            assert not any(hidden(keep) for keep in range(number - 1))
        log.close()

    asyncio.run(answers())
    assert not hidden(4), "nothing was under way any more"


WRITER = """
import asyncio, sys
from pathlib import Path
from serving.security.audit import AuditLog

async def main():
    log = AuditLog(Path(sys.argv[1]))
    async def caller(number):
        for turn in range(100_000):
            await log.record(f"caller-{number}", "POST /v1/classify", 200, [f"{turn:064d}"] * 20, None, b"")
            print(number, turn, flush=True)
    await asyncio.gather(*(caller(number) for number in range(8)))

asyncio.run(main())
"""


def test_killed_while_many_write_it_has_lost_nothing_that_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    rng = random.Random(0)
    answered = 0
    environment = clean_environment(PYTHONPATH=str(ROOT))
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(rng.uniform(0.05, 0.3))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait()
        with path.open() as file:
            records = [json.loads(line) for line in file if line.startswith("{") and line.endswith("}\n")]
        told = {(record["caller"], record["images"][0]) for record in records if "caller" in record}
        for caller, turn in (line.split() for line in lines if line.endswith("\n")):
            assert (f"caller-{caller}", f"{int(turn):064d}") in told
            answered += 1
        assert verify(path).records >= len(told)
    assert answered > 20


FULL = """
import asyncio, resource, sys
from pathlib import Path
from serving.security.audit import AuditLog
from serving.security.chain import verify
from serving.security.errors import LogNotWritable

async def main():
    path = Path(sys.argv[1])
    log = AuditLog(path)
    record = lambda caller: log.record(caller, "POST /v1/classify", 200, ["0" * 64] * 10, None, b"")
    await record("before")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
    for _ in range(3):
        try:
            await record("no room")
        except LogNotWritable:
            pass
        else:
            raise AssertionError("an answer went out without its record")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await record("after")
    log.close()
    print(verify(path))
    callers = [line for line in path.read_text().splitlines() if '"caller": "no room"' in line and line.endswith("}")]
    assert not callers and '"caller": "after"' in path.read_text()

asyncio.run(main())
"""


def test_a_full_disk_withholds_the_answer_and_the_log_goes_on_when_there_is_room(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / "audit.jsonl")]
    result = subprocess.run(command, env=clean_environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "torn=" in result.stdout


def test_a_caller_that_has_gone_does_not_stop_the_log(tmp_path: Path) -> None:
    async def impatient() -> None:
        log = AuditLog(tmp_path / "audit.jsonl")
        calls = [asyncio.create_task(log.record("gone", "POST /v1/classify", 200, [], None, b"")) for _ in range(50)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await log.record("here", "POST /v1/classify", 200, [], None, b"")
        log.close()

    asyncio.run(impatient())
    assert verify(tmp_path / "audit.jsonl").records >= 26


def test_two_services_cannot_write_to_one_log(log: Path) -> None:
    first = AuditLog(log)
    with pytest.raises(WbcError, match="another service"):
        AuditLog(log)
    first.close()
    AuditLog(log).close()


def test_the_command_names_the_first_broken_line(log: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "flows.cli", "audit", "verify", str(log), *words]
        result = subprocess.run(command, env=clean_environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=60)
        return result.returncode, result.stdout + result.stderr

    good = CliRunner().invoke(command_line, ["audit", "verify", str(log), "--json"])
    assert json.loads(good.stdout)["records"] == 6
    log.write_text(log.read_text().replace("tiny-1", "tiny-2", 1))
    code, output = run()
    assert code == 1
    assert output.startswith("wbc: error:")
    assert "broken at line 1" in output
    assert len(output.splitlines()) == 1


def test_the_service_keeps_it_and_nothing_in_it_names_a_patient(model_dir: Path, tmp_path: Path) -> None:
    port, path, keyring = free_port(), tmp_path / "audit.jsonl", tmp_path / "keys"
    key = add_key(keyring, "ward-3", ["classify"])
    environment = clean_environment(WBC_AUDIT_LOG=str(path), WBC_API_KEYS_FILE=str(keyring))
    good, bad = of_class("Basophil"), b"not an image"
    files = [("images", ("Doe^Jane 1970-01-01.png", data, "image/png")) for data in (good, bad)]
    with started(serve_command(model_dir, port), port, tmp_path, environment, ROOT) as server:
        headers = {"X-API-Key": key}
        mixed = httpx.post(f"{server.url}/v1/classify", files=files, headers=headers)
        none = httpx.post(f"{server.url}/v1/classify", files=files[1:], headers=headers)
        refused = httpx.post(f"{server.url}/v1/classify", files=files)
        texts = {"specimen_id": "S-4711", "wbc_count": "7.1"}
        counted = httpx.post(f"{server.url}/v1/differential", files=files, data=texts, headers=headers)
        assert [mixed.status_code, none.status_code, refused.status_code, counted.status_code] == [200, 422, 401, 200]
        assert "another service" in fails_to_start(serve_command(model_dir, free_port()), WBC_AUDIT_LOG=str(path))
    first, second, third, counts = [json.loads(line) for line in path.read_text().splitlines()]
    assert (first["caller"], first["call"], first["status"]) == ("ward-3", "POST /v1/classify", 200)
    assert first["images"] == [hashlib.sha256(data).hexdigest() for data in (good, bad)]
    assert first["model"] == {"name": "wbc", "version": "tiny-1"}
    assert first["answer"] == hashlib.sha256(mixed.content).hexdigest()
    assert (second["status"], second["answer"]) == (422, hashlib.sha256(none.content).hexdigest())
    assert (third["call"], third["answer"]) == ("POST /v1/differential", hashlib.sha256(counted.content).hexdigest())
    assert (counts["address"], counts["refused"]) == ("127.0.0.1", {"401": 1})
    assert verify(path).last == counts["hash"]
    for text in (path.read_text(), server.log.read_text()):
        assert "Doe" not in text
        assert texts["specimen_id"] not in text
        assert key not in text


def test_a_log_that_cannot_be_written_ends_the_start_with_one_line(model_dir: Path, tmp_path: Path) -> None:
    line = fails_to_start(serve_command(model_dir, free_port()), WBC_AUDIT_LOG=str(tmp_path / "not-there" / "audit.jsonl"))
    assert "audit log cannot be written" in line


def test_the_head_before_the_first_record(tmp_path: Path) -> None:
    AuditLog(tmp_path / "audit.jsonl").close()
    assert (verify(tmp_path / "audit.jsonl").records, verify(tmp_path / "audit.jsonl").last) == (0, Link().digest)


# --- intentions, rotation, refusals --------------------------------------------------------------------------------------


async def writing(path: Path, rotate_at: int, count: int = 1) -> None:
    log = AuditLog(path, rotate_at)
    for number in range(count):
        intention = await log.intend("ward-3", "POST /v1/differential")
        record = {"caller": "ward-3", "call": "POST /v1/differential", "status": 200, "number": number}
        await log.conclude(intention, record)
        await asyncio.sleep(0.01)
    log.close()


def test_the_chain_goes_on_over_rotations(log: Path) -> None:
    asyncio.run(writing(log, 2000, 40))
    files = [*rotated_files(log), log]
    assert len(files) > 3
    assert files[0].name == "audit.jsonl.000001"
    found = verify(log)
    assert (found.open, found.torn, found.first) == (0, 0, 1)
    assert found.records == sum(len(file.read_text().splitlines()) for file in files)
    for file in files[1:]:
        assert json.loads(file.read_text().splitlines()[0])["rotated"]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    noted = json.loads(files[1].read_text().splitlines()[-1])["hash"]
    assert verify(log, noted).records == found.records
    asyncio.run(write(log, 2))
    assert verify(log).records == found.records + 2
    files[0].rename(log.parent / "elsewhere")
    with pytest.raises(WbcError, match=r"000001 came before.*--archived"):
        verify(log)
    archived = verify(log, archived=True)
    assert (archived.records, archived.first > 1) == (found.records + 2, True)
    files[2].write_bytes(files[2].read_bytes().replace(b"ward-3", b"ward-4", 1))
    with pytest.raises(WbcError, match="000003: broken at line"):
        verify(log, archived=True)


def test_a_file_taken_out_of_the_middle_is_missed(log: Path) -> None:
    asyncio.run(writing(log, 2000, 40))
    rotated_files(log)[1].unlink()
    with pytest.raises(WbcError, match="000003: broken at line 1"):
        verify(log)


@pytest.mark.parametrize("made", [False, True])
def test_killed_within_a_rotation_the_next_start_does_the_rest(log: Path, made: bool) -> None:
    intention = asyncio.run(left_open(log))
    log.rename(log.with_name("audit.jsonl.000001"))
    if made:
        log.write_bytes(b'{"n": 8, "ti')
    opened = AuditLog(log)
    assert list(opened.intentions) == [intention]
    opened.close()
    assert json.loads(log.read_text().splitlines()[-1])["open"][0]["intention"] == intention
    again = AuditLog(log)
    assert list(again.intentions) == [intention], "known from the file's first record"
    again.complete(intention, None)
    again.close()
    found = verify(log)
    assert (found.open, found.records, found.torn) == (0, 9, int(made))


async def left_open(path: Path) -> str:
    log = AuditLog(path)
    intention = await log.intend("ward-3", "POST /v1/differential")
    log.close()
    return intention


def test_the_command_rotates_a_log_at_rest_and_one_in_use(log: Path) -> None:
    def command(*words: str) -> str:
        result = CliRunner().invoke(command_line, ["audit", *words, str(log), "--json"], catch_exceptions=False)
        return result.stdout

    assert json.loads(command("rotate"))["wrote"] == [f"{log}.000001"]

    async def in_use() -> None:
        running = AuditLog(log)
        await running.record("ward-3", "GET /v1/model", 200, [], None, b"")
        moved = await asyncio.to_thread(command, "rotate")
        assert json.loads(moved)["wrote"] == [f"{log}.000002"]
        await running.record("ward-3", "GET /v1/model", 200, [], None, b"")
        running.close()

    asyncio.run(in_use())
    assert json.loads(command("verify"))["records"] == 10
    assert not log.with_name("audit.jsonl.rotate").exists()


def test_a_log_of_before_the_intentions_still_verifies_and_goes_on(tmp_path: Path) -> None:
    """Written by the service of 27 November 2026."""
    path = tmp_path / "audit.jsonl"
    shutil.copy(Path(__file__).parent / "audit-2026-11.jsonl", path)
    shutil.copy(Path(__file__).parent / "audit-2026-11.jsonl.head", tmp_path / "audit.jsonl.head")
    assert verify(path).records == 4
    asyncio.run(writing(path, 10**6))
    assert verify(path).records == 6


def test_refused_callers_are_one_line_an_address_and_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = tmp_path / "audit.jsonl", [1_800_000_000.0]
    monkeypatch.setattr(refusals.time, "time", lambda: now[0])
    log = AuditLog(path)
    for number in range(5000):
        log.refusals.count(f"203.0.113.{number % 3}", 401 if number % 2 else 403)
    now[0] += 60
    for number in range(5000):
        log.refusals.count(f"2001:db8::{number:x}", 429)
    log.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["address"] for one in records[:3]] == ["203.0.113.0", "203.0.113.1", "203.0.113.2"]
    assert sum(sum(one["refused"].values()) for one in records[:3]) == 5000
    assert records[0]["time"] == "2027-01-15T08:00:00.000+00:00"
    assert len(records) == 3 + refusals.ADDRESSES + 1, "an address more is one of the others"
    assert records[-1]["address"] == "others"
    assert verify(path).records == len(records)


def test_while_the_disk_is_full_the_counts_stay_bounded() -> None:
    counts = refusals.Refusals()
    for minute in range(200):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(refusals.time, "time", lambda minute=minute: 60.0 * minute)
            for number in range(300):
                counts.count(f"10.0.{minute}.{number}", 401)
    assert len(counts.take(everything=True)) < refusals.HELD + 200 + 1
