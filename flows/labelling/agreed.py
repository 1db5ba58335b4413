"""What people have agreed on in the store, taken out of it and into the label log."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from flows import labels
from flows.identity import workspace_name
from wbc_model.cells.conflicts import MACHINES
from wbc_model.cells.pools import Pools
from wbc_model.cells.rejections import quarantined

if TYPE_CHECKING:
    from flows.exchange.answers import Refused
    from serving.labelling.queue import Agreed
    from serving.reports.store import Store

PEOPLE: Final = "people"  # who took an answer back; the store knows their names
ON_THE_PAGE: Final = "on the page"  # how the reason begins of what came from the store
_WHY: Final = {"one": ON_THE_PAGE, "two": f"{ON_THE_PAGE}: two readers agree", "adjudicated": f"{ON_THE_PAGE}: adjudicated"}


@dataclass(frozen=True)
class Came:
    """What was taken out of the store: `labels` of the five classes that were new, and cells that are `none` of the five. Those
    are so no longer that people took `back`. The label log `refused` the others."""

    labels: int = 0
    none: int = 0
    refused: "list[Refused]" = field(default_factory=list)
    back: int = 0

    @property
    def new(self) -> int:
        """Cells of which more is known now."""
        return self.labels + self.none

    @property
    def line(self) -> str:
        """In words; empty where nothing came."""
        counts = {"labels": self.labels, "none of the five classes": self.none, "taken back": self.back}
        parts = [f"{count} {what}" for what, count in counts.items() if count]
        first = f"{self.refused[0].sha256[:12]}: {self.refused[0].reason}" if self.refused else ""
        parts += [f"{len(self.refused)} refused ({first})"] if first else []
        return f"of the people's answers came: {', '.join(parts)}" if parts else ""


def take_agreed(workspace: Path, store: "Store", cycle: int) -> Came:
    """Take all that people have agreed on, or agree on otherwise since; cells that need no answer any more leave the queue.

    What is noted in the store as taken was written here before. Killed in between, it is taken again, which changes nothing.
    """
    from serving.labelling.queue import agreed, taken

    name = workspace_name(workspace)
    found = agreed(store, name)
    came = _take(workspace, found, cycle) if found else Came()
    taken(store, found)
    back = _put_back(workspace, store, cycle)
    leave(workspace, store)
    return replace(came, back=back)


def _put_back(workspace: Path, store: "Store", cycle: int) -> int:
    """Let cells be unlabelled again that were none of the five, and that nobody stands by any more; returns how many."""
    from serving.labelling.queue import taken_back, untaken

    name = workspace_name(workspace)
    found = taken_back(store, name, labels.kinds())
    done = labels.take_back(workspace, found, PEOPLE, f"{ON_THE_PAGE}: taken back", cycle) if found else []
    if done is not None:
        untaken(store, name, found)
    return len(done or [])


def leave(workspace: Path, store: "Store") -> int:
    """Take cells out of the store's open queues that nobody need name any more; returns how many. They have a label by another
    way, such as a file or the oracle, or the data checks took them out of use."""
    from serving.labelling.queue import asked_now, withdraw_cells

    name = workspace_name(workspace)
    asked = set(asked_now(store, name))
    if not asked:
        return 0
    pools = Pools.read(workspace / "data/pools")
    unknown = asked & set(pools.frames["unlabelled"]["sha256"]) - set(pools.none_of_five()["sha256"])
    said = pd.concat([labels.read_log(workspace), labels.read_none_of_five(workspace)])
    said = said.sort_values("labelled_at", kind="stable").drop_duplicates("sha256", keep="last")
    by_page = set(said.loc[said["why"].str.startswith(ON_THE_PAGE), "sha256"])
    left = withdraw_cells(store, name, asked - unknown - by_page)
    return left + withdraw_cells(store, name, unknown & quarantined(workspace / "data"), "quarantined")


def _take(workspace: Path, found: Sequence["Agreed"], cycle: int) -> Came:
    rows = [[one.sha256, one.answer, _readers(one), _moment(one), _WHY[one.how]] for one in found]
    frame = pd.DataFrame(rows, columns=[*labels.COLUMNS[:4], "why"], dtype=str)
    done = labels.take_in(workspace, frame, cycle)
    return Came(done.new - done.none_of_five, done.none_of_five, done.refused)


def _readers(one: "Agreed") -> str:
    """Who gave a label, as the log has it; nobody is taken for a machine because of a name."""
    names = " + ".join(one.readers)
    return f"reader {names}" if names in MACHINES else names


def _moment(one: "Agreed") -> str:
    return str(one.at.strftime("%Y-%m-%dT%H:%M:%SZ"))
