"""The data checks before training: Great Expectations over the pools and the images behind them.

A finding that names a row takes the row out of use (`data/quarantine.csv`); one that makes the whole set unfit stops the
pipeline with the rows that are the reason. Either way the Data Docs (`data/docs/index.html`) say what was checked.
"""

import importlib
import logging
import os
import shutil
import warnings
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from flows.pipeline.data_docs import finish, front_page
from wbc_model.cells.findings import REPEATS, describe, find
from wbc_model.cells.ingest import Rejection, read_rejections, rejections_csv
from wbc_model.cells.pools import COLUMNS, POOLS, Pools, read_table
from wbc_model.cells.quality import measure_store
from wbc_model.cells.store import ImageStore
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import replace_directory, write_atomic
from wbc_model.core.images import MAX_PIXELS, MIN_SIDE, RGB_CONVERTIBLE
from wbc_model.params import CheckParams, Params

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation

LISTED = 20  # rows of a critical finding that the error names
HELD_OUT = ("validation", "test")
USUAL_SHARE = (0.005, 0.95)  # of a class in a held-out pool; outside it the Data Docs show a warning


@dataclass(frozen=True)
class ValidationReport:
    """What `validate` found. `found`: pool rows taken out of use; `quarantined`: all rows of quarantine.csv by reason,
    with those refused at ingest; `usable`: cells per pool that are left; `warnings`: shown, without consequence."""

    pools: dict[str, int]
    usable: dict[str, int]
    found: list[Rejection]
    quarantined: dict[str, int]
    warnings: list[str]
    docs: Path

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "pools": self.pools,
            "usable": self.usable,
            "found": dict(sorted(Counter(entry.reason for entry in self.found).items())),
            "quarantined": self.quarantined,
            "findings": [vars(entry) for entry in self.found],
            "warnings": self.warnings,
            "docs": str(self.docs),
        }


def validate(workspace: Path, params: Params) -> ValidationReport:
    """Check the pools of a workspace; writes `data/quarantine.csv` and `data/docs/`, the same for the same data.

    Raises WbcError, after both are written, when a finding is critical: an image that is missing or damaged, a label that is
    unknown, a cell in two pools, a group that is split, too few cells or classes to train or test, or too much of a pool in
    quarantine.
    """
    data = workspace / "data"
    pools = Pools.read(data / "pools", check=False)
    cache = workspace / ".wbc" / "cache"
    cells = describe(pools, measure_store(ImageStore(data / "images"), cache))
    cells, found = find(cells, _known_labels(cells, data / "oracle.csv"), params.checks, cache)
    out = pd.Series([(path, sha256) for path, sha256 in cells[["path", "sha256"]].to_numpy()], index=cells.index, dtype=object)
    cells["quarantined"] = out.isin({(entry.path, entry.sha256) for entry in found})
    quarantine = read_rejections(data / "rejected.csv") | set(found)
    write_atomic(data / "quarantine.csv", rejections_csv(quarantine))
    kept = cells[~cells["quarantined"]]["pool"].value_counts()
    usable = {name: int(kept.get(name, 0)) for name in POOLS}
    docs, moment = data / "docs", _moment(pools)
    building = docs.with_name(".docs.new")
    shutil.rmtree(building, ignore_errors=True)
    critical, noted = _expect(cells, params.checks, building, moment)
    finish(building, moment, front_page(building, pools.counts(), usable, quarantine, critical, noted))
    replace_directory(building, docs)
    if critical:
        raise WbcError(_explain(critical, docs / "index.html"))
    return ValidationReport(
        pools=pools.counts(),
        usable=usable,
        found=found,
        quarantined=dict(sorted(Counter(entry.reason for entry in quarantine).items())),
        warnings=noted,
        docs=docs / "index.html",
    )


def _known_labels(cells: pd.DataFrame, oracle: Path) -> pd.Series:
    """Each row's label, also where it is set aside for the oracle: a cell with two labels is a fault either way."""
    hidden = dict(read_table(oracle, ["sha256", "label"]).to_numpy()) if oracle.exists() else {}
    return cells["label"].where(cells["label"] != "", cells["sha256"].map(hidden).fillna(""))


