"""What a retraining waits for that asked people, whether it may go on, and the line that says what happens next, and by whom."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flows import labels
from flows.progress import counted
from flows.state import State
from wbc_model.cells.rejections import quarantined
from wbc_model.params import ScheduleParams

if TYPE_CHECKING:
    from serving.labelling.queue import Progress

MOST_READERS: Final = 6  # who are named in the line


@dataclass(frozen=True)
class Wait:
    """Of `asked` cells `answered` have an answer that counts. The retraining goes on at `enough`, or at the `deadline`."""

    asked: int
    answered: int
    enough: int
    deadline: datetime | None = None

    def ready(self, now: datetime) -> str:
        """Why the retraining may go on; empty where it waits. Time that ran out without one answer changes nothing."""
        if self.answered >= self.enough:
            return f"{self.answered} of {self.asked} cells are agreed, and {self.enough} are enough"
        if self.deadline is not None and now >= self.deadline and self.answered:
            return f"the time is up, with {self.answered} of {self.asked} cells agreed"
        return ""

    def overdue(self, now: datetime) -> bool:
        """Whether time ran out without one answer."""
        return self.deadline is not None and now >= self.deadline and not self.answered


def waits_for(workspace: Path, state: State, schedule: ScheduleParams) -> Wait:
    """What a retraining in this state waits for: the cells of the last query, whichever way their answers come. Those that the
    data checks took out of use since are waited for no longer."""
    queue, missing = labels.read_queue(workspace), set(labels.awaited(workspace)["sha256"])
    asked = len(queue) - len(missing & quarantined(workspace / "data"))
    return Wait(asked, len(queue) - len(missing), min(schedule.min_new_labels, asked), deadline_of(state, schedule))


def deadline_of(state: State, schedule: ScheduleParams) -> datetime | None:
    """When the present round's time is up; None where it waits for as long as it takes."""
    if schedule.wait_hours is None or not state.asked_at:
        return None
    return datetime.fromisoformat(state.asked_at) + timedelta(hours=schedule.wait_hours)


def next_step(wait: Wait, progress: "Progress | None", scheduled: bool, now: datetime | None = None) -> str:
    """One line: how far the answers are, who has how much to do, and when the retraining goes on. `scheduled`: it goes on by
    itself; else somebody types `wbc retrain`."""
    now = now or datetime.now(UTC)
    parts = [f"{wait.answered} of {counted(wait.asked, 'cell')} are agreed"]
    if progress is not None:
        parts += _who(progress)
    return "; ".join([*parts, _by_itself(wait, now) if scheduled else _by_hand(wait)])


def said_on_the_page(wait: Wait, line: str, scheduled: bool) -> str:
    """What the page shows of `line`. Where a watch repeats it each minute it is the same; else only what stays true."""
    if scheduled:
        return line
    return f"somebody starts the retraining with `wbc retrain`; {wait.enough} of {counted(wait.asked, 'agreed cell')} are enough"


def _by_itself(wait: Wait, now: datetime) -> str:
    if wait.answered >= wait.enough:
        return "the retraining goes on now"
    if wait.overdue(now):
        return "the time is up, and the retraining goes on with the first answer"
    if wait.ready(now):
        return "the time is up, and the retraining goes on now"
    return f"the retraining goes on at {wait.enough}" + (f", or on {_day(wait.deadline)}" if wait.deadline else "")


def _by_hand(wait: Wait) -> str:
    if wait.answered >= wait.enough:
        return "that is enough: `wbc retrain` goes on"
    return f"`wbc retrain` goes on with what is agreed, and {wait.enough} are enough"


def _who(progress: "Progress") -> list[str]:
    """Who has how much to read, the most first; and what waits for the lead."""
    left = sorted(((count, name) for name, count in progress.left.items() if count), key=lambda one: (-one[0], one[1]))
    named = [f"{name} has {count} to read" if not place else f"{name} {count}" for place, (count, name) in enumerate(left)]
    parts = [", ".join(named[:MOST_READERS]) + (f", {len(left) - MOST_READERS} more" if len(left) > MOST_READERS else "")]
    parts = parts if left else (["nobody has begun to read"] if not progress.readers and progress.open else [])
    verb = "awaits" if progress.disputed == 1 else "await"
    return [*parts, *([f"{progress.disputed} {verb} adjudication"] if progress.disputed else [])]


def _day(moment: datetime) -> str:
    """A moment as people write it, in UTC, as the logs are."""
    return f"{moment.astimezone(UTC):%b} {moment.day}, {moment.astimezone(UTC):%H:%M} UTC"
