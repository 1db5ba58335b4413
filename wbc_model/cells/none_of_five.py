"""The record of cells that people call none of the five classes: bands and blasts, platelets, smudges, artefacts.

`data/none_of_five.csv` only grows, and the last row of a cell counts. A row with one of the classes takes back what was said
before it. A row without an answer does the same, and leaves nothing known of the cell. The cells themselves lie in the unlabelled
pool, out of use (`Pools.take_out`): they are what the out-of-distribution score is tested on.
"""

from pathlib import Path
from typing import Final

import pandas as pd

from wbc_model.cells.tables import read_table, to_csv
from wbc_model.core.classes import CLASSES

RECORD: Final = "none_of_five.csv"
COLUMNS: Final = ["sha256", "answer", "labelled_by", "labelled_at", "cycle", "why"]
_OF_LABELS: Final = {"answer": "label"}  # as the label log calls it


def read_record(path: Path) -> pd.DataFrame:
    """The rows of a none_of_five.csv, with the columns of the label log (`label` for `answer`); none where there is no such file.
    Raises WbcError where it is damaged."""
    frame = read_table(path, COLUMNS) if path.exists() else pd.DataFrame(columns=COLUMNS, dtype=str)
    return frame.rename(columns=_OF_LABELS)


def grown(record: pd.DataFrame, new: pd.DataFrame, cycle: int) -> str:
    """The text of the record after `new` answers (columns of the label log but for `cycle`) came to it."""
    names = {label: answer for answer, label in _OF_LABELS.items()}
    rows = pd.concat([record, new.assign(cycle=str(cycle))], ignore_index=True).rename(columns=names)
    return to_csv(rows[COLUMNS])


def standing(record: pd.DataFrame) -> pd.DataFrame:
    """The rows that count now, one for each cell that is none of the five."""
    last = record.drop_duplicates("sha256", keep="last")
    return last[~last["label"].isin(CLASSES) & (last["label"] != "")].reset_index(drop=True)
