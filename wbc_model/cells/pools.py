"""The four pools: which cells are labelled, waiting for a label, kept for validation, kept for the test.

`Pools` is a value; a move gives a new one. On disk it is four CSV files that change together (wbc_model/cells/journal.py).
"""

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import pandas as pd

from wbc_model.cells.journal import Content, is_unfinished, is_untidy, pools_lock, roll_forward, write_together
from wbc_model.cells.manifest import group_name
from wbc_model.cells.tables import (
    all_differ,
    among,
    are_names,
    csv_blocks,
    in_order,
    must_quote_all,
    read_table,
    slices_in_order,
    whole_numbers,
)
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import Signature, signature
from wbc_model.core.written import read_yaml

POOLS: Final = ("labelled", "unlabelled", "validation", "test")
COLUMNS: Final = ["path", "label", "group", "sha256", "cycle", "labelled_by", "labelled_at", "source"]
SIDES: Final = {"labelled": "train", "unlabelled": "train", "validation": "validation", "test": "test"}
DRAWN: Final = "drawn for test"  # `labelled_by` of an unlabelled cell whose label will go to the test pool
# How `labelled_by` begins for an unlabelled cell that people call none of the five classes, by the side that it came from; what
# they call it follows.
_NONE: Final = "none of the five"
TAKEN_OUT: Final = {"train": f"{_NONE}: ", "validation": f"{_NONE}, of validation: ", "test": f"{_NONE}, of test: "}


