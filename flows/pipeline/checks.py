"""The data checks before training: Great Expectations over the pools and the images behind them.

A finding that names a row takes the row out of use (`data/quarantine.csv`). One that makes the whole set unfit stops the
pipeline, and names the rows that are the reason. Either way `data/docs/index.html` says what was checked.
"""

import importlib
import logging
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flows.pipeline.data_docs import CHECKS_CSV, Check, Findings, Line, remember, write_page
from wbc_model.cells.pools import COLUMNS, POOLS, Pools
from wbc_model.cells.rejections import Rejection, read_rejections, rejections_csv
from wbc_model.cells.store import ImageStore
from wbc_model.cells.tables import names_of, places_in, read_table
from wbc_model.checks.findings import MIN_CONTRAST, REPEATS, describe, find, rows_of
from wbc_model.checks.quality import measure_store
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import replace_directory, write_atomic
from wbc_model.core.images import MAX_PIXELS, MIN_SIDE, RGB_CONVERTIBLE
from wbc_model.params import CheckParams, Params

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation

LISTED = 20  # rows of a critical finding that the error names
GX_PAGES = ".wbc/great_expectations"  # its own pages of the last run; they need the internet
CHECKED_AT_A_TIME = 250_000  # rows that are in Great Expectations' hands: it copies them, and takes its time for each part
HELD_OUT = ("validation", "test")
TO_LEARN_FROM = ("labelled", "unlabelled")
_SPELT_APART = (
    "the groups {} seem to be one, and have cells on several sides: the figures of the test may flatter; `Cells that must go` in "
    "docs/labelling.md tells how a new workspace is made"
)
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


class ChecksStopped(WbcError):
    """Findings are `critical`: the page `docs` shows them all."""

    def __init__(self, critical: list[Line], docs: Path) -> None:
        self.critical = critical
        super().__init__(_explain([line.text for line in critical], docs))


def validate(workspace: Path, params: Params) -> ValidationReport:
    """Check the pools of a workspace; writes `data/quarantine.csv` and `data/docs/`, the same for the same data, and adds a
    result that is new to `reports/checks.csv`.

    Raises ChecksStopped, after both are written, when a finding is critical. An image is missing or damaged. A label is
    unknown, a cell is in two pools, or a group is split. Cells or classes are too few to train or test. Too much of a pool is
    in quarantine.
    """
    data = workspace / "data"
    pools = Pools.read(data / "pools", check=False)
    counts, newest = pools.counts(), _newest_label(pools)
    columns = set.intersection(*(set(map(str, frame)) for frame in pools.frames.values()))
    cells = rows_of(pools)
    spelt_apart = [Line(_SPELT_APART.format(" and ".join(map(repr, names)))) for names in pools.groups_spelt_apart()]
    del pools  # what is looked at of it is in the table now
    cache = workspace / ".wbc" / "cache"
    store = ImageStore(data / "images")
    measured = measure_store(store, cache)
    cells = describe(cells, measured)
    measured = measured.without_facts()
    cells, found = find(cells, measured, _known_labels(cells, data / "oracle.csv"), params.checks, cache)
    cells["quarantined"] = _are_among(cells, found)
    quarantine = read_rejections(data / "rejected.csv") | set(found)
    write_atomic(data / "quarantine.csv", rejections_csv(quarantine))
    kept = cells.loc[~cells["quarantined"], "pool"].value_counts()
    usable = {name: int(kept.get(name, 0)) for name in POOLS}
    critical, noted, checked = _expect(cells, columns, params.checks, workspace / GX_PAGES)
    noted += spelt_apart
    found_here = Findings(cells, quarantine, critical, noted, checked, newest)
    docs = data / "docs"
    building = docs.with_name(".docs.new")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    write_page(building / "index.html", found_here, store, remember(workspace / CHECKS_CSV, found_here))
    replace_directory(building, docs)
    if critical:
        raise ChecksStopped(critical, docs / "index.html")
    return ValidationReport(
        pools=counts,
        usable=usable,
        found=found,
        quarantined=dict(sorted(Counter(entry.reason for entry in quarantine).items())),
        warnings=[line.text for line in noted],
        docs=docs / "index.html",
    )


