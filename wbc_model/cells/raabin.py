"""Raabin-WBC (Kouzehkanan et al., Scientific Reports 2022) as its authors distribute it, turned into manifests.

The double-labelled cells come as `Train.rar`, `TestA.rar` and `TestB.zip`, each a folder with a subfolder per class. TestB is of
another microscope and camera, and has neutrophils and lymphocytes only. A file's name begins with its smear:
`95-8-27-1_218_5.jpg` is cell 5 of field 218 of smear 95-8-27-1. Where it begins with the day of a camera
(`20190527_162951_0_0.jpg`), the smear is not in the name and the day stands for it: it may join smears and splits none.

TestA's cells lie mostly on smears that Train has too, so the official split tells how well a network does on smears that it
knows. The split by smears tells how well it does on others.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from wbc_model.cells.manifest import IMAGE_SUFFIXES, known_label
from wbc_model.cells.split import choose_sides, seeded_rank
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import write_atomic

PARTS: Final = ("train", "testa", "testb")
OFFICIAL, BY_SMEAR, TEST_B = "raabin_official.csv", "raabin_smears.csv", "raabin_testB.csv"
_SPLIT: Final = {"train": "train", "validation": "val", "test": "test"}
_SMEAR: Final = re.compile(r"(\d[\w-]*?)_.+")  # what stands before the first underscore, where that is a number or a date


@dataclass(frozen=True)
class RaabinReport:
    """What was found and written. `counts`: manifest -> split -> class -> cells; `smears`: manifest -> split -> smears;
    `shared`: the share of TestA's cells whose smear is in Train; `left_out`: folders that are no class; `unnamed`: files
    whose name does not begin with a smear; `warnings`: classes that a split lacks."""

    counts: dict[str, dict[str, dict[str, int]]]
    smears: dict[str, dict[str, int]]
    shared: float
    left_out: list[str]
    unnamed: list[str]
    warnings: list[str]
    wrote: list[Path]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**vars(self), "wrote": [str(path) for path in self.wrote]}


def smear_of(name: str) -> str:
    """The smear that a file's name begins with; empty where it does not begin with one."""
    found = _SMEAR.fullmatch(Path(name).stem)
    return found.group(1) if found else ""


def raabin_manifests(folder: Path, out: Path | None = None, validation_share: float = 0.15, seed: int = 0) -> RaabinReport:
    """Write the manifests of a Raabin-WBC folder that holds Train, TestA and, optionally, TestB into `out` (`folder`).

    `raabin_official.csv`: Train and TestA as they are, with a share of Train, drawn by class, for validation.
    `raabin_smears.csv`: the cells of both, split anew with each smear on one side; the test's share is TestA's.
    `raabin_testB.csv`: TestB, all of it for testing. Raises WbcError where Train or TestA is missing or has no image,
    and where a manifest is there that says something else: somebody may have changed it.
    """
    parts = _parts(folder)
    left_out: list[str] = []
    frames = {name: _cells(path, left_out) for name, path in parts.items()}
    for name in ("train", "testa"):
        if name not in frames or frames[name].empty:
            raise WbcError(
                f"{folder}: there is no image in a folder {'Train' if name == 'train' else 'TestA'}: unpack Train.rar and "
                f"TestA.rar there; it then holds Train/{CLASSES[0]}/... and TestA/{CLASSES[0]}/..."
            )
    out = out or folder
    manifests = {
        OFFICIAL: _official(frames["train"], frames["testa"], validation_share, seed),
        BY_SMEAR: _by_smear(pd.concat([frames["train"], frames["testa"]], ignore_index=True), frames, validation_share, seed),
    }
    if "testb" in frames:
        manifests[TEST_B] = frames["testb"].assign(split="test")
    texts = {out / name: _text(frame, folder, out) for name, frame in manifests.items()}
    for path, text in texts.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise WbcError(f"{path} is there with other content: it is left as it is. Move it away, or give another --out")
    for path, text in texts.items():
        write_atomic(path, text)
    known = set(frames["train"]["smear"])
    named = frames["testa"]["smear"] != ""
    return RaabinReport(
        counts={name: _counts(frame) for name, frame in manifests.items()},
        smears={name: _smears(frame) for name, frame in manifests.items()},
        shared=float((frames["testa"]["smear"].isin(known) & named).mean()),
        left_out=sorted(left_out),
        unnamed=[str(path) for frame in frames.values() for path in frame.loc[frame["smear"] == "", "path"]],
        warnings=_warnings(manifests),
        wrote=list(texts),
    )