def _moment(pools: Pools) -> datetime:
    """The time that the documents carry: that of the newest label, so that the same data gives the same documents."""
    newest = max((str(frame["labelled_at"].max()) for frame in pools.frames.values() if len(frame)), default="")
    try:
        return datetime.fromisoformat(newest).astimezone(UTC)
    except ValueError:
        return datetime(2000, 1, 1, tzinfo=UTC)


def _explain(critical: list[str], docs: Path) -> str:
    listed = "\n".join(f"  {line}" for line in critical[:LISTED])
    more = f"\n  and {len(critical) - LISTED} more" if len(critical) > LISTED else ""
    return f"the data checks stopped the pipeline (see {docs}):\n{listed}{more}"


# --- what is expected ------------------------------------------------------------------------------------------------


def _cell_suite(checks: CheckParams) -> "ExpectationSuite":
    """Expectations of single rows; those with `critical` in their meta stop the pipeline, the rest takes rows out of use."""
    import great_expectations as gx

    gxe: Any = importlib.import_module("great_expectations.expectations")  # its names are not exported for type checkers

    low, high = checks.brightness
    stop = {"critical": True}
    expectations: list[Expectation] = [
        gxe.ExpectTableColumnsToMatchSet(column_set=COLUMNS, exact_match=False, meta=stop),
        gxe.ExpectColumnValuesToMatchRegex(column="sha256", regex="^[0-9a-f]{64}$", meta=stop | {"says": "is no sha256"}),
        gxe.ExpectColumnValuesToBeUnique(column="sha256", meta=stop | {"says": "is in the pools more than once"}),
        gxe.ExpectColumnValuesToBeInSet(column="pool", value_set=list(POOLS), meta=stop),
        gxe.ExpectColumnValuesToBeInSet(
            column="label_or_none", value_set=list(CLASSES), meta=stop | {"says": "has an unknown, missing or stray label"}
        ),
        gxe.ExpectColumnValuesToBeInSet(column="group_sides", value_set=[1], meta=stop | {"says": "is of a group that is split"}),
        gxe.ExpectColumnValuesToBeInSet(column="stored", value_set=[True], meta=stop | {"says": "has no image in the store"}),
        gxe.ExpectColumnValuesToBeInSet(
            column="damage", value_set=[""], meta=stop | {"says": "has a damaged image in the store"}
        ),
        gxe.ExpectColumnValuesToBeBetween(column="shorter_side", min_value=MIN_SIDE),
        gxe.ExpectColumnValuesToBeBetween(column="area", max_value=MAX_PIXELS),
        gxe.ExpectColumnValuesToBeInSet(column="mode", value_set=sorted(RGB_CONVERTIBLE)),
        gxe.ExpectColumnValuesToBeBetween(column="brightness", min_value=low, max_value=high),
        gxe.ExpectColumnValuesToBeBetween(column="contrast", min_value=checks.min_contrast),
        gxe.ExpectColumnValuesToBeBetween(column="sharpness", min_value=checks.min_sharpness),
    ]
    expectations += [gxe.ExpectColumnValuesToBeNull(column=name) for name in REPEATS]
    return gx.ExpectationSuite(name="cells", expectations=expectations)


def _pool_suite(checks: CheckParams) -> "ExpectationSuite":
    """Expectations of the pools as a whole, of what is left after the quarantine."""
    import great_expectations as gx

    gxe: Any = importlib.import_module("great_expectations.expectations")  # its names are not exported for type checkers

    most = checks.max_quarantined_share
    too_many = f"has more than {most:.0%} of its cells in quarantine"
    expectations: list[Expectation] = [
        gxe.ExpectColumnValuesToBeBetween(column="missing_cells", max_value=0, meta={"critical": True, "says": "needs more"}),
        gxe.ExpectColumnValuesToBeBetween(column="quarantined_share", max_value=most, meta={"critical": True, "says": too_many}),
        gxe.ExpectColumnValuesToBeBetween(
            column="share", min_value=USUAL_SHARE[0], max_value=USUAL_SHARE[1], meta={"says": "is an unusual share of its pool"}
        ),
    ]
    return gx.ExpectationSuite(name="pools", expectations=expectations)