def _known_labels(cells: pd.DataFrame, oracle: Path) -> pd.Series:
    """Each row's label, also where it is set aside for the oracle: a cell with two labels is a fault either way."""
    given, out = cells["label"].cat, cells["taken_out"].to_numpy()  # of what is taken out a person knows better than the oracle
    hidden = read_table(oracle, ["sha256", "label"]) if oracle.exists() else pd.DataFrame({"sha256": [], "label": []}, dtype=str)
    kinds = pd.Index(sorted({"", *given.categories, *hidden["label"].unique()}))
    known = kinds.get_indexer(given.categories).astype(np.int16)[given.codes]
    nothing = list(kinds).index("")
    known[out] = nothing
    set_aside = kinds.get_indexer(pd.Index(hidden["label"])).astype(np.int16)
    names = names_of(hidden["sha256"])
    del hidden
    places = places_in(names_of(cells["sha256"]), names)
    rows = np.flatnonzero((known == nothing) & ~out & (places >= 0))
    known[rows] = set_aside[places[rows]]
    return pd.Series(pd.Categorical.from_codes(known, kinds), cells.index)


def _are_among(cells: pd.DataFrame, found: list[Rejection]) -> NDArray[np.bool_]:
    """Which rows a finding names."""
    named = cells.loc[cells["sha256"].isin([entry.sha256 for entry in found]), ["path", "sha256"]]
    rows = {(entry.path, entry.sha256) for entry in found}
    among = np.zeros(len(cells), bool)
    among[named.index[[row in rows for row in map(tuple, named.to_numpy())]]] = True
    return among


def _newest_label(pools: Pools) -> str:
    """When the newest label was given, as the pools have it; empty where there is none."""
    return max((str(frame["labelled_at"].max()) for frame in pools.frames.values() if len(frame)), default="")


def _explain(critical: list[str], docs: Path) -> str:
    listed = "\n".join(f"  {line}" for line in critical[:LISTED])
    more = f"\n  and {len(critical) - LISTED} more" if len(critical) > LISTED else ""
    return f"the data checks stopped the pipeline (see {docs}):\n{listed}{more}"


# --- what is expected ------------------------------------------------------------------------------------------------


def _file_suite() -> "ExpectationSuite":
    """What is expected of the pool files as such."""
    import great_expectations as gx

    gxe: Any = importlib.import_module("great_expectations.expectations")  # its names are not exported for type checkers
    what = _stop("each pool file has the columns of a pool")
    columns = gxe.ExpectTableColumnsToMatchSet(column_set=COLUMNS, exact_match=False, meta=what)
    return gx.ExpectationSuite(name="files", expectations=[columns])


def _cell_suite(checks: CheckParams) -> "ExpectationSuite":
    """Expectations of single rows; those with `critical` in their meta stop the pipeline, the rest takes rows out of use.
    `what` says it on the page; `says` is filled with a row that is different."""
    import great_expectations as gx

    gxe: Any = importlib.import_module("great_expectations.expectations")  # its names are not exported for type checkers
    repeats = {name: f"no row is out of use as {name}" for name in REPEATS}
    out_of_use = [gxe.ExpectColumnValuesToBeNull(column=name, meta={"what": what}) for name, what in repeats.items()]
    return gx.ExpectationSuite(name="cells", expectations=[*_rows_are_right(gxe), *_images_are_usable(gxe, checks), *out_of_use])


def _stop(what: str, says: str = "") -> dict[str, Any]:
    return {"critical": True, "what": what} | ({"says": says} if says else {})


def _rows_are_right(gxe: Any) -> "list[Expectation]":
    """What no row may break."""
    return [
        gxe.ExpectColumnValuesToMatchRegex(
            column="sha256",
            regex="^[0-9a-f]{64}$",
            meta=_stop("a cell is named by its SHA-256", "{pool}: {path} is no sha256 ({sha256})"),
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="places",
            value_set=[1],
            meta=_stop("a cell is in one pool, once", "{pool}: {path} is in the pools more than once"),
        ),
        gxe.ExpectColumnValuesToBeInSet(column="pool", value_set=list(POOLS), meta=_stop("a pool is one of the four")),
        gxe.ExpectColumnValuesToBeInSet(
            column="label_or_none",
            value_set=list(CLASSES),
            meta=_stop(
                "a label is one of the five classes", "{pool}: {path} has an unknown, missing or stray label ({label_or_none})"
            ),
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="group_sides",
            value_set=[1],
            meta=_stop("a slide or patient is in one pool", "{pool}: {path} is of a group that is split"),
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="stored", value_set=[True], meta=_stop("the image is in the store", "{pool}: {path} has no image in the store")
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="damage",
            value_set=[""],
            meta=_stop(
                "the stored image is whole",
                "{pool}: {path} has a damaged image in the store ({damage}): `dvc checkout` or `dvc pull` brings its shard back",
            ),
        ),
    ]


