"""A study's data: found, ingested and checked as a workspace's are, and kept for the next time."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from flows.studies.provenance import code_of
from wbc_model.acquisition.queue import first_query
from wbc_model.cells.ingest import ingest
from wbc_model.cells.manifest import Plain, root_of
from wbc_model.cells.pools import Pools
from wbc_model.cells.rejections import quarantined
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import write_atomic
from wbc_model.core.lock import locked
from wbc_model.params import RENDERED, Params
from wbc_model.sources.opened import open_source
from wbc_model.studies.study import HOME, Study

if TYPE_CHECKING:
    from wbc_model.studies.learner import Cells, StudyData


REAL_DATA: Final = "WBC_REAL_DATA"
_SPLIT_SEED: Final = 0  # where the manifest names the splits, the seed of a study does not move them


@dataclass(frozen=True)
class Request:
    """What the command line asks for. `data` is a folder that the study's paths are relative to, or the data themselves. A
    `worker` fills the cache and writes nothing else."""

    study: Path
    out: Path | None = None
    data: Path | None = None
    cache: Path | None = None
    seeds: tuple[int, ...] = ()
    jobs: int = 1
    worker: bool = False


def named_data(study: Study) -> dict[str, str]:
    """The data that a study names, by evaluation set."""
    return {HOME: study.file.data, **study.file.also_test}


def find_data(name: str, given: str, request: Request) -> Path | None:
    """Where a study's data lie; None for rendered cells.

    A path is looked for under --data, else under $WBC_REAL_DATA, else beside the study file. A file given by --data takes the
    place of the data that the study names. Raises WbcError where there is nothing.
    """
    folder = Path(os.environ.get(REAL_DATA, request.study.parent)) if request.data is None else request.data
    if name == HOME and folder.is_file():
        place = folder
    elif given == RENDERED:
        return None
    else:
        place = (folder.parent if folder.is_file() else folder) / given
    if not place.exists():
        raise WbcError(f"{request.study}: {place} does not exist: name its folder with --data, or in ${REAL_DATA}")
    return place.resolve()


def prepare(study: Study, sources: dict[str, Path | None], cache: Path, seed: int, say: Callable[[str], None]) -> "StudyData":
    """The cells of a seed, ingested and checked once. Where the manifest names no split, each seed makes its own."""
    from wbc_model.studies.learner import StudyData

    source, params = sources[HOME], study.base
    fixed = source is not None and _names_splits(source)
    folder = _prepared(source, params, _SPLIT_SEED if fixed else seed, cache, True, say)
    pools = Pools.read(folder / "data/pools").without(quarantined(folder / "data"))
    training = set(pools.frames["labelled"]["sha256"]) | set(pools.frames["validation"]["sha256"])
    tests = {HOME: _cells(pools.frames["test"], folder)}
    for name in study.file.also_test:
        other = _prepared(sources[name], params, _SPLIT_SEED, cache, False, say)
        tests[name] = _cells(_all_or_test(Pools.read(other / "data/pools"), training), other)
    return StudyData(_cells(pools.frames["labelled"], folder), _cells(pools.frames["validation"], folder), tests)


def _names_splits(source: Path) -> bool:
    with open_source(source) as origin:
        return bool((origin.manifest({})["split"] != "").any())


def _cells(frame: pd.DataFrame, folder: Path) -> "Cells":
    from wbc_model.studies.learner import Cells

    if frame.empty:
        raise WbcError(f"{folder}: a pool of the study has no cell: its data need labelled training, validation and test cells")
    ordered = frame[["sha256", "label"]].sort_values("sha256").reset_index(drop=True)
    return Cells(ordered, folder / "data/images", folder / ".wbc/decoded")


def _all_or_test(pools: Pools, training: set[str]) -> pd.DataFrame:
    """The test cells of another site: its test split, or all labelled cells where it has none. Never a cell trained on."""
    table = pools.table()
    table = table[table["label"] != ""]
    test = table[table["pool"] == "test"]
    chosen = test if len(test) else table
    return chosen[~chosen["sha256"].isin(training)]


def _prepared(source: Path | None, params: Params, seed: int, cache: Path, check: bool, say: Callable[[str], None]) -> Path:
    """A folder like a workspace with the source's cells in store and pools, all labels known, made where it is missing."""
    from wbc_model.studies.learner import digest

    named = params.data.model_dump(include={"rendered_cells", "validation_share", "test_share"}) if check else {}
    content = [named, params.checks.model_dump() if check else {}, seed, listing(source)]
    folder = cache / "data" / digest([*content, code_of("flows.studies.data:_fill")])
    done = folder / ".wbc/prepared.json"
    with locked(cache / "data.lock"):
        if not done.exists():
            say(f"preparing {f'{source.parent.name}/{source.name}' if source else 'rendered cells'}")
            facts = _fill(folder, source, params, seed, check)
            write_atomic(done, json.dumps(facts, indent=2) + "\n")
    for line in json.loads(done.read_text())["notes"]:
        say(line)
    return folder


def _fill(folder: Path, source: Path | None, params: Params, seed: int, check: bool) -> dict[str, Any]:
    """Ingest with every label revealed, then run the data checks. What they take out of use stays out."""
    from wbc_model.rendering.cells import write_cells

    if source is None:
        source = write_cells(folder / RENDERED, params.data.rendered_cells, seed=0)
    # another site's cells are all for testing: no share of them is set aside for anything else
    shares = {"initial_share": 1.0} | ({} if check else {"validation_share": 0.0, "test_share": 0.0})
    params = params.model_copy(update={"seed": seed, "data": params.data.model_copy(update=shares)})
    with open_source(source) as origin:
        outcome = ingest(origin, folder / "data", params, first_query=first_query)
    notes = [f"{source.name}: {counted(count, 'row')} not in use: {reason}" for reason, count in outcome.reasons.items()]
    if check:
        from flows.pipeline.checks import validate

        found = validate(folder, params)
        lost = sum(found.pools.values()) - sum(found.usable.values())
        notes += [f"{source.name}: {counted(lost, 'cell')} in quarantine after the data checks"] if lost else []
    return {"source": source.name, "pools": outcome.pools, "notes": notes}


def listing(source: Path | None) -> list[Any]:
    """What would change if the data did: each file's name, size and time."""
    if source is None:
        return [RENDERED]
    files = {source.name: source} if source.is_file() else {}
    with open_source(source) as origin:
        if type(origin) is Plain:
            files |= {str(path): path for path in (root_of(source) / path for path in origin.manifest({})["path"])}
        elif source.is_dir():
            files |= {str(path): path for path in source.rglob("*")}
    stats = {name: path.stat() for name, path in sorted(files.items()) if path.is_file()}
    return [[name, status.st_size, status.st_mtime_ns] for name, status in stats.items()]
