"""The queue as people get it: the cells that the model asks about, test cells drawn blind, cells whose label is known, and
references of each class, all with their images.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from flows import labels
from wbc_model.cells.conflicts import MACHINES
from wbc_model.cells.pools import Pools
from wbc_model.cells.rejections import quarantined
from wbc_model.cells.store import ImageStore
from wbc_model.params import read_params

if TYPE_CHECKING:
    from serving.contract.site import Site
    from serving.labelling.queue import AskedCell, Notice
    from serving.reports.store import Store

REFERENCES: Final = 6  # of each class


def queue_id(retraining: str, cycle: int) -> str:
    """The name of a cycle's queue: the same however often it is published."""
    return hashlib.sha256(f"{retraining}{cycle}".encode()).hexdigest()[:12]


def publish_queue(workspace: Path, store: "Store", name: str, notice: "Notice", blind: pd.DataFrame, site: "Site") -> int:
    """Put the queue of the workspace into the store, once, and with it the test cells `blind` (columns QUEUE); returns how many
    cells were put in."""
    from serving.labelling.queue import publish

    rows = _rows(workspace, name, blind, site.labelling.known_share)
    return publish(store, name, notice, _with_images(workspace, rows), site)


def _rows(workspace: Path, name: str, blind: pd.DataFrame, known_share: float) -> pd.DataFrame:
    """Columns of a queue with `purpose` and `truth`; each cell once."""
    out_of_use = quarantined(workspace / "data")
    asked = labels.awaited(workspace)
    asked = asked[~asked["sha256"].isin(out_of_use)].assign(purpose="asked", truth="")
    labelled = Pools.read(workspace / "data/pools").without(out_of_use).frames["labelled"]
    shown, known = _shown_and_known(labelled, math.ceil(len(asked) * known_share), np.random.default_rng(int(name, 16)))
    return pd.concat([asked, blind.assign(purpose="test", truth=""), shown, known], ignore_index=True).fillna("")


def _shown_and_known(labelled: pd.DataFrame, known: int, chance: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """References, and cells whose label readers are measured by: of every class alike, no cell in both. What people labelled
    comes before the labels of a manifest as a reference."""
    mixed = labelled.iloc[chance.permutation(len(labelled))]
    by_people = mixed.assign(machine=mixed["labelled_by"].isin(MACHINES)).sort_values("machine", kind="stable")
    shown = by_people.groupby("label", sort=False).head(REFERENCES)
    rest = mixed[~mixed["sha256"].isin(shown["sha256"])]
    rest = rest.assign(place=rest.groupby("label", sort=False).cumcount()).sort_values("place", kind="stable")
    return _row(shown, "reference"), _row(rest.head(known), "known")


def _row(cells: pd.DataFrame, purpose: str) -> pd.DataFrame:
    given = pd.DataFrame({"sha256": cells["sha256"], "path": cells["path"], "truth": cells["label"]}).reset_index(drop=True)
    ranks = [str(number) for number in range(1, len(given) + 1)]
    return given.assign(rank=ranks, score="", reason=purpose, predicted="", probability="", purpose=purpose)


def _with_images(workspace: Path, rows: pd.DataFrame) -> Iterator["AskedCell"]:
    """The cells with their images, one at a time; nothing is read before the first is asked for. A test cell has no embedding:
    what a model makes of it must not choose what stands beside it."""
    from serving.labelling.queue import AskedCell

    about = rows.set_index("sha256").to_dict("index")
    embeddings = _embeddings(workspace, rows.loc[rows["purpose"].isin(["asked", "known"]), "sha256"].tolist())
    for sha256, data in ImageStore(workspace / "data/images").read(rows["sha256"].tolist()):
        row = about[sha256]
        yield AskedCell(
            sha256=sha256,
            data=data,
            rank=int(row["rank"]),
            reason=row["reason"],
            purpose=row["purpose"],
            truth=row["truth"],
            predicted=row["predicted"],
            probability=float(row["probability"]) if row["probability"] else None,
            embedding=embeddings.get(sha256),
        )


def _embeddings(workspace: Path, sha256s: list[str]) -> dict[str, bytes]:
    """The candidate's embedding of each cell as float16 bytes, so that alike cells come together; nothing without a model."""
    candidate = workspace / "models/candidate"
    if not candidate.is_dir() or not sha256s:
        return {}
    from flows.pipeline.stages import decoded_cells
    from wbc_model.acquisition.query import score_pool
    from wbc_model.network.model_directory import load_model

    network, card = load_model(candidate)
    autocast = read_params(workspace / "params.yaml").size.precision == "bf16-mixed"
    decoded = decoded_cells(workspace, card.input_size, card.view)
    seen = score_pool(network, decoded, sha256s, autocast, embeddings=True)
    return {sha256: row.astype(np.float16).tobytes() for sha256, row in zip(sha256s, seen.embedding, strict=True)}
