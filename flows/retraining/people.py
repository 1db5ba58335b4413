"""A retraining and the people who label: it asks them, takes what they agreed on, and knows when it may go on.

The files of `wbc labels` keep working beside the store: an answer counts whichever way it came.
"""

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flows import labels
from flows.identity import workspace_name
from flows.labelling.agreed import Came, leave, take_agreed
from flows.labelling.from_reports import take_from_reports
from flows.labelling.publish import publish_queue, queue_id
from flows.labelling.store import has_store, meeting_store
from flows.labelling.waiting import Part, Wait, deadline_of, in_words, next_parts, said_on_the_page, waits_for
from flows.labelling.worth import Worth, worth_of
from flows.notify import announce
from flows.retraining import fresh_cells
from flows.state import Busy, State, hold_lock, is_locked, label_cycle, read_state
from flows.workspace import note_nameless as note_cells_without_name
from wbc_model.cells.pools import Pools
from wbc_model.cells.rejections import quarantined
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import write_atomic
from wbc_model.core.model_card import CARD, read_card
from wbc_model.params import Params, read_params

if TYPE_CHECKING:
    from serving.labelling.queue import Progress
    from serving.reports.store import Store

_OVERDUE: Final = ".wbc/overdue"  # the queue whose readers were told that its time is up


@dataclass(frozen=True)
class Standing:
    """How labelling by people stands: what is waited for, how far they are, what the answers are worth, and what happens next in
    `parts`. `wait` is None where no retraining waits."""

    wait: Wait | None
    progress: "Progress | None"
    worth: Worth | None
    parts: list[Part]

    @property
    def line(self) -> str:
        """What happens next, in one line."""
        return in_words(self.parts)


def ask(workspace: Path, state: State, params: Params, by_itself: bool) -> Standing:
    """Give the present round's cells to people, once, and say what happens next. What the queue has got since comes too, as after
    a `dvc repro`. Raises WbcError where the store cannot be reached: the same command then asks again.

    `by_itself`: nobody has to type it for the retraining to go on. A person who looks in on a round changes nothing about that.
    """
    from serving.contract.site import site_from_environment
    from serving.labelling.queue import Notice, asked_now, given_up, progress

    name = queue_id(state.key, state.cycle)
    first = state.queue != name
    asked_at = datetime.now(UTC).isoformat(timespec="seconds") if first else state.asked_at
    state.asked_at, state.scheduled = asked_at, by_itself or (state.scheduled and not first)
    with meeting_store(workspace) as store:
        deadline = deadline_of(state, params.schedule)
        notice = Notice(workspace_name(workspace), state.after_cycle + state.cycle, _model(workspace), deadline)
        new = progress(store, notice.workspace).queue_id != name
        there = set(asked_now(store, notice.workspace)) | given_up(store, notice.workspace)
        if new or not _to_name(workspace) <= there:
            publish_queue(workspace, store, name, notice, fresh_cells.waiting(workspace), site_from_environment())
        state.queue = name
        state.write(workspace)
        standing = _stand(workspace, state, params, store)
        _show(store, state, standing)
    if first:  # after the note of it: a kill may tell people twice, but never not at all
        when = f": {standing.line}" if by_itself else ""  # a person at a terminal reads it there
        announce(workspace, f"{workspace.name}: people are asked on the page /label{when}")
    return standing


def _to_name(workspace: Path) -> set[str]:
    return set(labels.awaited(workspace)["sha256"]) - quarantined(workspace / "data")


def left_to_name(workspace: Path) -> int:
    """How many cells of the queue somebody could still name."""
    return len(_to_name(workspace) - cells_given_up(workspace))


def note_nameless(workspace: Path) -> None:
    """Note which cells people could not name, so that the query asks about others. A cell that somebody names all the same may be
    asked about again. Where the store cannot be reached, what was noted stands."""
    from serving.labelling.queue import nameless

    with contextlib.suppress(WbcError):
        if has_store(workspace):
            with meeting_store(workspace) as store:
                found = nameless(store, workspace_name(workspace))
            note_cells_without_name(workspace, found)


def wait_of(workspace: Path, state: State, params: Params) -> Wait | None:
    """What a retraining in this state waits for; None where its queue is gone."""
    if not (workspace / "data/queue.csv").exists():
        return None
    return waits_for(workspace, state, params.schedule, cells_given_up(workspace))


def take(workspace: Path) -> Came:
    """Take what people agreed on in the store into the label log; nothing where there is no store."""
    if not has_store(workspace) or not Pools.exist(workspace / "data/pools"):
        return Came()
    with meeting_store(workspace) as store:
        return take_agreed(workspace, store, label_cycle(workspace))


