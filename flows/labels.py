"""The label store: an append-only log of who gave which label, when and why. Labels come in and go out by the oracle, CSV files
and Label Studio.

A label and the move of its cell between the pools are written in one step. A person's later label supersedes an earlier one,
which stays in the log. The last row of a cell is the label that counts. What people call none of the five classes has a record of
its own (wbc_model/cells/none_of_five.py); as long as that stands, it counts and not the log.
"""

import csv
import hashlib
import io
import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd

from flows.artifacts import cached
from flows.exchange.answers import Disagreement, Refused
from flows.exchange.export import export_cells
from flows.exchange.given import Vocabulary, read_answers
from flows.exchange.handed_out import hand_out, is_ours, move_aside, was_handed_out
from flows.state import TURNSTILE, at_work
from flows.workspace import label_names
from serving.contract.labelling import UNSURE, answers_of
from serving.contract.site import site_from_environment
from wbc_model.cells.conflicts import CONFLICTS, MACHINES, Conflict, conflicts_csv, open_conflicts, read_conflicts, settled
from wbc_model.cells.journal import Content
from wbc_model.cells.merge import known_cells
from wbc_model.cells.none_of_five import RECORD, grown, read_record, standing
from wbc_model.cells.pools import DRAWN, Pools, check_present, now, sides, transaction
from wbc_model.cells.rejections import quarantined
from wbc_model.cells.tables import read_table, to_csv
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import remove_durably, write_atomic
from wbc_model.core.lock import locked
from wbc_model.core.written import read_sheet, read_written

LOG: Final = "data/labels.csv"
RECORD_FILE: Final = f"data/{RECORD}"
_WAITING: Final = ".wbc/incoming"
COLUMNS: Final = ["sha256", "label", "labelled_by", "labelled_at", "cycle", "why"]
FIRST_COLUMNS: Final = COLUMNS[:5]  # of a log that was begun before labels could be superseded
STAY_ASKED: Final = ("unsure", "skipped", "predicted")  # why a cell of a file that came in has no answer
_BLOCK: Final = 2**20  # bytes
_NOTED: Final = re.compile(r"\A(?!.*^<{7}).*?md5: (?P<md5>[0-9a-f]{32})\n\s+size: (?P<size>\d+)$", re.DOTALL | re.MULTILINE)
QUEUE: Final = ["sha256", "path", "rank", "score", "reason", "predicted", "probability"]


@dataclass(frozen=True)
class Taken:
    """What became of labels.

    `new` counts those that were taken in, `none_of_five` those of them that are no class. `corrected` counts those that supersede
    a different label, `held_out` those of them in the validation or test pool. `known` counts labels that were there, `refused`
    lists the others. `pools` is the version of the pools afterwards. Where the labels wait, `waits_for` names who works on the
    pools. `in_record`: the record of what is none of the five grew.
    """

    new: int
    corrected: int
    held_out: int
    known: int
    refused: list[Refused]
    pools: str
    waits_for: str = ""
    none_of_five: int = 0
    in_record: bool = False


def read_log(workspace: Path) -> pd.DataFrame:
    """The label log as text columns COLUMNS, without a last line that a crash tore."""
    path = workspace / LOG
    text = read_written(path) if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if not whole:
        return pd.DataFrame(columns=COLUMNS, dtype=str)
    frame = pd.read_csv(io.StringIO(whole), dtype=str, keep_default_na=False)
    if list(frame.columns)[: len(FIRST_COLUMNS)] != FIRST_COLUMNS:
        raise WbcError(f"{path}: its columns are {', '.join(frame.columns)}; expected {', '.join(COLUMNS)}")
    return frame.reindex(columns=COLUMNS, fill_value="")


def read_none_of_five(workspace: Path) -> pd.DataFrame:
    """The record of the cells that people call none of the five classes, as text columns COLUMNS."""
    return read_record(workspace / RECORD_FILE)


def kinds() -> tuple[str, ...]:
    """What a cell may be called that is none of the five classes, by the site's file (`labelling.further_kinds`)."""
    return tuple(answer for answer in choices() if answer not in (*CLASSES, UNSURE))


def choices() -> tuple[str, ...]:
    """All that a reader may answer: the classes, what is none of them, and that the reader is unsure."""
    return answers_of(site_from_environment())