def now() -> str:
    """The present as ISO 8601 in UTC, to the second: `labelled_at`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def empty_frame() -> pd.DataFrame:
    """A pool without cells: text columns, and `cycle` as nullable integer."""
    return _typed(pd.DataFrame({name: pd.Series(dtype=str) for name in COLUMNS}))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    typed = frame[COLUMNS].copy()
    kinds = typed.dtypes
    for name in kinds.index[kinds != "str"].drop("cycle", errors="ignore"):
        typed[name] = typed[name].astype(str)
    if kinds["cycle"] != "Int64":
        typed["cycle"] = whole_numbers(typed["cycle"])
    return typed


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    """The one order of a pool file: the same cells give the same bytes, whichever way they came."""
    return in_order(frame, ["cycle", "path", "sha256"]).reset_index(drop=True)


def sides(cells: pd.DataFrame) -> "pd.Series[str]":
    """On which side of the line between training, validation and test each cell is (columns pool, labelled_by): a drawn one is on
    that of the test already, and one that was taken out on the side that it came from."""
    pool, names = pd.factorize(cells["pool"])
    found = pd.Series(pd.array([SIDES[name] for name in names], dtype="str").take(pool), cells.index)
    found[cells["labelled_by"] == DRAWN] = "test"
    out = cells.loc[(cells["pool"] == "unlabelled") & cells["labelled_by"].str.startswith(_NONE), "labelled_by"]
    for side, mark in TAKEN_OUT.items():
        found[out.index[out.str.startswith(mark)]] = side
    return found


def taken_out_as(cells: pd.DataFrame) -> "pd.Series[str]":
    """What people call each unlabelled cell that is none of the five classes; empty for all others."""
    found = pd.Series("", index=cells.index, dtype=object)
    out = cells.loc[cells["labelled_by"].str.startswith(_NONE), "labelled_by"]
    for mark in TAKEN_OUT.values():
        marked = out[out.str.startswith(mark)]
        found[marked.index] = marked.str.slice(len(mark))
    return found


def check_present(data: Path) -> None:
    """Raises WbcError where a file or folder of `data` is missing, whole or in part, that DVC's note beside it says is there.

    A clone without its data has the notes only. What is absent there is not empty, and nothing may be begun in its place.
    """
    notes = sorted(data.glob("?*.dvc"))
    for note in notes:
        noted = read_yaml(note).get("outs") or [{}]
        target, count = note.with_suffix(""), noted[0].get("nfiles", 1)
        files = sum(1 for path in target.rglob("*") if path.is_file()) if target.is_dir() else int(target.is_file())
        if files < count:
            some = f"{files} of the {count} files of {target} are" if files else f"{target} is not"
            names = " ".join(f"{data.name}/{one.name}" for one in notes)  # without them DVC asks for every stage's outputs too
            raise WbcError(f"{some} here, though {note.name} says so: `dvc pull {names}` brings it")


def _relabelled(frame: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """A pool with the labels of `new` (by sha256) in their cells, and who gave them when."""
    coming = frame["sha256"].isin(new.index)
    if not coming.any():
        return frame
    frame = frame.copy()
    for name in ("label", "labelled_by", "labelled_at"):
        frame.loc[coming, name] = frame.loc[coming, "sha256"].map(new[name])
    return frame


@dataclass(frozen=True)
class Pools:
    """The cells of the four pools. `frames` has a DataFrame per name in POOLS with the columns COLUMNS: text, empty where
    unknown, except `cycle` (nullable integer: the cycle in which the cell got its label)."""

    frames: dict[str, pd.DataFrame]

    @classmethod
    def empty(cls) -> Self:
        """Four pools without cells."""
        return cls({name: empty_frame() for name in POOLS})

    @staticmethod
    def exist(directory: Path) -> bool:
        """Whether pools were ever written here."""
        return any((directory / f"{name}.csv").exists() for name in POOLS) or is_unfinished(directory)

    @classmethod
    def read(cls, directory: Path, check: bool = True) -> Self:
        """Read `data/pools`; finishes a write that was interrupted. Raises WbcError when a file is missing or damaged, and
        (unless `check` is false) when a rule of `check()` is broken."""
        check_present(directory.parent)
        with pools_lock(directory, shared=True):
            interrupted = is_untidy(directory)
            if not interrupted:
                pools = cls._load(directory)
        if interrupted:
            with pools_lock(directory):
                roll_forward(directory)
                pools = cls._load(directory)
        if check:
            pools.check()
        return pools

    @classmethod
    def _load(cls, directory: Path) -> Self:
        return cls({name: read_table(directory / f"{name}.csv", COLUMNS, whole="cycle") for name in POOLS})

    def write(self, directory: Path, also: Mapping[Path, Content] | None = None) -> None:
        """Write the four files, and the text files of `also` in the same step: all of them or, after a crash, none.

        Raises WbcError (and writes nothing) when a rule of `check()` is broken.
        """
        with pools_lock(directory):
            roll_forward(directory)
            self._commit(directory, also or {})

    def _commit(self, directory: Path, also: Mapping[Path, Content]) -> None:
        self.check()
        pools = {directory / f"{name}.csv": self._rendered(name) for name in POOLS}
        write_together(directory, {**pools, **also})

    def _rendered(self, pool: str) -> Iterator[bytes]:
        yield from csv_blocks(_sorted(self.frames[pool]))

    def check(self) -> None:
        """Raises WbcError naming the row where a cell is in two places, or a group on two sides (training, validation, test). So
        where a label is unknown, missing, or given where none belongs."""
        problems = self.problems()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise WbcError(f"pools: {problems[0][1]}{more}")

    def problems(self) -> list[tuple[str, str]]:
        """Every broken rule as (rule, line that names the row); rules: `sha256`, `label`, `two_pools`, `group_split`."""
        return [*self._row_problems(), *self._repeat_problems(), *self._group_problems()]

    def _row_problems(self) -> Iterator[tuple[str, str]]:
        for name, frame in self.frames.items():
            if list(frame.columns) != COLUMNS:
                raise WbcError(f"pool {name}: its columns are {', '.join(frame.columns)}; expected {', '.join(COLUMNS)}")
            if not are_names(frame["sha256"]):
                named = frame["sha256"].str.fullmatch("[0-9a-f]{64}").to_numpy(bool)
                for path, sha256 in frame.loc[~named, ["path", "sha256"]].to_numpy():
                    yield "sha256", f"{name}: {path} has {sha256!r} where its sha256 belongs"
            known = (frame["label"] == "" if name == "unlabelled" else frame["label"].isin(CLASSES)).to_numpy(bool)
            for path, label in () if known.all() else frame.loc[~known, ["path", "label"]].to_numpy():
                allowed = "no label" if name == "unlabelled" else f"one of {', '.join(CLASSES)}"
                yield "label", f"{name}: {path} has label {label!r}; expected {allowed}"

    def _repeat_problems(self) -> Iterator[tuple[str, str]]:
        if all_differ([frame["sha256"] for frame in self.frames.values()]):
            return
        whole = self.table()
        repeated = whole[whole["sha256"].duplicated(keep=False)]
        for sha256, rows in repeated.groupby("sha256", sort=False):
            places = " and ".join(f"{pool} ({path})" for pool, path in rows[["pool", "path"]].to_numpy())
            yield "two_pools", f"cell {str(sha256)[:16]} is in {places}; a cell belongs into exactly one pool, once"

    def _group_problems(self) -> Iterator[tuple[str, str]]:
        if not self.split_groups():
            return
        whole = self.table()
        grouped = whole[whole["group"] != ""]
        parts = grouped.assign(side=sides(grouped)).drop_duplicates(["group", "side"])
        for group, rows in parts[parts["group"].duplicated(keep=False)].groupby("group", sort=False):
            places = " and ".join(f"{pool} ({path})" for pool, path in rows[["pool", "path"]].to_numpy())
            yield "group_split", f"group {group} is split over {places}; a group stays on one side"

    def split_groups(self) -> set[str]:
        """The groups that are on more than one side (training, validation, test)."""
        return set.union(*(one & other for one, other in itertools.combinations(self._groups().values(), 2))) - {""}

    def groups_spelt_apart(self) -> list[list[str]]:
        """Groups that are one by `group_name`, and lie on several sides under several spellings: earlier versions kept them as
        they came, as `7` and `7.0`."""
        spelt: dict[str, dict[str, set[str]]] = {}
        for side, groups in self._groups().items():
            for group in groups - {""}:
                spelt.setdefault(group_name(group), {}).setdefault(group, set()).add(side)
        apart = (found for found in spelt.values() if len(found) > 1 and len(set.union(*found.values())) > 1)
        return sorted(sorted(found) for found in apart)

    def _groups(self) -> dict[str, set[str]]:
        """The groups of each side; of cells without one the empty name."""
        groups: dict[str, set[str]] = {side: set() for side in SIDES.values()}
        for name, frame in self.frames.items():
            found = frame["group"]
            # only among the unlabelled may a cell belong to another side than its pool, and then its `labelled_by` says so
            if name == "unlabelled" and (apart := frame["labelled_by"] != "").any():
                for side, moved in found[apart].groupby(sides(frame[apart].assign(pool=name))):
                    groups[str(side)].update(moved.unique())
                found = found[~apart]
            groups[SIDES[name]].update(found.unique())
        return groups

    def cells(self, sha256s: Collection[str]) -> pd.DataFrame:
        """The rows of `table` of these cells only."""
        return type(self)({name: frame[among(frame["sha256"], sha256s)] for name, frame in self.frames.items()}).table()

    def table(self) -> pd.DataFrame:
        """All cells in one DataFrame with a first column `pool`."""
        parts = [frame.assign(pool=name) for name, frame in self.frames.items()]
        return pd.concat(parts, ignore_index=True)[["pool", *COLUMNS]]

    def move(self, sha256s: Sequence[str], source: str, target: str, **columns: str | int | None) -> Self:
        """The pools after these cells went from `source` to `target` with these columns set anew.

        Raises WbcError naming a cell that is not in `source`, or when the result would break a rule of `check()`.
        """
        unknown = [name for name in columns if name not in COLUMNS or name in ("sha256",)]
        if unknown or source not in POOLS or target not in POOLS:
            raise WbcError(f"cannot move from {source} to {target} setting {', '.join(columns) or 'nothing'}")
        wanted = set(sha256s)
        frame = self.frames[source]
        missing = wanted - set(frame["sha256"])
        if missing:
            raise WbcError(f"cell {min(missing)} is not in the pool {source} ({len(missing)} of {len(wanted)} are not)")
        going = frame["sha256"].isin(wanted)
        moved = _typed(frame[going].assign(**columns))
        frames = dict(self.frames)
        frames[source] = frame[~going].reset_index(drop=True)
        frames[target] = _sorted(pd.concat([frames[target], moved], ignore_index=True))
        pools = type(self)(frames)
        pools.check()
        return pools

    def label(self, rows: pd.DataFrame, cycle: int) -> Self:
        """The pools after labels came in: `rows` has the columns sha256, label, labelled_by, labelled_at.

        A cell that waited goes to the labelled pool with `cycle`, or to the test pool if it was drawn for that. One that was
        taken out goes back to its side. One that has a label, in whatever pool, stays where it is and gets the new one. Raises
        WbcError on an unknown class, an unknown cell, or two labels for one cell.
        """
        wrong = rows[~rows["label"].isin(CLASSES)]
        if len(wrong):
            raise WbcError(
                f"cell {wrong['sha256'].iloc[0]}: unknown label {wrong['label'].iloc[0]!r}; one of {', '.join(CLASSES)}"
            )
        rows = rows.drop_duplicates(["sha256", "label"])
        twice = rows[rows["sha256"].duplicated()]
        if len(twice):
            raise WbcError(f"cell {twice['sha256'].iloc[0]} comes with two labels, one of them {twice['label'].iloc[0]}")
        new = rows.set_index("sha256")
        missing = set(new.index).difference(self.cells(new.index)["sha256"])
        if missing:
            raise WbcError(f"cell {min(missing)} cannot be labelled: it is in no pool")
        frames = {name: _relabelled(frame, new) for name, frame in self.frames.items()}
        coming = frames["unlabelled"]["sha256"].isin(new.index)
        waited = self.frames["unlabelled"][coming]
        side = sides(waited.assign(pool="unlabelled"))
        labelled = _typed(frames["unlabelled"][coming].assign(cycle=cycle))
        frames["unlabelled"] = frames["unlabelled"][~coming].reset_index(drop=True)
        for name, of in (("labelled", "train"), ("validation", "validation"), ("test", "test")):
            rows = labelled[side == of]
            if len(rows):
                frames[name] = _sorted(pd.concat([frames[name], rows], ignore_index=True))
        return type(self)(frames)

    def take_out(self, rows: pd.DataFrame) -> Self:
        """The pools after people called cells none of the five classes: `rows` has sha256, label (what they are), labelled_at.

        From whatever pool they lie in the unlabelled one then, without a label and marked; a label puts one back to its side.
        Raises WbcError on a cell that no pool has.
        """
        new = rows.drop_duplicates("sha256", keep="last").set_index("sha256")
        whole = self.cells(new.index).set_index("sha256", drop=False)
        missing = new.index.difference(whole.index)
        if len(missing):
            raise WbcError(f"cell {missing[0]} cannot be taken out: it is in no pool")
        mark = sides(whole).map(TAKEN_OUT).reindex(new.index) + new["label"]
        moved = whole.loc[new.index, COLUMNS].assign(label="", cycle=None, labelled_by=mark, labelled_at=new["labelled_at"])
        rest = self.without(set(new.index))
        unlabelled = _sorted(pd.concat([rest.frames["unlabelled"], _typed(moved)], ignore_index=True))
        return type(self)({**rest.frames, "unlabelled": unlabelled})

    def put_back(self, sha256s: set[str]) -> Self:
        """The pools after people took back that cells are none of the five classes: these are unlabelled ones again. One that was
        drawn for the test pool awaits its label there."""
        frame = self.frames["unlabelled"]
        back = frame["sha256"].isin(sha256s) & (taken_out_as(frame) != "")
        drawn = back & (sides(frame.assign(pool="unlabelled")) == "test")
        by = frame["labelled_by"].mask(back, "").mask(drawn, DRAWN)
        marked = frame.assign(labelled_by=by, labelled_at=frame["labelled_at"].mask(back, ""))
        return type(self)({**self.frames, "unlabelled": marked})

    def none_of_five(self) -> pd.DataFrame:
        """The cells that people call none of the five classes: COLUMNS, `answer` (what they call it) and the `side` it came from.
        They lie in the unlabelled pool; nobody asks about them and nothing learns from them."""
        frame = self.frames["unlabelled"]
        frame = frame[frame["labelled_by"].str.startswith(_NONE)]
        found = frame.assign(answer=taken_out_as(frame), side=sides(frame.assign(pool="unlabelled")))
        return found[found["answer"] != ""].reset_index(drop=True)

    def named(self, pool: str) -> pd.DataFrame:
        """The cells of a pool, and those that were taken out of it, with what people call them: sha256, label."""
        out = self.none_of_five()
        out = out.loc[out["side"] == SIDES[pool], ["sha256", "answer"]].rename(columns={"answer": "label"})
        return pd.concat([self.frames[pool][["sha256", "label"]], out], ignore_index=True)

    def out_of_use(self) -> set[str]:
        """The unlabelled cells that nothing may learn from, and that are not asked about: drawn for the test, or none of the
        five."""
        frame = self.frames["unlabelled"]
        return set(frame.loc[(frame["labelled_by"] == DRAWN) | (taken_out_as(frame) != ""), "sha256"])

    def drawn(self) -> pd.DataFrame:
        """The unlabelled cells that were drawn for the test pool and await their label."""
        frame = self.frames["unlabelled"]
        return frame[frame["labelled_by"] == DRAWN].reset_index(drop=True)

    def draw(self, sha256s: set[str]) -> Self:
        """The pools with these unlabelled cells drawn for the test pool. What was taken out of their groups goes to that side.
        Raises WbcError where a group would be split."""
        frame = self.frames["unlabelled"]
        drawn = frame["sha256"].isin(sha256s)
        answer = taken_out_as(frame)
        along = (answer != "") & (frame["group"] != "") & frame["group"].isin(set(frame.loc[drawn, "group"]))
        marked = frame.assign(labelled_by=frame["labelled_by"].mask(drawn, DRAWN).mask(along, TAKEN_OUT["test"] + answer))
        pools = type(self)({**self.frames, "unlabelled": marked})
        pools.check()
        return pools

    def plus(self, rows: Mapping[str, pd.DataFrame]) -> Self:
        """The pools with these rows added, a DataFrame with the columns COLUMNS per pool name. Nothing is checked before they are
        written: a check looks at all rows."""
        frames = dict(self.frames)
        for name, new in rows.items():
            if len(new):
                frames[name] = _sorted(pd.concat([frames[name], _typed(new)], ignore_index=True))
        return type(self)(frames)

    def without(self, sha256s: set[str]) -> Self:
        """The pools without these cells (the quarantined ones)."""
        if not sha256s:
            return self
        return type(self)(
            {name: frame[~among(frame["sha256"], sha256s)].reset_index(drop=True) for name, frame in self.frames.items()}
        )

    def version(self) -> str:
        """Twelve hex digits that name this state: which cell is where with which label, whoever gave it and whenever."""
        named = ["pool", *(name for name in COLUMNS if name != "labelled_at")]
        digest = hashlib.sha256()
        quote_all = any(must_quote_all(frame) for frame in self.frames.values())
        for place, (name, frame) in enumerate(sorted(self.frames.items())):
            for number, rows in enumerate(slices_in_order(frame, ["sha256"])):
                for block in csv_blocks(rows.assign(pool=name)[named], quote_all, header=place == number == 0):
                    digest.update(block)
        return digest.hexdigest()[:12]

    def truth(self, pool: str) -> str:
        """Twelve hex digits that name a pool's cells with their labels: what a score on it rests on, whoever gave them."""
        cells = in_order(self.frames[pool][["sha256", "label"]], ["sha256"])
        return hashlib.sha256(b"".join(csv_blocks(cells))).hexdigest()[:12]

    def counts(self) -> dict[str, int]:
        """Cells per pool."""
        return {name: len(self.frames[name]) for name in POOLS}


