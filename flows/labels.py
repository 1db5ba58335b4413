"""The label store: an append-only log of who gave which label, when and why. Labels come in and go out by the oracle, CSV files
and Label Studio.

A label and the move of its cell between the pools are written in one step. A person's later label supersedes an earlier one,
which stays in the log. The last row of a cell is the label that counts.
"""

import base64
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd

from flows.answers import CONTROL, Refused, read_answers
from flows.state import TURNSTILE, at_work
from flows.workspace import label_names
from wbc_model.cells.conflicts import CONFLICTS, MACHINES, Conflict, conflicts_csv, open_conflicts, read_conflicts, settled
from wbc_model.cells.handed_out import hand_out, hand_out_bytes, is_ours, move_aside, was_handed_out
from wbc_model.cells.manifest import known_label, unknown_label
from wbc_model.cells.pools import Pools, now, read_table, to_csv, transaction
from wbc_model.cells.store import ImageStore
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic
from wbc_model.core.lock import locked
from wbc_model.core.written import read_sheet, read_written

LOG: Final = "data/labels.csv"
_WAITING: Final = ".wbc/incoming"
COLUMNS: Final = ["sha256", "label", "labelled_by", "labelled_at", "cycle", "why"]
FIRST_COLUMNS: Final = COLUMNS[:5]  # of a log that was begun before labels could be superseded
QUEUE: Final = ["sha256", "path", "rank", "score", "reason", "predicted", "probability"]
LABEL_STUDIO_CONFIG: Final = """\
<View>
  <Image name="image" value="$image"/>
  <Choices name="{control}" toName="image" choice="single" showInline="true">
{choices}
  </Choices>
</View>
"""


@dataclass(frozen=True)
class Taken:
    """What became of labels.

    `new` counts those that were taken in. `corrected` counts those of them that supersede a different label. `held_out` counts
    the corrected ones in the validation or test pool. `known` counts labels that were there, `refused` lists the others. `pools`
    is the version of the pools afterwards. Where the labels wait, `waits_for` names who works on the pools.
    """

    new: int
    corrected: int
    held_out: int
    known: int
    refused: list[Refused]
    pools: str
    waits_for: str = ""


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


def record(workspace: Path, rows: pd.DataFrame, cycle: int) -> int:
    """Take labels (columns sha256, label, labelled_by, labelled_at) in; returns how many were new.

    All or nothing: raises WbcError naming the first row that cannot be a label, before anything is written. The oracle's label
    of a cell that has one by now is passed over.
    """
    return take_in(workspace, rows, cycle, all_or_nothing=True).new


def take_in(workspace: Path, rows: pd.DataFrame, cycle: int, decided: bool = False, all_or_nothing: bool = False) -> Taken:
    """As `_take_in`, after what waits. While somebody works on the pools as they are (`flows.state.at_work`) the labels wait, and
    `Taken.waits_for` says for whom: the next round begins with them."""
    with locked(workspace / TURNSTILE):
        busy = at_work(workspace)
        if busy is not None:
            return _put_off(workspace, rows, cycle, decided, all_or_nothing, busy)
        _take_waiting(workspace)
        return _take_in(workspace, rows, cycle, decided, all_or_nothing)


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
        path.unlink()
    return new


def _put_off(workspace: Path, rows: pd.DataFrame, cycle: int, decided: bool, all_or_nothing: bool, busy: str) -> Taken:
    pools, log = Pools.read(workspace / "data/pools"), read_log(workspace)
    _refuse_behind(workspace, pools, log)
    sorting = _Sorting(pools, log, decided)
    new = sorting.sort(_complete(rows))
    sorting.check(all_or_nothing)
    if len(new):
        kept = {"cycle": cycle, "decided": decided, "rows": new.to_dict("records")}
        write_atomic(workspace / _WAITING / f"{time.time_ns():020}.json", json.dumps(kept, indent=1) + "\n")
    return sorting.taken(len(new), pools, busy)


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.reindex(columns=[*COLUMNS[:4], "why", "place"], fill_value="").fillna("").astype(str)