def _images_are_usable(gxe: Any, checks: CheckParams) -> "list[Expectation]":
    """What an image must be to be learned from; other rows are taken out of use."""
    low, high = checks.brightness
    return [
        gxe.ExpectColumnValuesToBeBetween(
            column="shorter_side", min_value=MIN_SIDE, meta={"what": f"the shorter side is {MIN_SIDE} pixels or more"}
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="area", max_value=MAX_PIXELS, meta={"what": f"the image has {MAX_PIXELS / 1e6:.0f} megapixels at most"}
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="mode", value_set=sorted(RGB_CONVERTIBLE), meta={"what": "the colours can be read as RGB"}
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="brightness", min_value=low, max_value=high, meta={"what": f"the mean grey value is {low:g} to {high:g}"}
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="contrast", min_value=MIN_CONTRAST, meta={"what": f"the contrast is {MIN_CONTRAST:g} or more"}
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="sharpness",
            min_value=checks.min_sharpness,
            meta={"what": f"the sharpness is {checks.min_sharpness:g} or more"},
        ),
    ]


def _pool_suite(checks: CheckParams) -> "ExpectationSuite":
    """Expectations of the pools as a whole, of what is left after the quarantine."""
    import great_expectations as gx

    gxe: Any = importlib.import_module("great_expectations.expectations")  # its names are not exported for type checkers

    most = checks.max_quarantined_share
    low, high = USUAL_SHARE
    enough = {"what": "there are enough cells and classes to train and test", "says": "{pool}: {lack}", "lacks": True}
    quarantined = {
        "what": f"at most {most:.0%} of the cells to learn from, of validation and of test are out of use",
        "says": (
            f"{{pool}}: {{lost:.0f}} of {{size:.0f}} cells ({{quarantined_share:.0%}}) are in quarantine, more than {most:.0%}: "
            "data/quarantine.csv says why; where they are rightly there, raise checks.max_quarantined_share in params.yaml"
        ),
    }
    usual = {
        "what": f"a class is {low:.1%} to {high:.0%} of a held-out pool",
        "says": "{pool}: {share:.1%} of the cells are {class}, which is unusual",
    }
    expectations: list[Expectation] = [
        gxe.ExpectColumnValuesToBeBetween(column="missing_cells", max_value=0, meta=enough | {"critical": True}),
        gxe.ExpectColumnValuesToBeBetween(column="quarantined_share", max_value=most, meta=quarantined | {"critical": True}),
        gxe.ExpectColumnValuesToBeBetween(column="share", min_value=low, max_value=high, meta=usual),
    ]
    return gx.ExpectationSuite(name="pools", expectations=expectations)


def _cell_table(cells: pd.DataFrame) -> pd.DataFrame:
    """The columns of which something is expected; no others, since Great Expectations copies all that it is given."""
    label = cells["label"].astype(object)
    waiting = (cells["pool"] == "unlabelled") & (label == "")
    stray = (cells["pool"] == "unlabelled") & (label != "")
    named = label.where(~stray, "stray: " + label).where(~waiting, None).astype("category")
    as_they_are = ["pool", "sha256", "places", "group_sides", "stored", "damage", "mode", "brightness", "contrast", "sharpness"]
    return cells[as_they_are].assign(
        label_or_none=named,
        shorter_side=cells[["width", "height"]].min(axis=1).astype(float),  # other numbers are compared one by one there
        area=cells["width"].astype(float) * cells["height"],
        **{name: cells["repeats"].where(cells["repeats"] == name) for name in REPEATS},
    )


def _pool_table(cells: pd.DataFrame, checks: CheckParams) -> pd.DataFrame:
    """A row per part of the cells (class `all`) and per class of a held-out pool: how many cells are missing, in words too, and
    shares."""
    used = cells.loc[~cells["quarantined"], ["pool", "label"]]
    rows = [_quarantined_of(cells, pools) for pools in (TO_LEARN_FROM, *((pool,) for pool in HELD_OUT))]
    for pool in POOLS:
        here = used[used["pool"] == pool]
        counts = here["label"].value_counts()
        if pool == "labelled":
            missing = max(0, 2 - sum(counts.get(name, 0) > 0 for name in CLASSES))
            lack = (
                f"has labels of {counted(2 - missing, 'class', 'classes')}, and 2 are the least that a model can learn: ingest "
                "cells with their labels, or bring answers by `wbc labels import`"
            )
            rows.append({"pool": pool, "class": "labelled classes", "missing_cells": missing, "lack": lack})
        for name in CLASSES if pool in HELD_OUT else ():
            count = int(counts.get(name, 0))
            missing = max(0, checks.min_test_cells_per_class - count)
            lack = (
                f"has {counted(count, 'cell')} of {name} in use, and needs {checks.min_test_cells_per_class}: ingest more with "
                "their labels, or lower checks.min_test_cells_per_class in params.yaml"
            )
            rows.append({"pool": pool, "class": name, "missing_cells": missing, "lack": lack, "share": count / max(1, len(here))})
    return pd.DataFrame(rows)