def record(workspace: Path, rows: pd.DataFrame, cycle: int) -> int:
    """Take labels (columns sha256, label, labelled_by, labelled_at) in; returns how many were new.

    All or nothing: raises WbcError naming the first row that cannot be a label, before anything is written. The oracle's label
    of a cell that has one by now is passed over.
    """
    return take_in(workspace, rows, cycle, all_or_nothing=True).new


def take_in(workspace: Path, rows: pd.DataFrame, cycle: int, decided: bool = False, all_or_nothing: bool = False) -> Taken:
    """Take answers in: rows with the columns sha256, label (a class, or one of `kinds`), labelled_by, labelled_at (empty: now),
    and perhaps `why` and `place` (in a file). What is none of the five classes takes its cell out of use, in whatever pool.

    As `_take_in`, after what waits. While somebody works on the pools as they are (`flows.state.at_work`) the labels wait, and
    `Taken.waits_for` says for whom: the next round begins with them."""
    with locked(workspace / TURNSTILE):
        busy = at_work(workspace)
        if busy is not None:
            return _put_off(workspace, rows, cycle, decided, all_or_nothing, busy)
        _take_waiting(workspace)
        return _take_in(workspace, rows, cycle, decided, all_or_nothing)


def take_back(workspace: Path, sha256s: Sequence[str], by: str, why: str, cycle: int) -> list[str] | None:
    """Let cells be unlabelled again that people called none of the five classes, since nobody stands by it; the record says so.
    Returns those that were put back; None while somebody works on the pools, where nothing is done.

    A cell with a label in the log, or one that came from the validation pool, is left: only another answer changes it.
    """
    done: list[str] = []

    def change(pools: Pools) -> tuple[Pools, Mapping[Path, str]]:
        out, record = pools.none_of_five(), read_none_of_five(workspace)
        known = set(read_log(workspace)["sha256"]) | set(out.loc[out["side"] == "validation", "sha256"])
        done[:] = sorted((set(sha256s) & set(out["sha256"])) - known)
        if not done:
            return pools, {}
        rows = pd.DataFrame({"sha256": done, "label": "", "labelled_by": by, "labelled_at": now(), "why": why})
        return pools.put_back(set(done)), {workspace / RECORD_FILE: grown(record, rows, cycle)}

    with locked(workspace / TURNSTILE):
        if at_work(workspace) is not None:
            return None
        transaction(workspace / "data/pools", change)
    return done


def take_waiting(workspace: Path) -> int:
    """Take in what came while somebody worked on the pools; returns how many labels were new. Nothing while somebody does."""
    with locked(workspace / TURNSTILE):
        return 0 if at_work(workspace) else _take_waiting(workspace)


def waiting(workspace: Path) -> int:
    """How many labels wait for whoever works on the pools."""
    return sum(len(json.loads(path.read_text())["rows"]) for path in sorted((workspace / _WAITING).glob("*.json")))


def _take_waiting(workspace: Path) -> int:
    new = 0
    for path in sorted((workspace / _WAITING).glob("*.json")):
        put_off = json.loads(path.read_text())
        rows = pd.DataFrame(put_off["rows"], dtype=str)
        new += _take_in(workspace, rows, put_off["cycle"], put_off["decided"], all_or_nothing=False).new
        remove_durably(path)  # a decision that came back could undo a later one
    return new


def _put_off(workspace: Path, rows: pd.DataFrame, cycle: int, decided: bool, all_or_nothing: bool, busy: str) -> Taken:
    sorting = _Sorting(workspace, Pools.read(workspace / "data/pools"), decided)
    new = sorting.sort(_complete(rows))
    sorting.check(all_or_nothing)
    if len(new):
        kept = {"cycle": cycle, "decided": decided, "rows": new.to_dict("records")}
        write_atomic(workspace / _WAITING / f"{time.time_ns():020}.json", json.dumps(kept, indent=1) + "\n")
    return sorting.taken(new, sorting.pools, busy)


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.reindex(columns=[*COLUMNS[:4], "why", "place"], fill_value="").fillna("").astype(str)