def _take_in(workspace: Path, rows: pd.DataFrame, cycle: int, decided: bool, all_or_nothing: bool) -> Taken:
    """Take labels in, log and pools in one step: columns sha256, label, labelled_by, labelled_at (empty: now), and perhaps `why`
    and `place` (in a file).

    A row that cannot be taken in is refused by itself. With `decided` they are a person's last word: neither their time nor what
    was said before matters, and conflicts about these cells are settled. Raises WbcError where the log has labels that the
    pools do not know: nothing is replayed unasked. With `all_or_nothing` the first row that is refused raises it, too.
    """
    rows = _complete(rows)
    taken: list[Taken] = []

    def change(pools: Pools) -> tuple[Pools, Mapping[Path, str]]:
        log = read_log(workspace)
        _refuse_behind(workspace, pools, log)
        sorting = _Sorting(pools, log, decided)
        new = sorting.sort(rows)
        sorting.check(all_or_nothing)
        after = pools.label(new, cycle) if len(new) else pools
        taken.append(sorting.taken(len(new), after))
        also = {workspace / LOG: to_csv(pd.concat([log, new.assign(cycle=str(cycle))[COLUMNS]]))} if len(new) else {}
        return after, also | _settled(workspace, set(new["sha256"]) if decided else set())

    transaction(workspace / "data/pools", change)
    return taken[-1]