def _parts(folder: Path) -> dict[str, Path]:
    """The folders of the parts, however an unpacker wrote and nested them: `TestA`, `Test-A`, `Raabin-WBC/TestA/TestA`."""
    if not folder.is_dir():
        raise WbcError(f"{folder} is not a folder: name the one that holds Raabin-WBC's Train, TestA and TestB")
    found: dict[str, Path] = {}
    level = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    deeper = [path for one in level for path in sorted(one.iterdir()) if path.is_dir()]
    for path in [*level, *deeper]:
        name = _plain(path)
        if name in PARTS and name not in found:
            inner = [one for one in path.iterdir() if one.is_dir() and _plain(one) == name]
            found[name] = inner[0] if inner else path
    return {name: found[name] for name in PARTS if name in found}


def _plain(path: Path) -> str:
    return re.sub(r"[^a-z]", "", path.name.casefold())


def _cells(part: Path, left_out: list[str]) -> pd.DataFrame:
    """The images of one part: columns path (absolute), label, smear. Folders that are no class go to `left_out`."""
    rows = list(_rows(part, left_out))
    return pd.DataFrame(rows, columns=["path", "label", "smear"], dtype=object)


def _rows(part: Path, left_out: list[str]) -> Iterator[tuple[Path, str, str]]:
    for folder in sorted(path for path in part.iterdir() if path.is_dir() and not path.name.startswith(".")):
        label = known_label(folder.name)
        if label not in CLASSES:
            left_out.append(f"{part.name}/{folder.name}")
            continue
        for file in sorted(folder.iterdir()):
            if file.suffix.casefold() in IMAGE_SUFFIXES and not file.name.startswith("."):
                yield file, label, smear_of(file.name)


def _official(train: pd.DataFrame, test: pd.DataFrame, validation_share: float, seed: int) -> pd.DataFrame:
    """The authors' split. Smears are on both sides of it, so they stand in a column of their own and not as `group`."""
    split = pd.Series("train", index=train.index, dtype=object)
    for _, rows in train.groupby("label"):
        order = sorted(rows.index, key=lambda row: seeded_rank(seed, "raabin", train["path"][row].name))
        split[order[: round(validation_share * len(order))]] = "val"
    return pd.concat([train.assign(split=split), test.assign(split="test")], ignore_index=True)


def _by_smear(cells: pd.DataFrame, frames: dict[str, pd.DataFrame], validation_share: float, seed: int) -> pd.DataFrame:
    """Every smear on one side; class shares as near to those asked for as whole smears allow."""
    group = cells["smear"].where(cells["smear"] != "", cells["path"].map(lambda path: path.stem))
    test_share = len(frames["testa"]) / len(cells)
    named = pd.DataFrame(
        {"sha256": cells["path"].map(lambda path: f"{path.parent.name}/{path.name}"), "label": cells["label"], "group": group}
    )
    sides = choose_sides(named, validation_share * (1 - test_share), test_share, seed)
    return cells.assign(split=[_SPLIT[side] for side in sides], group=group)


def _text(frame: pd.DataFrame, folder: Path, out: Path) -> str:
    """A manifest's text; its paths are relative where it lies in the folder itself, absolute elsewhere."""
    base = folder.resolve()
    inside = out.resolve() == base
    paths = [(path.resolve().relative_to(base) if inside else path.resolve()).as_posix() for path in frame["path"]]
    columns = [column for column in ("path", "label", "split", "group", "smear") if column in frame or column == "path"]
    table = frame.assign(path=paths)[columns]
    if "group" in table:
        table = table.drop(columns="smear")  # the same, and `group` is what an ingest keeps together
    return table.to_csv(index=False, lineterminator="\n")


def _splits(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each split that the manifest has."""
    return {split: frame[frame["split"] == split] for split in _SPLIT.values() if (frame["split"] == split).any()}


def _counts(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {split: {name: int((rows["label"] == name).sum()) for name in CLASSES} for split, rows in _splits(frame).items()}


def _smears(frame: pd.DataFrame) -> dict[str, int]:
    return {split: int(rows["smear"].nunique()) for split, rows in _splits(frame).items()}


def _warnings(manifests: dict[str, pd.DataFrame]) -> list[str]:
    """Classes that a split of Train and TestA has hardly any cell of: nearly all of a class may lie on one smear."""
    warnings = []
    for name in (OFFICIAL, BY_SMEAR):
        total = manifests[name]["label"].value_counts()
        for split, counts in _counts(manifests[name]).items():
            size = sum(counts.values())
            for label, count in counts.items():
                expected = size * total.get(label, 0) / len(manifests[name])
                if label in total and count < max(1, 0.2 * expected):
                    warnings.append(
                        f"{name}: {split} has {counted(count, 'cell')} of {label}, by its size it would have {expected:.0f}"
                    )
    return warnings