def _take_in(workspace: Path, rows: pd.DataFrame, cycle: int, decided: bool, all_or_nothing: bool) -> Taken:
    """Take answers in, the log, the record of what is none of the five, and the pools in one step.

    A row that cannot be taken in is refused by itself. With `decided` they are a person's last word: neither their time nor what
    was said before matters, and conflicts about these cells are settled. Raises WbcError where the log has labels that the
    pools do not know: nothing is replayed unasked. With `all_or_nothing` the first row that is refused raises it, too.
    """
    rows = _complete(rows)
    taken: list[Taken] = []

    def change(pools: Pools) -> tuple[Pools, Mapping[Path, Content]]:
        sorting = _Sorting(workspace, pools, decided)
        new = sorting.sort(rows)
        sorting.check(all_or_nothing)
        after = _moved(pools, new, cycle)
        taken.append(sorting.taken(new, after))
        return after, sorting.files(new, cycle) | _settled(workspace, set(new["sha256"]) if decided else set())

    transaction(workspace / "data/pools", change)
    return taken[-1]


def _moved(pools: Pools, rows: pd.DataFrame, cycle: int) -> Pools:
    """The pools after these answers: a class is a label, anything else takes its cell out of use."""
    labels, others = rows[rows["label"].isin(CLASSES)], rows[~rows["label"].isin(CLASSES)]
    pools = pools.label(labels, cycle) if len(labels) else pools
    return pools.take_out(others) if len(others) else pools