def update(directory: Path, change: Callable[[Pools], Pools]) -> Pools:
    """Read, change and write in one step that no other writer can come between; returns what was written."""
    return transaction(directory, lambda pools: (change(pools), {}))


@dataclass(frozen=True)
class Reading:
    """Pools that were read and checked, and the signatures of their files from before: as long as these stay, so do the pools."""

    pools: Pools
    files: tuple[Signature, ...]

    @classmethod
    def of(cls, directory: Path) -> Self:
        """Raises WbcError as `Pools.read`."""
        files = _signatures(directory)
        return cls(Pools.read(directory), files)

    def holds(self, directory: Path) -> bool:
        """Whether nobody has written the pools since."""
        return self.files == _signatures(directory)


def _signatures(directory: Path) -> tuple[Signature, ...]:
    return tuple(signature(directory / f"{name}.csv") for name in POOLS)


def transaction(
    directory: Path, change: Callable[[Pools], tuple[Pools, Mapping[Path, Content]]], reading: Reading | None = None
) -> Pools:
    """As `update`, for a change that also gives the new content of other files, written in the same step. `change` gets
    pools without cells where none were ever written. Files that are as they were at a `reading` are not read again."""
    with pools_lock(directory):
        roll_forward(directory)
        check_present(directory.parent)
        if reading is not None and reading.holds(directory):
            pools = reading.pools
        else:
            pools = Pools._load(directory) if Pools.exist(directory) else Pools.empty()
            pools.check()
        changed, also = change(pools)
        changed._commit(directory, also)
        return changed
