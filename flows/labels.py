"""The label store: an append-only log of who said what when, and the ways in and out of it (oracle, CSV, Label Studio).

A label is first appended to `data/labels.csv` and only then moves its cell between the pools, so that a crash loses none;
reading the log into the pools again changes nothing.
"""

import base64
import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pandas as pd

from wbc_model.classes import CLASSES
from wbc_model.errors import WbcError
from wbc_model.files import append_durably, write_atomic
from wbc_model.manifest import known_label
from wbc_model.pools import Pools, now, read_table, update
from wbc_model.store import ImageStore

COLUMNS: Final = ["sha256", "label", "labelled_by", "labelled_at", "cycle"]
QUEUE: Final = ["sha256", "path", "rank", "score", "reason", "predicted", "probability"]
LABEL_STUDIO_CONFIG: Final = """\
<View>
  <Image name="image" value="$image"/>
  <Choices name="label" toName="image" choice="single" showInline="true">
{choices}
  </Choices>
</View>
"""


def read_log(workspace: Path) -> pd.DataFrame:
    """The label log as text columns COLUMNS; a last line torn by a crash is not there."""
    path = workspace / "data/labels.csv"
    whole = _whole_lines(path)
    if not whole:
        return pd.DataFrame(columns=COLUMNS, dtype=str)
    frame = pd.read_csv(io.StringIO(whole), dtype=str, keep_default_na=False)
    if list(frame.columns) != COLUMNS:
        raise WbcError(f"{path}: its columns are {', '.join(frame.columns)}; expected {', '.join(COLUMNS)}")
    return frame


def _whole_lines(path: Path) -> str:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1]


def record(workspace: Path, rows: pd.DataFrame, cycle: int) -> int:
    """Take labels (columns sha256, label, labelled_by, labelled_at) in: log first, then pools; returns how many were new.

    All or nothing: raises WbcError naming the first row that cannot be a label, before anything is written.
    """
    with _lock(workspace):
        # A dry run first: the log is append-only, so nothing that the pools would refuse may get into it.
        replay(workspace)
        Pools.read(workspace / "data/pools").label(rows, cycle)
        log = read_log(workspace)
        known = set(zip(log["sha256"], log["label"], strict=True))
        fresh = [key not in known for key in zip(rows["sha256"], rows["label"], strict=True)]
        new = rows[fresh].drop_duplicates(["sha256", "label"]).assign(cycle=cycle)
        if len(new):
            path = workspace / "data/labels.csv"
            append_durably(path, new[COLUMNS].to_csv(index=False, header=not _whole_lines(path), lineterminator="\n"))
        replay(workspace)
    return len(new)


def replay(workspace: Path) -> None:
    """Bring the pools up to the label log; a cell that has left the pools since is passed over."""
    log = read_log(workspace)
    if log.empty:
        return

    def apply(pools: Pools) -> Pools:
        waiting = set(pools.frames["unlabelled"]["sha256"])
        for cycle, rows in log[log["sha256"].isin(waiting)].groupby(log["cycle"].astype(int), sort=True):
            pools = pools.label(rows[COLUMNS[:4]], int(str(cycle)))
        return pools

    update(workspace / "data/pools", apply)


@contextmanager
def _lock(workspace: Path) -> Iterator[None]:
    path = workspace / ".wbc/labels.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_queue(workspace: Path) -> pd.DataFrame:
    """The cells that the last query asked about, columns QUEUE as text; raises WbcError where there was none."""
    path = workspace / "data/queue.csv"
    if not path.exists():
        raise WbcError(f"{path} is missing: nothing was asked yet (`wbc query` or `wbc retrain` asks)")
    return read_table(path, QUEUE)


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
    """Write the cells that await a label: `.csv` for a spreadsheet, `.json` as Label Studio tasks with the images in them.

    With `images` the image files are written into that folder too, named by rank. Returns the number of cells.
    """
    cells = awaited(workspace)
    if out.suffix not in (".csv", ".json"):
        raise WbcError(f"{out}: export to a name that ends in .csv or .json (Label Studio)")
    if out.suffix == ".csv":
        write_atomic(out, cells.drop(columns="score").assign(label="", labelled_by="").to_csv(index=False))
    else:
        tasks = [_task(row, data) for row, data in _with_bytes(workspace, cells)]
        write_atomic(out, json.dumps(tasks, indent=1) + "\n")
        choices = "\n".join(f'    <Choice value="{name}"/>' for name in CLASSES)
        write_atomic(out.with_suffix(".xml"), LABEL_STUDIO_CONFIG.format(choices=choices))
    if images is not None:
        for row, data in _with_bytes(workspace, cells):
            write_atomic(images / f"{int(row['rank']):05d}-{row['sha256'][:12]}{_kind(data)[1]}", data)
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
    from wbc_model.images import decode

    buffer = io.BytesIO()
    decode(data)[0].save(buffer, "PNG")
    return "image/png", buffer.getvalue()


