"""The nightly audit: whether what is kept is still what was kept, and whether champion and Bento answer alike.

It changes nothing. What it finds is a line each; whoever reads no line knows that all is well.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flows.pipeline.package import BENTO
from flows.workspace import AUDIT
from wbc_model.cells.pools import Pools, check_present
from wbc_model.cells.rejections import quarantined, read_rejections
from wbc_model.cells.store import ImageStore, intact
from wbc_model.checks.quality import INTACT
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.model_card import CARD, read_card
from wbc_model.params import read_params

CHAMPION: Final = "models/champion"
FIXED: Final = 64  # test cells that champion and Bento are asked about: the first by their names, so always the same
# What int8 is unsure of is computed again in float32. What is left moves a probability by some hundredths; bf16 by less.
TOLERANCE: Final = 0.1
_SERVE: Final = """
import json, sys
from pathlib import Path
from serving.inference.classify import Classifier
classifier = Classifier.open(Path(sys.argv[1]))
files = [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())]
results = [classifier.classify_chunk(files[start : start + 16]) for start in range(0, len(files), 16)]
print(json.dumps([result.model_dump(mode="json") for chunk in results for result in chunk]))
"""


@dataclass(frozen=True)
class Audit:
    """What was `looked` at, in words, and what was found wrong."""

    looked: list[str]
    findings: list[str]

    @property
    def text(self) -> str:
        """One line if all is well; else one a finding."""
        return "\n".join(self.findings) or f"all is well: {'; '.join(self.looked)}"


def audit(workspace: Path) -> Audit:
    """Look at the image store, the pools, the audit log, the champion and the Bento of a workspace."""
    looked: list[str] = []
    findings: list[str] = []
    for look in (_there, _images, _pools, _log, _answers):
        try:
            said, found = look(workspace)
        except WbcError as error:
            said, found = "", [" ".join(str(error).split())]
        looked += [said] if said else []
        findings += found
    return Audit(looked, findings)


def _there(workspace: Path) -> tuple[str, list[str]]:
    """What DVC's notes name is there: of what is gone no other look has a word."""
    check_present(workspace / "data")
    return "", []


def _images(workspace: Path) -> tuple[str, list[str]]:
    """Each shard's bytes are those that it is named by."""
    shards = ImageStore(workspace / "data/images").shards()
    damaged = [shard for shard in shards if not intact(shard)]
    found = [f"{shard.relative_to(workspace)} is damaged: bring it back with `dvc checkout` or `dvc pull`" for shard in damaged]
    return f"{counted(len(shards), 'shard')} of images as they were written", found


def _pools(workspace: Path) -> tuple[str, list[str]]:
    """The checks of `wbc validate`, beside the workspace: it finds what it found before. Measurements and pairs are taken as they
    were kept, once each shard was hashed anew: a disk decays in silence. A pool that is too small to train or test is as it
    should be: that of a site which was onboarded, say."""
    from flows.pipeline.checks import LISTED, ChecksStopped, validate

    if not Pools.exist(workspace / "data/pools"):
        return "", []
    known = quarantined(workspace / "data")
    scratch = workspace / ".wbc"
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="audit-", dir=scratch) as name:
        copy = Path(name)
        shutil.copytree(workspace / "data/pools", copy / "data/pools")
        (copy / "data/images").symlink_to((workspace / "data/images").resolve())
        for kept in ("rejected.csv", "oracle.csv"):
            if (workspace / "data" / kept).exists():
                shutil.copyfile(workspace / "data" / kept, copy / "data" / kept)
        (copy / ".wbc/cache").mkdir(parents=True)
        for file in (workspace / ".wbc/cache").glob("[!.]*"):
            if file.name != INTACT:
                (copy / ".wbc/cache" / file.name).symlink_to(file.resolve())  # what is written anew takes the link's place
        wrong: list[str] = []
        try:
            validate(copy, read_params(workspace / "params.yaml"))
        except ChecksStopped as stopped:
            wrong = [line.text for line in stopped.critical if not line.lacks][:LISTED]
        new = [entry for entry in read_rejections(copy / "data/quarantine.csv") if entry.sha256 and entry.sha256 not in known]
    rejected = {entry.sha256 for entry in read_rejections(workspace / "data/rejected.csv")}
    found = [
        f"pools: cell {one.sha256[:12]} is {one.reason}: `wbc validate` says more" for one in new if one.sha256 not in rejected
    ]
    counts = Pools.read(workspace / "data/pools", check=False).counts()
    found = [f"pools: {line}: `wbc validate` says more" for line in wrong] + sorted(found)
    return f"{counted(sum(counts.values()), 'cell')} in the pools as they should be", found


