"""`wbc watch`: judges the days that are over, draws cells for readers, measures how right the model is, and tells of alarms."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from flows.away import one_try
from flows.labelling.store import has_store, meeting_store
from flows.monitoring import in_use, served
from flows.monitoring.alarms import DRIFT, Alarm, tell_what_is_new
from flows.monitoring.ask import let_copies_go
from flows.monitoring.drift import Verdict, judge
from flows.monitoring.measures import NAMES, Cells
from flows.monitoring.pictures import days_as_svg
from flows.tracking import open_tracker, registry_exists
from flows.workspace import SITES, is_workspace
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import file_sha256
from wbc_model.core.model_card import CARD, REFERENCE, ModelCard, read_card
from wbc_model.core.reference import read_reference
from wbc_model.params import read_params

if TYPE_CHECKING:
    from serving.reports.store import Store

MODELS: Final = ("models/champion", "models/adapted", "models/candidate")


@dataclass
class Watched:
    """What one look found: `judged` days, `alarms` that are new, what `differs` from training or is `missing`.

    Also how each of the `sites` stands, and how many cells were `drawn` for readers.
    """

    judged: int = 0
    alarms: list[Alarm] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    drawn: int = 0

    @property
    def lines(self) -> list[str]:
        """In words, one a line."""
        told = [*(one.line for one in self.alarms), *self.differs, *self.missing, *self.sites]
        told += [f"{counted(self.drawn, 'cell was', 'cells were')} drawn for readers on the page /label"] if self.drawn else []
        return told

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def watch(workspace: Path, today: date | None = None) -> Watched:
    """Judge all days of UTC before `today` that were not judged, for each site and model in the store; tells of new alarms.

    Raises WbcError where there is no store.
    """
    if not has_store(workspace):
        raise WbcError("there is no store to watch: `wbc serve` makes one, or WBC_STORE_URL names one")
    today = today or datetime.now(UTC).date()
    trained = References(workspace)
    found = Watched()
    with meeting_store(workspace) as store:
        for stream in served.streams(store):
            _watch_stream(store, stream, str(today), trained, found)
        _by_the_site(workspace, store, found)
        found.sites += _how_they_stand(store)
        found.alarms = tell_what_is_new(workspace, store)
    return found


class References:
    """By version the cells that a model was chosen by: of the models in the workspace and in those of its sites, and of those in
    their registries. What answered yesterday may have had another put in its place this night."""

    def __init__(self, workspace: Path) -> None:
        self.roots = [workspace, *sorted((workspace / SITES).glob("*/"))]
        self.known: dict[str, Cells | None] = {}
        for folder in [root / name for root in self.roots for name in MODELS]:
            if (folder / CARD).is_file():
                card = read_card(folder)
                if self.known.get(card.version) is None:
                    self.known[card.version] = _cells(folder, card)

    def of(self, version: str) -> Cells | None:
        """Those of a version; None where nothing has its reference."""
        if version not in self.known:
            self.known[version] = next((found for root in self.roots if (found := _registered(root, version))), None)
        return self.known[version]


def _registered(root: Path, version: str) -> Cells | None:
    """The reference cells of a registered model. Where the registry does not answer nothing else waits for it."""
    params = read_params(root / "params.yaml") if is_workspace(root) else None
    if params is None or not registry_exists(root, params):
        return None
    from mlflow.exceptions import MlflowException

    with suppress(WbcError, MlflowException), one_try(), TemporaryDirectory(prefix="wbc-reference-") as name:
        folder = Path(name)
        if open_tracker(root, params).files(version, folder, CARD, REFERENCE):
            card = read_card(folder, verify=False)
            return _cells(folder, card) if card.sha256.get(REFERENCE) == file_sha256(folder / REFERENCE) else None
    return None


def _cells(folder: Path, card: ModelCard) -> Cells | None:
    reference = read_reference(folder, card)
    return None if reference is None else Cells.independent(reference.cells)


def _watch_stream(store: "Store", stream: served.Stream, today: str, trained: References, found: Watched) -> None:
    usual = served.usual_of(store, stream)
    days = served.days_of(store, stream, usual.through, today)
    if not days:
        return
    standing, reference = served.alarms_on(store, stream, days[0].day), trained.of(stream.model_version)
    verdicts, usual = judge(days, usual, reference)
    served.keep(store, stream, verdicts, usual, _news(stream, verdicts, standing, found))
    shown = served.effects(store, stream)
    served.keep_pictures(store, stream.site, [(name, days_as_svg(shown[name])) for name in NAMES if name in shown])
    found.judged += len({one.day for one in verdicts if one.state != "few"})
    if reference is None:
        found.missing.append(
            f"site {stream.site}: model {stream.model_version} has no reference here of what it was made with; a retraining "
            "makes a model that has one"
        )


def _news(stream: served.Stream, verdicts: Sequence[Verdict], standing: set[str], found: Watched) -> list[Alarm]:
    """The alarms that are new, and not ones that stand; what differs from training, or cannot be judged, goes to `found`."""
    alarms = []
    days = dict.fromkeys(one.day for one in verdicts if one.state != "few")
    for day in days:
        of_day = [one for one in verdicts if one.day == day]
        now = {one.measure for one in of_day if one.state == "alarm"}
        if new := [name for name in NAMES if name in now - standing]:
            alarms.append(Alarm(DRIFT, stream.site, stream.model_version, day, tuple(new)))
        if differs := [one.measure for one in of_day if one.state == "differs"]:
            found.differs.append(
                f"site {stream.site}: {', '.join(differs)} differ from training, by the cells of {day}; from now on the site is "
                "compared with itself"
            )
        if unknown := [one.measure for one in of_day if one.state == "unknown" and one.against == "site"]:
            line = f"site {stream.site}: model {stream.model_version} does not say what is needed for {', '.join(unknown)}"
            found.missing += [] if line in found.missing else [line]
        standing = now
    return alarms


def _how_they_stand(store: "Store") -> list[str]:
    """A line for each site: up to which day it was judged, and what is not as usual since when."""
    from serving.watch.overview import watch as overview

    lines = []
    for site in overview(store).sites:
        alarms = [f"{one.measure} not as usual since {one.since}" for one in site.measures if one.state == "alarm"]
        under = [f"recall of {one.label} under its floor" for one in site.in_use if one.alarm]
        few = any(one.state == "few" for one in site.measures)
        how = ", ".join(alarms + under) or ("too few cells yet" if few else "as usual")
        lines.append(f"site {site.site}, up to {site.day}: {how}")
    return lines


def _by_the_site(workspace: Path, store: "Store", found: Watched) -> None:
    """Draw cells for readers where the site wants that, measure by what they said, and let old copies of images go."""
    from serving.contract.site import site_from_environment

    site, floors = site_from_environment(), read_params(workspace / "params.yaml").gate.recall_floor
    found.drawn = in_use.draw(store, site)
    in_use.measure(store, site.name, floors)
    let_copies_go(workspace, site.keep_images)