def _quarantined_of(cells: pd.DataFrame, pools: Sequence[str]) -> dict[str, Any]:
    """How many of the cells of these pools are out of use. The labelled and the unlabelled cells came together, and a first
    labelled pool of ten is too small to have a share of its own."""
    out = cells.loc[cells["pool"].isin(pools), "quarantined"]
    lost, size = int(out.sum()), len(out)
    share = lost / size if lost > 1 else 0.0  # a single row is not yet a share
    return {"pool": " and ".join(pools), "class": "all", "quarantined_share": share, "lost": lost, "size": size}


# --- Great Expectations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Results:
    """What came of an expectation for each part of its table; `rows` gives rows of the table by their index."""

    of_parts: list[Any]
    rows: Callable[[list[int]], pd.DataFrame]


def _expect(
    cells: pd.DataFrame, columns: Collection[str], checks: CheckParams, pages: Path
) -> tuple[list[Line], list[Line], list[Check]]:
    """Run the suites, and build Great Expectations' own pages in `pages`; returns critical findings, warnings, and a line for
    each expectation. `columns`: those that all pool files have."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for site in list(context.variables.data_docs_sites or {}):
        context.delete_data_docs_site(site)
    shutil.rmtree(pages, ignore_errors=True)
    context.add_data_docs_site("pools", _site(pages))
    source = context.data_sources.add_pandas("workspace")
    pools = _pool_table(cells, checks)
    suites: dict[str, tuple[ExpectationSuite, Iterable[pd.DataFrame], Callable[[list[int]], pd.DataFrame]]] = {
        "files": (_file_suite(), [pd.DataFrame(columns=sorted(columns))], lambda _: pd.DataFrame()),
        "cells": (_cell_suite(checks), _slices(cells), lambda rows: _cell_table(cells.loc[rows]).join(cells["path"])),
        "pools": (_pool_suite(checks), [pools], lambda rows: pools.loc[rows]),
    }
    results: list[_Results] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (suite, parts, rows) in suites.items():
            batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("now")
            definition = gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add(suite))
            checkpoint = gx.Checkpoint(
                name=name,
                validation_definitions=[context.validation_definitions.add(definition)],
                result_format={"result_format": "COMPLETE", "return_unexpected_index_query": False},
            )
            checkpoint = context.checkpoints.add(checkpoint)
            of_parts = [_results(checkpoint.run(batch_parameters={"dataframe": table})) for table in parts]
            results += [_Results(list(one), rows) for one in zip(*of_parts, strict=True)]
        context.build_data_docs()
    return _sort_out(results)


def _slices(cells: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The table of the cells some rows at a time: what is expected of a row is expected of it alone."""
    for start in range(0, max(1, len(cells)), CHECKED_AT_A_TIME):
        yield _cell_table(cells.iloc[start : start + CHECKED_AT_A_TIME])


def _results(run: Any) -> list[Any]:
    return [one for validation in run.run_results.values() for one in validation.results]


def _site(directory: Path) -> Any:
    return {
        "class_name": "SiteBuilder",
        "site_name": "pools",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(directory.resolve())},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


def _sort_out(results: list[_Results]) -> tuple[list[Line], list[Line], list[Check]]:
    """Critical findings, warnings, and what was checked. An expectation that neither stops nor has words for a row shows in
    quarantine.csv row by row."""
    critical: list[Line] = []
    noted: list[Line] = []
    checked: list[Check] = []
    for result in results:
        parts = result.of_parts
        for part in parts:
            if part.exception_info and part.exception_info.get("raised_exception"):
                raise RuntimeError(f"{part.expectation_config.type}: {part.exception_info['exception_message']}")
        meta, found = parts[0].expectation_config.meta, [part.result for part in parts]
        stops, says = meta.get("critical", False), meta.get("says")
        follows = "the pipeline stops" if stops else "a warning" if says else "the row is out of use"
        whole = [one for one in found if "element_count" not in one]  # of the table as such, not of its rows
        failed = sum(one.get("unexpected_count", 0) for one in found) or int(not all(part.success for part in parts))
        checked.append(Check(meta["what"], 1 if whole else sum(int(one["element_count"]) for one in found), int(failed), follows))
        if not failed or not (stops or says):
            continue
        different = [index for one in found for index in one.get("unexpected_index_list") or []]
        rows = result.rows(different).to_dict("records") if different else [{}]
        lines = [
            Line(
                says.format_map(row) if says and row else f"this is not so: {meta['what']}",
                row.get("sha256") or "",
                meta.get("lacks", False),
            )
            for row in rows
        ]
        (critical if stops else noted).extend(lines)
    return critical, noted, checked