def _log(workspace: Path) -> tuple[str, list[str]]:
    """The chain of the service's audit log. One that is gone is found by the note of its last line, and by the champion where
    WBC_AUDIT_LOG names it: a service that has no model yet has not begun one."""
    from serving.security.chain import head_path, verify

    named = os.environ.get("WBC_AUDIT_LOG", "").strip()
    path = Path(named) if named else workspace / AUDIT
    if not path.exists():
        begun = head_path(path).exists() or (named and (workspace / CHAMPION / CARD).exists())
        return "", [f"{path}: the service's audit log is not there"] if begun else []
    return f"{counted(verify(path, None, False).records, 'record')} of the audit log unbroken", []


# --- champion and Bento -----------------------------------------------------------------------------------------------------


def _answers(workspace: Path) -> tuple[str, list[str]]:
    """The same cells through the champion, by the code that is installed, and through the Bento, by the code in it."""
    champion, bento = workspace / CHAMPION, workspace / BENTO / "src"
    if not (champion / CARD).exists():
        return "", []
    card = read_card(champion)
    if not (bento / "model" / CARD).exists():
        return f"the champion {card.version} is whole", []
    packaged = read_card(bento / "model")
    if packaged.sha256 != card.sha256 or packaged.version != card.version:
        return f"the Bento is of model {packaged.version}, the champion is {card.version}: not compared", []
    with tempfile.TemporaryDirectory(prefix="wbc-audit-") as name:
        cells = _fixed_cells(workspace, Path(name))
        if not cells:
            return f"the champion {card.version} is whole; there is no test cell to compare answers by", []
        ours = _served(Path.cwd(), champion, Path(name))
        theirs = _served(bento, bento / "model", Path(name))
    found = list(_differences(cells, ours, theirs))
    return f"champion {card.version} and its Bento answer alike on {counted(len(cells), 'cell')}", found


def _fixed_cells(workspace: Path, folder: Path) -> list[str]:
    """Write the files of the fixed cells into a folder; returns their names."""
    test = Pools.read(workspace / "data/pools").without(quarantined(workspace / "data")).frames["test"]
    names = sorted(test["sha256"])[:FIXED]
    for sha256, data in ImageStore(workspace / "data/images").read(names):
        (folder / sha256).write_bytes(data)
    return names


def _served(code: Path, model: Path, cells: Path) -> list[dict[str, Any]]:
    """What a model says of the cells of a folder, in a process of its own that stands in the folder of the code."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", _SERVE, str(model.resolve()), str(cells)]
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise WbcError(f"{model} does not answer: {last}")
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def _differences(cells: list[str], ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Iterator[str]:
    """Cells that the two name otherwise, or of whose class they are surer or less sure by more than TOLERANCE."""
    for sha256, mine, other in zip(cells, ours, theirs, strict=True):
        what = f"cell {sha256[:12]} through champion and Bento"
        if mine["status"] != other["status"]:
            yield f"{what}: {mine['status']} and {other['status']}"
        elif mine["status"] == "ok":
            away = max(abs(mine["probabilities"][name] - other["probabilities"][name]) for name in mine["probabilities"])
            if mine["label"] != other["label"]:
                yield f"{what}: {mine['label']} and {other['label']}"
            elif away > TOLERANCE:
                yield f"{what}: probabilities differ by {away:.2f}, {TOLERANCE} is allowed"
