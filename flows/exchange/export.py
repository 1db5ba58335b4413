"""Cells for people to label: a sheet for a spreadsheet, tasks for Label Studio, and the image files.

They are blind: a reader who sees the model's opinion first tends to agree with it.
"""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import quoteattr

import pandas as pd

from flows.exchange.handed_out import hand_out, hand_out_bytes
from wbc_model.cells.store import ImageStore
from wbc_model.core.errors import WbcError

CONTROL: Final = "label"  # the name of our Choices in Label Studio's configuration
OPINION: Final = ["score", "reason", "predicted", "probability"]  # of a queue's columns, what the model has to say
LABEL_STUDIO_CONFIG: Final = """\
<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true" brightnessControl="true" contrastControl="true"/>
  <Choices name="{control}" toName="image" choice="single" showInline="true">
{choices}
  </Choices>
</View>
"""


def export_cells(
    workspace: Path,
    cells: pd.DataFrame,
    out: Path,
    answers: Sequence[str],
    images: Path | None = None,
    with_predictions: bool = False,
) -> int:
    """Write cells (a queue's columns): `.csv` for a spreadsheet, `.json` as Label Studio tasks with the images in them.

    `answers` are the choices of Label Studio. What the model thinks is there `with_predictions` only, and so are the paths. With
    `images` the image files are written into that folder too, named by rank; a sheet has these names. Returns the number of
    cells. Raises WbcError naming a file there that is not what was written: somebody may have filled it in.
    """
    kind = out.suffix.casefold()
    if kind == ".csv":
        shown = cells if with_predictions else _under_neutral_names(workspace, cells)
        files = [(out, blank_sheet(shown, with_predictions))]
    elif kind == ".json":
        tasks = [_task(row, data, with_predictions) for row, data in _with_bytes(workspace, cells)]
        files = [(out, json.dumps(tasks, indent=1) + "\n"), (out.with_suffix(".xml"), label_studio_config(answers))]
    else:
        raise WbcError(f"{out}: export to a name that ends in .csv or .json (Label Studio)")
    hand_out(files, workspace)
    if images is not None:
        for row, data in _with_bytes(workspace, cells):
            hand_out_bytes(images / _name(row, data), data)
    return len(cells)


def _name(row: dict[str, Any], data: bytes) -> str:
    """What a cell's image file is called that is handed out: a name that says nothing of its class."""
    return f"{int(row['rank']):05d}-{row['sha256'][:12]}{_kind(data)[1]}"


def _under_neutral_names(workspace: Path, cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with the names of their handed out images for `path`: a path may name the class."""
    names = {row["sha256"]: _name(row, data) for row, data in _with_bytes(workspace, cells)}
    return cells.assign(path=cells["sha256"].map(names))


def blank_sheet(cells: pd.DataFrame, with_predictions: bool = False) -> str:
    """The text of a sheet to fill in: one row per cell, its columns label and labelled_by empty."""
    shown = cells.drop(columns="score" if with_predictions else OPINION)
    return shown.assign(label="", labelled_by="").to_csv(index=False)


def label_studio_config(answers: Sequence[str]) -> str:
    """Label Studio's labelling interface: one choice among these answers."""
    choices = "\n".join(f"    <Choice value={quoteattr(answer)}/>" for answer in answers)
    return LABEL_STUDIO_CONFIG.format(control=CONTROL, choices=choices)


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


def _task(row: dict[str, Any], data: bytes, with_predictions: bool) -> dict[str, Any]:
    """A task of Label Studio. A path may tell the class, and the reason the model's doubt: they are for the seeing only."""
    media, shown = _for_browser(data)
    fields = {name: row[name] for name in (("sha256", "path", "rank", "reason") if with_predictions else ("sha256",))}
    task: dict[str, Any] = {"data": {"image": f"data:{media};base64,{base64.b64encode(shown).decode()}", **fields}}
    if with_predictions and row["predicted"]:  # before there is any model nothing is predicted
        choice = {"from_name": CONTROL, "to_name": "image", "type": "choices", "value": {"choices": [row["predicted"]]}}
        task["predictions"] = [{"model_version": "wbc", "score": float(row["probability"]), "result": [choice]}]
    return task