def _task(row: dict[str, Any], data: bytes) -> dict[str, Any]:
    media, shown = _for_browser(data)
    fields = {name: row[name] for name in ("sha256", "path", "rank", "reason")}
    task: dict[str, Any] = {"data": {"image": f"data:{media};base64,{base64.b64encode(shown).decode()}", **fields}}
    if row["predicted"]:  # before there is any model nothing is predicted
        choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [row["predicted"]]}}
        task["predictions"] = [{"model_version": "wbc", "score": float(row["probability"]), "result": [choice]}]
    return task


# --- in ----------------------------------------------------------------------------------------------------------------


def import_labels(workspace: Path, file: Path, cycle: int, annotator: str = "") -> dict[str, Any]:
    """Take in labels that people gave: a CSV with sha256 and label, or a JSON export of Label Studio.

    Rows without a label are passed over. `annotator` names who gave those that do not say. Raises WbcError naming the first
    row that is wrong; nothing is taken in then.
    """
    if not file.is_file():
        raise WbcError(f"{file} does not exist")
    given = _csv_labels(file) if file.suffix == ".csv" else _studio_labels(file)
    rows = []
    for place, sha256, text, by, at in given:
        label = known_label(text)
        if label not in CLASSES:
            raise WbcError(f"{file} {place}: unknown label {text!r}; one of {', '.join(CLASSES)}")
        if not sha256:
            raise WbcError(f"{file} {place}: the cell's sha256 is missing")
        rows.append([sha256, label, by or annotator or "people", at or now()])
    frame = pd.DataFrame(rows, columns=COLUMNS[:4], dtype=str)
    new = record(workspace, frame, cycle) if len(frame) else 0
    waiting = len(awaited(workspace)) if (workspace / "data/queue.csv").exists() else 0
    return {"labels": len(frame), "new": new, "cycle": cycle, "awaited": waiting, "wrote": ["data/labels.csv", "data/pools"]}


Given = tuple[str, str, str, str, str]  # place in the file, sha256, label, by whom, when


def _csv_labels(file: Path) -> list[Given]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            names = {name.strip().lower(): name for name in reader.fieldnames or []}
            if not {"sha256", "label"} <= set(names):
                raise WbcError(f"{file}: needs the columns sha256 and label, has {', '.join(names) or 'none'}")

            def value(row: dict[str, str], name: str) -> str:
                return (row.get(names.get(name, "")) or "").strip()

            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise WbcError(f"{file}: not a CSV file in UTF-8: {error}") from None
    return [
        (f"line {line}", value(row, "sha256"), value(row, "label"), value(row, "labelled_by"), value(row, "labelled_at"))
        for line, row in rows
        if value(row, "label")
    ]


def _studio_labels(file: Path) -> list[Given]:
    try:
        tasks = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WbcError(f"{file}: neither .csv nor JSON: {error}") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise WbcError(f"{file}: expected the list of tasks that Label Studio exports")
    return [given for number, task in enumerate(tasks, 1) for given in _studio_task(file, number, task)]


def _studio_task(file: Path, number: int, task: dict[str, Any]) -> Iterator[Given]:
    """The label of one task, in Label Studio's full form or its JSON_MIN; annotators who disagree are an error."""
    place = f"task {task.get('id', number)}"
    data = task.get("data", task)
    sha256 = str(data.get("sha256", ""))
    if "annotations" not in task:
        if task.get("label"):
            yield place, sha256, str(task["label"]), _person(task.get("annotator")), _moment(task.get("updated_at"))
        return
    answers = []
    for annotation in task["annotations"]:
        choices = [c for part in annotation.get("result", []) for c in part.get("value", {}).get("choices", [])]
        if choices and not annotation.get("was_cancelled"):
            answers.append((choices, annotation))
    labels = {choice for choices, _ in answers for choice in choices}
    if len(labels) > 1:
        raise WbcError(f"{file} {place} (cell {sha256[:16]}): {' and '.join(sorted(labels))} were chosen; agree on one first")
    if answers:
        last = max((annotation for _, annotation in answers), key=lambda one: str(one.get("updated_at", "")))
        when = _moment(last.get("updated_at") or last.get("created_at"))
        yield place, sha256, labels.pop(), _person(last.get("completed_by")), when


def _person(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return "" if value is None else f"label studio {value}" if isinstance(value, int) else str(value)


def _moment(value: object) -> str:
    """Label Studio's time to ours: ISO 8601 in UTC, to the second."""
    try:
        return pd.Timestamp(str(value)).tz_convert("UTC").strftime("%Y-%m-%dT%H:%M:%SZ") if value else ""
    except (ValueError, TypeError):
        return ""


def status(workspace: Path) -> dict[str, Any]:
    """How many labels there are, who gave them, and how many are awaited."""
    pools = Pools.read(workspace / "data/pools")
    labelled = pools.frames["labelled"]
    by: dict[str, int] = {str(name): int(count) for name, count in labelled["labelled_by"].value_counts().sort_index().items()}
    classes = {name: int((labelled["label"] == name).sum()) for name in CLASSES}
    waiting = len(awaited(workspace)) if (workspace / "data/queue.csv").exists() else 0
    return {**pools.counts(), "labelled_by": by, "classes": classes, "in_log": len(read_log(workspace)), "awaited": waiting}