@dataclass
class _Sorting:
    """Which rows become labels: what is known of each cell now, and what was said of it before. Raises WbcError where the log or
    the record has answers that the pools do not know."""

    workspace: Path
    pools: Pools
    decided: bool
    corrected: int = 0
    held_out: int = 0
    known: int = 0
    refused: list[Refused] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log, self.record = read_log(self.workspace), read_none_of_five(self.workspace)
        _refuse_behind(self.workspace, self.pools, self.log, self.record)
        self.out_of_use = quarantined(self.workspace / "data")
        self.no_class = set(self.pools.none_of_five()["sha256"])

    def sort(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows that are new labels, one per cell, with their time."""
        self.answers = (*CLASSES, *kinds()) if not rows["label"].isin(CLASSES).all() else CLASSES
        self.present = self._present(rows["sha256"])
        said = pd.concat([self.log, self.record])
        said = said[said["sha256"].isin(rows["sha256"])]
        self.said = set(map(tuple, said[COLUMNS[:3]].to_numpy()))
        self.said_then = set(map(tuple, said[COLUMNS[:4]].to_numpy()))
        torn = rows.groupby("sha256")["label"].nunique()
        kept = []
        for row in rows.drop_duplicates(COLUMNS[:2], keep="last").to_dict("records"):
            reason = self._why_not(row, bool(torn[row["sha256"]] > 1))
            if reason is None:
                kept.append({**row, "labelled_at": row["labelled_at"] or now()})
            elif reason:
                self.refused.append(Refused(row["place"], row["sha256"], reason))
        return pd.DataFrame(kept, columns=[*COLUMNS[:4], "why"], dtype=str)

    def _present(self, sha256s: "pd.Series[str]") -> dict[str, dict[Any, str]]:
        """What is known of these cells: its `side` and its label, be it none of the five, by whom and of when."""
        table = self.pools.cells(sha256s)
        table = table.assign(side=sides(table)).set_index("sha256")[["side", "label", "labelled_by", "labelled_at"]]
        called = standing(self.record).set_index("sha256")
        called = called.loc[called.index.isin(table.index), ["label", "labelled_by", "labelled_at"]]
        table.loc[called.index, list(called.columns)] = called
        return {str(sha256): dict(row) for sha256, row in table.to_dict("index").items()}

    def files(self, new: pd.DataFrame, cycle: int) -> dict[Path, str]:
        """The log and the record after these answers, those of them that grow. A class takes back what the record says."""
        labels, others = new[new["label"].isin(CLASSES)], new[self._of_the_record(new)]
        found: dict[Path, str] = {}
        if len(labels):
            found[self.workspace / LOG] = to_csv(pd.concat([self.log, labels.assign(cycle=str(cycle))[COLUMNS]]))
        if len(others):
            found[self.workspace / RECORD_FILE] = grown(self.record, others, cycle)
        return found

    def _of_the_record(self, new: pd.DataFrame) -> "pd.Series[bool]":
        return ~new["label"].isin(CLASSES) | new["sha256"].isin(self.no_class)

    def check(self, all_or_nothing: bool) -> None:
        """Raises WbcError for the first row that was refused, where one spoils all."""
        if self.refused and all_or_nothing:
            raise WbcError(f"cell {self.refused[0].sha256}: {self.refused[0].reason}")

    def taken(self, new: pd.DataFrame, pools: Pools, waits_for: str = "") -> Taken:
        """What became of the rows, `new` of them labels of these pools."""
        return Taken(
            new=len(new),
            corrected=self.corrected,
            held_out=self.held_out,
            known=self.known,
            refused=self.refused,
            pools=pools.version(),
            waits_for=waits_for,
            none_of_five=int((~new["label"].isin(CLASSES)).sum()),
            in_record=bool(self._of_the_record(new).any()),
        )

    def _why_not(self, row: dict[Any, str], torn: bool) -> str | None:
        """None for a new label, the reason for a refused one, an empty text for one that changes nothing."""
        sha256, label = row["sha256"], row["label"]
        if label not in self.answers:
            return Vocabulary(kinds()).why_unknown(label)
        if sha256 not in self.present:
            return "no pool of this workspace has this cell"
        if torn:
            return "two labels are given for this cell; agree on one first"
        cell = self.present[sha256]
        if cell["label"] and (row["labelled_by"] == "oracle" or (label == cell["label"] and not self.decided)):
            self.known += 1
            return ""
        if sha256 in self.out_of_use and not self.decided and row["labelled_by"] != "oracle":
            decide = f"`wbc labels decide {sha256[:12]} {shlex.quote(label)}` notes it all the same"
            return f"the data checks took this cell out of use (data/quarantine.csv says why); {decide}, for when it is in use"
        if not cell["label"]:
            return None
        if not self.decided and (superseded := self._superseded(row, cell)):
            return superseded
        self.corrected += label != cell["label"]
        self.held_out += cell["side"] != "train"
        return None

    def _superseded(self, row: dict[Any, str], cell: dict[Any, str]) -> str:
        """Why a label that differs does not follow the present one: it was said before it. Empty where it does."""
        decide = f"`wbc labels decide {row['sha256'][:12]} {shlex.quote(row['label'])}` makes it count"
        present = f"{cell['label']} by {cell['labelled_by']} of {cell['labelled_at']}"
        then = tuple(row[name] for name in COLUMNS[:4])
        if then in self.said_then or (not row["labelled_at"] and then[:3] in self.said):
            return f"{row['label']} was said before by {row['labelled_by']} and is superseded: {present}; {decide}"
        if row["labelled_at"] and cell["labelled_by"] not in MACHINES and row["labelled_at"] < cell["labelled_at"]:
            return f"{row['label']} of {row['labelled_at']} is older than {present}; {decide}"
        return ""


def _settled(workspace: Path, sha256s: set[str]) -> dict[Path, str]:
    path = workspace / "data" / CONFLICTS
    conflicts = read_conflicts(path)
    return {path: conflicts_csv(settled(conflicts, sha256s, now()))} if conflicts and sha256s else {}


def _behind(pools: Pools, log: pd.DataFrame, record: pd.DataFrame) -> pd.DataFrame:
    """The answers that count and that the pools do not know: what is none of the five by the record, else the last row of the log
    with the `cycle` of the cell's first row. The oracle's word never supersedes the label of a cell that has one."""
    last = log.drop_duplicates("sha256", keep="last").set_index("sha256")
    last["cycle"] = log.drop_duplicates("sha256").set_index("sha256")["cycle"]
    called = standing(record).set_index("sha256")
    last = pd.concat([last[~last.index.isin(called.index)], called])
    labels = pools.cells(last.index).set_index("sha256")["label"]
    labels.update(pools.none_of_five().set_index("sha256")["answer"])
    last = last[last.index.isin(labels.index)]
    present = labels.reindex(last.index)
    return last[(last["label"] != present) & ~((last["labelled_by"] == "oracle") & (present != ""))].reset_index()


def check_known(workspace: Path) -> None:
    """Raises WbcError where git's note of a log names answers that the log here does not have, as after a `git pull` without its
    data. The next version of the pools would drop them in silence."""
    for name in (LOG, RECORD_FILE):
        note, path = workspace / f"{name}.dvc", workspace / name
        noted = _NOTED.search(note.read_text(encoding="utf-8")) if note.exists() else None
        if noted is None:
            continue
        if not path.exists():
            check_present(workspace / "data")  # raises
        if _begins_with(path, int(noted["size"]), noted["md5"]):  # as it was noted, and perhaps grown since
            continue
        here, before = path.read_bytes(), cached(workspace, noted["md5"])
        known = _answers(before.read_bytes()) if before.is_file() else None
        if known is not None and known <= _answers(here):
            continue
        own = known is None or not _answers(here) <= known
        force = "" if cached(workspace, _md5(here)).is_file() else " --force"  # DVC takes no answer away unasked
        raise WbcError(_unknown(workspace, name, "dvc pull" if known is None else "dvc checkout", force, own))


def _begins_with(path: Path, size: int, md5: str) -> bool:
    """Whether the first `size` bytes of a file have this MD5; a log of a million answers is not held for it."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, _BLOCK))):
            digest.update(block)
            size -= len(block)
    return size == 0 and digest.hexdigest() == md5


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _answers(log: bytes) -> set[tuple[str, ...]]:
    return {tuple(row[:4]) for row in csv.reader(io.StringIO(log.decode("utf-8")))}


def _unknown(workspace: Path, name: str, how: str, force: str, own: bool) -> str:
    """What `check_known` says. `how` is the command that brings the data; `own`: the log may have answers that are not there."""
    brings = f"{how}{force} {' '.join(f'data/{one.name}' for one in sorted((workspace / 'data').glob('?*.dvc')))}"
    said = f"{workspace / name} lacks answers that {name}.dvc names, as after a `git pull` without its data"
    if not own:
        return f"{said}: `{brings}` brings them"
    mine = Path(name).with_stem(f"{Path(name).stem}-mine").name
    keep = f"cp {name} {mine}" if name == LOG else f"sed 1s/answer/label/ {name} > {mine}"  # an import takes a column `label`
    return f"{said}: `{keep}` keeps what is here, `{brings}` brings the others, and `wbc labels import {mine}` adds yours to them"


def _refuse_behind(workspace: Path, pools: Pools, log: pd.DataFrame, record: pd.DataFrame) -> None:
    check_known(workspace)
    behind = _behind(pools, log, record)
    if len(behind):
        where = LOG if behind["label"].isin(CLASSES).any() else RECORD_FILE
        raise WbcError(
            f"{workspace / where} has {counted(len(behind), 'label')} that the pools do not, as after a checkout of an older "
            "version: `dvc checkout` brings both to one version, or `wbc labels replay` takes these labels in"
        )


def check_replayed(workspace: Path) -> None:
    """Raises WbcError, with the ways on, where the log has labels that the pools do not know."""
    _refuse_behind(workspace, Pools.read(workspace / "data/pools"), read_log(workspace), read_none_of_five(workspace))


def replay(workspace: Path) -> int:
    """Bring the pools up to the label log, because a person asked for it; returns how many labels they did not know. A cell that
    no pool has is passed over."""
    done = 0

    def change(pools: Pools) -> tuple[Pools, Mapping[Path, Content]]:
        nonlocal done
        behind = _behind(pools, read_log(workspace), read_none_of_five(workspace))
        done = len(behind)
        for cycle, rows in behind.groupby(behind["cycle"].astype(int), sort=True):
            pools = _moved(pools, rows[COLUMNS[:4]], int(str(cycle)))
        return pools, {}

    transaction(workspace / "data/pools", change)
    return done


# --- a person decides ----------------------------------------------------------------------------------------------------


def decide(workspace: Path, cell: str, label: str, by: str, why: str, cycle: int) -> dict[str, Any]:
    """Give a cell of any pool a label, or one of `kinds`, that supersedes whatever was said of it. `cell` is its path in the
    pools, or the beginning of its sha256. Raises WbcError."""
    known = _vocabulary(workspace).known(label)
    if known == UNSURE:
        raise WbcError(f"{UNSURE} is no decision: name a class, or what else the cell is ({', '.join(kinds())})")
    return _decided(workspace, [(_find(workspace, cell), known)], by, why, cycle)


def decide_all(
    workspace: Path, whose: Literal["pools", "manifest"], source: str | None, by: str, why: str, cycle: int
) -> dict[str, Any]:
    """Settle the conflicts (of the manifest `source` only, where it is given) by the label that the pools have, or by that of the
    manifest; raises WbcError where there is none."""
    waiting = [one for one in conflicts(workspace) if source in (None, one.source)]
    if not waiting:
        raise WbcError(f"no conflict waits for a decision{f' from {source}' if source else ''}")
    return _decided(workspace, [(one.sha256, one.label if whose == "pools" else one.other) for one in waiting], by, why, cycle)


def conflicts(workspace: Path) -> list[Conflict]:
    """The rows of manifests that disagree with the pools and wait for a decision, with what is known of their cells by now. A row
    whose label a person has given since disagrees no longer, nor does one of a cell that no pool has any more."""
    waiting = open_conflicts(workspace / "data" / CONFLICTS)
    if not waiting:
        return []
    present = known_cells(Pools.read(workspace / "data/pools"), {one.sha256 for one in waiting}, workspace / "data")
    now_known = [(one, present[one.sha256]) for one in waiting if one.sha256 in present]
    return [
        replace(one, path=cell.path, pool=cell.pool, label=cell.label, labelled_by=cell.labelled_by)
        for one, cell in now_known
        if cell.label != one.other
    ]


def _decided(workspace: Path, labels: list[tuple[str, str]], by: str, why: str, cycle: int) -> dict[str, Any]:
    if not by.strip() or by in MACHINES or not why.strip():
        raise WbcError("a decision needs the name of the person who makes it (--by) and the reason (--why)")
    rows = pd.DataFrame(labels, columns=["sha256", "label"], dtype=str).assign(labelled_by=by, labelled_at="", why=why)
    torn = rows[rows.groupby("sha256")["label"].transform("nunique") > 1]
    if len(torn):
        raise WbcError(f"cell {torn['sha256'].iloc[0]} has conflicts with more than one label: decide on it by itself first")
    taken = take_in(workspace, rows, cycle, decided=True, all_or_nothing=True)
    return {**_told(taken), "conflicts": len(conflicts(workspace))}


def _told(taken: Taken) -> dict[str, Any]:
    """For `--json`, with the files that were written."""
    files = [LOG] * (taken.new > taken.none_of_five) + [RECORD_FILE] * taken.in_record + ["data/pools"]
    wrote = ([_WAITING] if taken.waits_for else files) if taken.new else []
    return {**vars(taken), "refused": [_refusal(one) for one in taken.refused], "wrote": wrote}


def _refusal(refused: Refused) -> dict[str, str]:
    return {"place": refused.place, "sha256": refused.sha256, "reason": refused.reason}


def _find(workspace: Path, cell: str) -> str:
    table = Pools.read(workspace / "data/pools").table()
    found = table.loc[(table["path"] == cell) | (table["sha256"].str.startswith(cell.casefold()) & (len(cell) >= 6)), "sha256"]
    if len(found) != 1:
        many = f"{len(found)} cells" if len(found) else "no cell of the pools"
        raise WbcError(f"{cell} names {many}: give a path as the pools have it, or at least 6 digits of the sha256")
    return str(found.iloc[0])


# --- the queue -------------------------------------------------------------------------------------------------------------


def read_queue(workspace: Path) -> pd.DataFrame:
    """The cells that the last query asked about, columns QUEUE as text; raises WbcError where there was none."""
    path = workspace / "data/queue.csv"
    if not path.exists():
        raise WbcError(f"{path} is missing: nothing was asked yet (`wbc query` or `wbc retrain` asks)")
    sheet = read_sheet(path, QUEUE)
    if not set(QUEUE) <= set(sheet.header):  # people add columns to it
        raise WbcError(f"{path}: its columns are {', '.join(sheet.header)}; expected {', '.join(QUEUE)}")
    places = [sheet.header.index(name) for name in QUEUE]
    rows = [[row[place] if place < len(row) else "" for place in places] for _, row in sheet.rows]
    return pd.DataFrame(rows, columns=QUEUE, dtype=str)


def write_queue(workspace: Path, queue: pd.DataFrame) -> Path | None:
    """Write the queue; one that somebody has filled in is kept under another name, which is returned."""
    path, text = workspace / "data/queue.csv", queue.to_csv(index=False)
    moved = keep_edited_queue(workspace)
    if path.exists() and not is_ours(path, workspace):
        path.unlink()  # of a version that did not remember what it wrote
    hand_out([(path, text)], workspace)
    return moved


def keep_edited_queue(workspace: Path) -> Path | None:
    """Give a queue that somebody has filled in another name, before the next takes its place."""
    path, lock = workspace / "data/queue.csv", workspace / "dvc.lock"
    if is_ours(path, workspace) or (not was_handed_out(path, workspace) and read_sheet(path, QUEUE).header == QUEUE):
        return None
    digest = _md5(path.read_bytes())
    if lock.exists() and digest in lock.read_text(encoding="utf-8"):
        return None  # DVC brought it back
    return move_aside(path)


def awaited(workspace: Path) -> pd.DataFrame:
    """The cells of the queue that still have no label, and are not known as none of the five classes."""
    queue, pools = read_queue(workspace), Pools.read(workspace / "data/pools")
    waiting = set(pools.frames["unlabelled"]["sha256"]) - set(pools.none_of_five()["sha256"])
    return queue[queue["sha256"].isin(waiting)].reset_index(drop=True)


def oracle_answers(workspace: Path, queue: pd.DataFrame) -> pd.DataFrame:
    """What the oracle says of the queue's cells, as rows for `record`; cells it does not know are left out."""
    path = workspace / "data/oracle.csv"
    known = dict(read_table(path, ["sha256", "label"]).to_numpy()) if path.exists() else {}
    asked = queue[queue["sha256"].isin(set(known))]
    rows = pd.DataFrame({"sha256": asked["sha256"], "label": asked["sha256"].map(known)})
    return rows.assign(labelled_by="oracle", labelled_at=now()).reset_index(drop=True)


# --- out ---------------------------------------------------------------------------------------------------------------


def export_queue(workspace: Path, out: Path, images: Path | None = None, with_predictions: bool = False) -> int:
    """Write the cells of the queue that await a label, as `flows.exchange.export`; returns their number."""
    return export_cells(workspace, awaited(workspace), out, choices(), images, with_predictions)


# --- in ----------------------------------------------------------------------------------------------------------------


def import_labels(workspace: Path, file: Path, cycle: int, annotator: str = "") -> dict[str, Any]:
    """Take in answers that people gave: a CSV with sha256 and label, or an export of Label Studio.

    Rows without an answer are passed over, and counted where somebody was `unsure` or `skipped` the cell. `annotator` names who
    gave those that do not say. A row or task that cannot be taken in is `refused` with the reason, the others are taken in.
    Raises WbcError where the file as a whole cannot be read.
    """
    given = read_answers(file, _vocabulary(workspace))
    rows = [[one.sha256, one.label, one.by or annotator or "people", one.at, one.why, one.place] for one in given.answers]
    frame = pd.DataFrame(rows, columns=[*COLUMNS[:4], "why", "place"], dtype=str)
    taken = _told(take_in(workspace, frame, cycle))
    waiting = len(awaited(workspace)) if (workspace / "data/queue.csv").exists() else 0
    settled = _settled_since(workspace, given.refused)
    refusals = [*(_refusal(one) for one in given.refused if one not in settled), *taken["refused"]]
    counts = {name: getattr(given, name) for name in STAY_ASKED} | {"known": taken["known"] + len(settled)}
    return {"labels": len(frame) + len(settled), **taken, **counts, "refused": refusals, "cycle": cycle, "awaited": waiting}


def _settled_since(workspace: Path, refused: list[Refused]) -> list[Refused]:
    """The disagreements on which a person has decided since: a project of Label Studio has all that was ever said in it."""
    torn = [one for one in refused if isinstance(one, Disagreement) and one.at]
    if not torn:
        return []
    table = Pools.read(workspace / "data/pools").cells([one.sha256 for one in torn])
    cells = table.set_index("sha256")[["labelled_by", "labelled_at"]].to_dict("index")
    now_said = {sha256: row["labelled_at"] for sha256, row in cells.items() if row["labelled_by"] not in {*MACHINES, DRAWN}}
    return [one for one in torn if now_said.get(one.sha256, "") >= one.at]


def _vocabulary(workspace: Path) -> Vocabulary:
    return Vocabulary(kinds(), UNSURE, label_names(workspace))


def status(workspace: Path) -> dict[str, Any]:
    """How many labels there are, who gave them, and how many are awaited."""
    pools = Pools.read(workspace / "data/pools")
    labelled = pools.frames["labelled"]
    by: dict[str, int] = {str(name): int(count) for name, count in labelled["labelled_by"].value_counts().sort_index().items()}
    classes = {name: int((labelled["label"] == name).sum()) for name in CLASSES}
    waiting = len(awaited(workspace)) if (workspace / "data/queue.csv").exists() else 0
    log, called = read_log(workspace), pools.none_of_five()["answer"].value_counts().sort_index()
    return {
        **pools.counts(),
        "none_of_five": {str(name): int(count) for name, count in called.items()},
        "labelled_by": by,
        "classes": classes,
        "in_log": len(log),
        "superseded": int(log["sha256"].duplicated().sum()),
        "conflicts": len(conflicts(workspace)),
        "awaited": waiting,
    }