def _cell_table(cells: pd.DataFrame) -> pd.DataFrame:
    label = cells["label"].astype(object)
    waiting = (cells["pool"] == "unlabelled") & (label == "")
    stray = (cells["pool"] == "unlabelled") & (label != "")
    return cells.assign(
        label_or_none=label.where(~stray, "stray: " + label).where(~waiting, None),
        shorter_side=cells[["width", "height"]].min(axis=1),
        area=cells["width"] * cells["height"],
    )


def _pool_table(cells: pd.DataFrame, checks: CheckParams) -> pd.DataFrame:
    """A row per pool (class `all`) and per class of a held-out pool: cells in use, how many are missing, shares."""
    used = cells[~cells["quarantined"]]
    rows: list[dict[str, Any]] = []
    for pool in POOLS:
        here, size = used[used["pool"] == pool], int((cells["pool"] == pool).sum())
        lost = size - len(here)
        share = lost / size if lost > 1 else 0.0  # a single row is not yet a share
        rows.append({"pool": pool, "class": "all", "cells": len(here), "quarantined_share": share})
        counts = here["label"].value_counts()
        if pool == "labelled":
            classes = int(counts.index.isin(CLASSES).sum())
            rows.append({"pool": pool, "class": "labelled classes", "cells": classes, "missing_cells": max(0, 2 - classes)})
        for name in CLASSES if pool in HELD_OUT else ():
            count = int(counts.get(name, 0))
            missing = max(0, checks.min_test_cells_per_class - count)
            rows.append(
                {"pool": pool, "class": name, "cells": count, "missing_cells": missing, "share": count / max(1, len(here))}
            )
    return pd.DataFrame(rows)


# --- Great Expectations --------------------------------------------------------------------------------------------------


def _expect(cells: pd.DataFrame, checks: CheckParams, building: Path, moment: datetime) -> tuple[list[str], list[str]]:
    """Run the suites and build the pages in `building`; returns the lines of critical findings and of warnings."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for site in list(context.variables.data_docs_sites or {}):
        context.delete_data_docs_site(site)
    context.add_data_docs_site("pools", _site(building))
    source = context.data_sources.add_pandas("workspace")
    run = RunIdentifier(run_name="validate", run_time=moment)
    critical: list[str] = []
    noted: list[str] = []
    tables = {
        "cells": (_cell_table(cells), _cell_suite(checks), ["pool", "path"]),
        "pools": (_pool_table(cells, checks), _pool_suite(checks), ["pool", "class"]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (table, suite, keys) in tables.items():
            batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("now")
            definition = gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add(suite))
            checkpoint = gx.Checkpoint(
                name=name,
                validation_definitions=[context.validation_definitions.add(definition)],
                result_format={"result_format": "COMPLETE", "unexpected_index_column_names": keys},
            )
            result = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": table}, run_id=run)
            for validation in result.run_results.values():
                _sort_out(validation.results, keys, critical, noted)
        context.build_data_docs()
    return critical, noted


def _site(directory: Path) -> Any:
    return {
        "class_name": "SiteBuilder",
        "site_name": "pools",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(directory.resolve())},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


def _sort_out(results: Any, keys: list[str], critical: list[str], noted: list[str]) -> None:
    """Turn failed expectations into lines; those without words of their own show in quarantine.csv row by row."""
    for result in results:
        if result.exception_info and result.exception_info.get("raised_exception"):
            raise RuntimeError(f"{result.expectation_config.type}: {result.exception_info['exception_message']}")
        meta = result.expectation_config.meta or {}
        if result.success or not (meta.get("critical") or meta.get("says")):
            continue
        says = meta.get("says", "is not as expected")
        column = result.expectation_config.kwargs.get("column", "")
        rows = result.result.get("unexpected_index_list") or [{}]
        lines = []
        for row in rows:
            where = ": ".join(str(row[key]) for key in keys if key in row)
            lines.append(f"{where or column or 'pools'} {says} ({column} {_short(row.get(column))})")
        (critical if meta.get("critical") else noted).extend(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