def take_reports(workspace: Path, params: Params) -> str:
    """Take corrections of signed reports and cells that the service was unsure of into the pools, where the site allows it
    (`labelling.corrections_to_pools`); returns what came, in a line."""
    from serving.contract.site import site_from_environment

    if not site_from_environment().labelling.corrections_to_pools or not has_store(workspace):
        return ""
    with meeting_store(workspace) as store:
        return take_from_reports(workspace, store, params, label_cycle(workspace)).line


def leave_queue(workspace: Path) -> str:
    """Take cells that have got a label by a file out of the store's queue, so that nobody reads them in vain; returns what came
    of it, in a line. The labels are in the log, whether the store can be reached or not."""
    if not has_store(workspace):
        return ""
    try:
        with meeting_store(workspace) as store:
            left = leave(workspace, store)
    except WbcError as error:
        return f"the page still asks about them, until the next retraining: {error}"
    return f"{counted(left, 'cell')} left the queue of the page" if left else ""


def note_overdue(workspace: Path, state: State) -> bool:
    """Note that people were told of the round's time being up; returns whether that is new."""
    path = workspace / _OVERDUE
    told = path.read_text(encoding="utf-8") if path.exists() else ""
    if told == state.queue:
        return False
    write_atomic(path, state.queue)
    return True


def stand(workspace: Path, show: bool = False) -> Standing:
    """How labelling stands now; with `show` the page of the service says it, too."""
    state, params = read_state(workspace), read_params(workspace / "params.yaml")
    if not has_store(workspace):
        return _stand(workspace, state, params, None)
    with meeting_store(workspace) as store:
        standing = _stand(workspace, state, params, store)
        if show and state is not None:
            _show(store, state, standing)
        return standing


def goes_on_by_itself(workspace: Path) -> None:
    """Note that the retraining which waits here goes on by itself, as a watch looks after it; not while somebody is at work."""
    with contextlib.suppress(Busy), hold_lock(workspace, "the watch for labels"):
        state = read_state(workspace)
        if state is not None and state.status == "waiting" and not state.scheduled:
            state.scheduled = True
            state.write(workspace)


def show(workspace: Path) -> None:
    """Take cells that need no answer any more off the page, and let it say what happens next. Where the store cannot be reached
    there is no page, and no training stops for it."""
    with contextlib.suppress(WbcError):
        if has_store(workspace):
            with meeting_store(workspace) as store:
                leave(workspace, store)
            stand(workspace, show=True)


def _stand(workspace: Path, state: State | None, params: Params, store: "Store | None") -> Standing:
    from serving.labelling.queue import given_up, progress

    there = (workspace / "data/queue.csv").exists()
    open_ = there and len(labels.awaited(workspace)) and state is not None and state.rows
    # Of the whole round: the few that are left of it gain little, however much the round does.
    worth = worth_of(workspace, params, labels.read_queue(workspace)) if open_ else None
    seen = progress(store, workspace_name(workspace)) if store is not None else None
    if state is None or state.status != "waiting" or not there:
        return Standing(None, seen, worth, [_not_waiting(state, params, is_locked(workspace))])
    nameless = given_up(store, workspace_name(workspace)) if store is not None else set()
    wait = waits_for(workspace, state, params.schedule, nameless)
    return Standing(wait, seen, worth, next_parts(wait, seen, state.scheduled))


def cells_given_up(workspace: Path) -> set[str]:
    """The cells that nobody is asked about any more since nobody can name them, or since their report was removed. None are known
    where the store cannot be reached: files may have answered, and whoever asks next says what is wrong with it."""
    from serving.labelling.queue import given_up

    with contextlib.suppress(WbcError):
        if has_store(workspace):
            with meeting_store(workspace) as store:
                return given_up(store, workspace_name(workspace))
    return set()


def _not_waiting(state: State | None, params: Params, at_work: bool) -> Part:
    if state is None:
        return {"code": "nobody_asked"}
    if state.status == "waiting":
        return {"code": "queue_gone"}
    if state.status == "running" and at_work:
        return {"code": "training"}
    if state.status == "running":
        return {"code": "interrupted" if state.scheduled else "interrupted_by_hand"}
    return {"code": "none", "labels": params.schedule.min_new_labels}


def _show(store: "Store", state: State, standing: Standing) -> None:
    """Say it over the queue that people see, be it of this retraining or of one before."""
    from serving.labelling.queue import say

    if standing.progress is None or standing.progress.closed or not standing.progress.queue_id:
        return
    parts = said_on_the_page(standing.wait, standing.parts, state.scheduled) if standing.wait else standing.parts
    say(store, standing.progress.queue_id, in_words(parts), standing.worth.to_dict() if standing.worth else None, parts)


def _model(workspace: Path) -> str:
    folder = workspace / "models/candidate"
    return read_card(folder, verify=False).version if (folder / CARD).exists() else ""