@dataclass
class _Sorting:
    """Which rows become labels: what is known of each cell now, and what was said of it before."""

    pools: Pools
    log: pd.DataFrame
    decided: bool
    corrected: int = 0
    held_out: int = 0
    known: int = 0
    refused: list[Refused] = field(default_factory=list)

    def sort(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows that are new labels, one per cell, with their time."""
        self.present = self.pools.table().set_index("sha256")[["pool", "label", "labelled_by", "labelled_at"]].to_dict("index")
        self.said = set(map(tuple, self.log[COLUMNS[:3]].to_numpy()))
        self.said_then = set(map(tuple, self.log[COLUMNS[:4]].to_numpy()))
        torn = rows.groupby("sha256")["label"].nunique()
        kept = []
        for row in rows.drop_duplicates(COLUMNS[:2], keep="last").to_dict("records"):
            reason = self._why_not(row, bool(torn[row["sha256"]] > 1))
            if reason is None:
                kept.append({**row, "labelled_at": row["labelled_at"] or now()})
            elif reason:
                self.refused.append(Refused(row["place"], row["sha256"], reason))
        return pd.DataFrame(kept, columns=[*COLUMNS[:4], "why"], dtype=str)

    def check(self, all_or_nothing: bool) -> None:
        """Raises WbcError for the first row that was refused, where one spoils all."""
        if self.refused and all_or_nothing:
            raise WbcError(f"cell {self.refused[0].sha256}: {self.refused[0].reason}")

    def taken(self, new: int, pools: Pools, waits_for: str = "") -> Taken:
        """What became of the rows, `new` of them labels of these pools."""
        return Taken(new, self.corrected, self.held_out, self.known, self.refused, pools.version(), waits_for)

    def _why_not(self, row: dict[Any, str], torn: bool) -> str | None:
        """None for a new label, the reason for a refused one, an empty text for one that changes nothing."""
        sha256, label = row["sha256"], row["label"]
        if label not in CLASSES:
            return unknown_label(label)
        if sha256 not in self.present:
            return "no pool of this workspace has this cell"
        if torn:
            return "two labels are given for this cell; agree on one first"
        cell = self.present[sha256]
        if not cell["label"]:
            return None
        if row["labelled_by"] == "oracle" or (label == cell["label"] and not self.decided):
            self.known += 1
            return ""
        if not self.decided and (superseded := self._superseded(row, cell)):
            return superseded
        self.corrected += label != cell["label"]
        self.held_out += cell["pool"] in ("validation", "test")
        return None

    def _superseded(self, row: dict[Any, str], cell: dict[Any, str]) -> str:
        """Why a label that differs does not follow the present one: it was said before it. Empty where it does."""
        decide = f"`wbc labels decide {row['sha256'][:12]} {row['label']}` makes it count"
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


def _behind(pools: Pools, log: pd.DataFrame) -> pd.DataFrame:
    """The last rows of the log's cells that the pools do not know, `cycle` that of the cell's first row."""
    last = log.drop_duplicates("sha256", keep="last").set_index("sha256")
    last["cycle"] = log.drop_duplicates("sha256").set_index("sha256")["cycle"]
    labels = pools.table().set_index("sha256")["label"]
    last = last[last.index.isin(labels.index)]
    return last[last["label"] != labels.reindex(last.index)].reset_index()


def _refuse_behind(workspace: Path, pools: Pools, log: pd.DataFrame) -> None:
    behind = _behind(pools, log)
    if len(behind):
        raise WbcError(
            f"{workspace / LOG} has {len(behind)} labels that the pools do not, as after a checkout of an older version: "
            "`dvc checkout` brings both to one version, or `wbc labels replay` takes these labels in"
        )


def check_replayed(workspace: Path) -> None:
    """Raises WbcError, with the ways on, where the log has labels that the pools do not know."""
    _refuse_behind(workspace, Pools.read(workspace / "data/pools"), read_log(workspace))


def replay(workspace: Path) -> int:
    """Bring the pools up to the label log, because a person asked for it; returns how many labels they did not know. A cell that
    no pool has is passed over."""
    done = 0

    def change(pools: Pools) -> tuple[Pools, Mapping[Path, str]]:
        nonlocal done
        behind = _behind(pools, read_log(workspace))
        done = len(behind)
        for cycle, rows in behind.groupby(behind["cycle"].astype(int), sort=True):
            pools = pools.label(rows[COLUMNS[:4]], int(str(cycle)))
        return pools, {}

    transaction(workspace / "data/pools", change)
    return done


# --- a person decides ----------------------------------------------------------------------------------------------------


def decide(workspace: Path, cell: str, label: str, by: str, why: str, cycle: int) -> dict[str, Any]:
    """Give a cell of any pool a label that supersedes whatever was said of it. `cell` is its path in the pools, or the beginning
    of its sha256. Raises WbcError."""
    known = known_label(label, label_names(workspace))
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
    """The rows of manifests that disagree with the pools and wait for a decision."""
    return open_conflicts(workspace / "data" / CONFLICTS)


def _decided(workspace: Path, labels: list[tuple[str, str]], by: str, why: str, cycle: int) -> dict[str, Any]:
    if not by.strip() or by in MACHINES or not why.strip():
        raise WbcError("a decision needs the name of the person who makes it (--by) and the reason (--why)")
    rows = pd.DataFrame(labels, columns=["sha256", "label"], dtype=str).assign(labelled_by=by, labelled_at="", why=why)
    torn = rows[rows.groupby("sha256")["label"].transform("nunique") > 1]
    if len(torn):
        raise WbcError(f"cell {torn['sha256'].iloc[0]} has conflicts with more than one label: decide on it by itself first")
    taken = take_in(workspace, rows, cycle, decided=True, all_or_nothing=True)
    wrote = [_WAITING] if taken.waits_for else [LOG, "data/pools"]
    return {**_told(taken), "conflicts": len(conflicts(workspace)), "wrote": wrote}


def _told(taken: Taken) -> dict[str, Any]:
    return {**vars(taken), "refused": [vars(one) for one in taken.refused]}


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
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if lock.exists() and digest in lock.read_text(encoding="utf-8"):
        return None  # DVC brought it back
    return move_aside(path)


def awaited(workspace: Path) -> pd.DataFrame:
    """The cells of the queue that still have no label."""
    queue = read_queue(workspace)
    waiting = set(Pools.read(workspace / "data/pools").frames["unlabelled"]["sha256"])
    return queue[queue["sha256"].isin(waiting)].reset_index(drop=True)


def oracle_answers(workspace: Path, queue: pd.DataFrame) -> pd.DataFrame:
    """What the oracle says of the queue's cells, as rows for `record`; cells it does not know are left out."""
    path = workspace / "data/oracle.csv"
    known = dict(read_table(path, ["sha256", "label"]).to_numpy()) if path.exists() else {}
    asked = queue[queue["sha256"].isin(set(known))]
    rows = pd.DataFrame({"sha256": asked["sha256"], "label": asked["sha256"].map(known)})
    return rows.assign(labelled_by="oracle", labelled_at=now()).reset_index(drop=True)


# --- out ---------------------------------------------------------------------------------------------------------------


def export_queue(workspace: Path, out: Path, images: Path | None = None) -> int:
    """Write the cells of the queue that await a label, as `export_cells`; returns their number."""
    return export_cells(workspace, awaited(workspace), out, images)


def export_cells(workspace: Path, cells: pd.DataFrame, out: Path, images: Path | None = None) -> int:
    """Write cells (columns QUEUE): `.csv` for a spreadsheet, `.json` as Label Studio tasks with the images in them.

    With `images` the image files are written into that folder too, named by rank. Returns the number of cells. Raises WbcError
    naming a file there that is not what was written: somebody may have filled it in.
    """
    kind = out.suffix.casefold()
    if kind == ".csv":
        files = [(out, cells.drop(columns="score").assign(label="", labelled_by="").to_csv(index=False))]
    elif kind == ".json":
        tasks = [_task(row, data) for row, data in _with_bytes(workspace, cells)]
        choices = "\n".join(f'    <Choice value="{name}"/>' for name in CLASSES)
        config = LABEL_STUDIO_CONFIG.format(control=CONTROL, choices=choices)
        files = [(out, json.dumps(tasks, indent=1) + "\n"), (out.with_suffix(".xml"), config)]
    else:
        raise WbcError(f"{out}: export to a name that ends in .csv or .json (Label Studio)")
    hand_out(files, workspace)
    if images is not None:
        for row, data in _with_bytes(workspace, cells):
            name = f"{int(row['rank']):05d}-{row['sha256'][:12]}{_kind(data)[1]}"
            hand_out_bytes(images / name, data)
    return len(cells)


def _with_bytes(workspace: Path, cells: pd.DataFrame) -> Iterator[tuple[dict[str, Any], bytes]]:
    by_cell = {row["sha256"]: row for row in cells.to_dict("records")}
    for sha256, data in ImageStore(workspace / "data/images").read(cells["sha256"].tolist()):
        yield {str(key): value for key, value in by_cell[sha256].items()}, data


def _kind(data: bytes) -> tuple[str, str]:
    """Media type and file ending of an image that was accepted at ingest."""
    for start, kind in ((b"\xff\xd8", "jpeg"), (b"\x89PNG", "png"), (b"BM", "bmp")):
        if data.startswith(start):
            return f"image/{kind}", f".{kind.replace('jpeg', 'jpg')}"
    return "image/tiff", ".tiff"


def _for_browser(data: bytes) -> tuple[str, bytes]:
    """The image in a form that a browser shows: TIFF becomes PNG."""
    media = _kind(data)[0]
    if media != "image/tiff":
        return media, data
    from wbc_model.core.images import decode

    buffer = io.BytesIO()
    decode(data)[0].save(buffer, "PNG")
    return "image/png", buffer.getvalue()


def _task(row: dict[str, Any], data: bytes) -> dict[str, Any]:
    media, shown = _for_browser(data)
    fields = {name: row[name] for name in ("sha256", "path", "rank", "reason")}
    task: dict[str, Any] = {"data": {"image": f"data:{media};base64,{base64.b64encode(shown).decode()}", **fields}}
    if row["predicted"]:  # before there is any model nothing is predicted
        choice = {"from_name": CONTROL, "to_name": "image", "type": "choices", "value": {"choices": [row["predicted"]]}}
        task["predictions"] = [{"model_version": "wbc", "score": float(row["probability"]), "result": [choice]}]
    return task


# --- in ----------------------------------------------------------------------------------------------------------------


def import_labels(workspace: Path, file: Path, cycle: int, annotator: str = "") -> dict[str, Any]:
    """Take in labels that people gave: a CSV with sha256 and label, or an export of Label Studio.

    Rows without a label are passed over. `annotator` names who gave those that do not say. A row or task that cannot be a label
    is `refused` with the reason, the others are taken in. Raises WbcError where the file as a whole cannot be read.
    """
    answers, refused = read_answers(file, label_names(workspace))
    rows = [[one.sha256, one.label, one.by or annotator or "people", one.at, one.why, one.place] for one in answers]
    frame = pd.DataFrame(rows, columns=[*COLUMNS[:4], "why", "place"], dtype=str)
    taken = _told(take_in(workspace, frame, cycle))
    waiting = len(awaited(workspace)) if (workspace / "data/queue.csv").exists() else 0
    wrote = ([_WAITING] if taken["waits_for"] else [LOG, "data/pools"]) if taken["new"] else []
    refusals = [*(vars(one) for one in refused), *taken["refused"]]
    return {"labels": len(frame), **taken, "refused": refusals, "cycle": cycle, "awaited": waiting, "wrote": wrote}


def status(workspace: Path) -> dict[str, Any]:
    """How many labels there are, who gave them, and how many are awaited."""
    pools = Pools.read(workspace / "data/pools")
    labelled = pools.frames["labelled"]
    by: dict[str, int] = {str(name): int(count) for name, count in labelled["labelled_by"].value_counts().sort_index().items()}
    classes = {name: int((labelled["label"] == name).sum()) for name in CLASSES}
    waiting = len(awaited(workspace)) if (workspace / "data/queue.csv").exists() else 0
    log = read_log(workspace)
    return {
        **pools.counts(),
        "labelled_by": by,
        "classes": classes,
        "in_log": len(log),
        "superseded": int(log["sha256"].duplicated().sum()),
        "conflicts": len(conflicts(workspace)),
        "awaited": waiting,
    }
