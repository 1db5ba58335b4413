"""What a retraining waits for that asked people, whether it may go on, and what happens next, and by whom.

What happens next is in parts: each has a `code` and its numbers. The words for them are those of the page, so that a page can say
them in its own language.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows import labels
from flows.state import State
from serving.contract.words import words_of
from wbc_model.cells.rejections import quarantined
from wbc_model.params import ScheduleParams

if TYPE_CHECKING:
    from serving.labelling.queue import Progress

Part = dict[str, Any]

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


def waits_for(workspace: Path, state: State, schedule: ScheduleParams, given_up: Collection[str] = ()) -> Wait:
    """What a retraining in this state waits for: the cells of the last query, whichever way their answers come. Those that the
    data checks took out of use since are waited for no longer, and neither are those that the store has `given_up`."""
    queue, missing = labels.read_queue(workspace), set(labels.awaited(workspace)["sha256"])
    asked = len(queue) - len(missing & {*quarantined(workspace / "data"), *given_up})
    return Wait(asked, len(queue) - len(missing), min(schedule.min_new_labels, asked), deadline_of(state, schedule))


def deadline_of(state: State, schedule: ScheduleParams) -> datetime | None:
    """When the present round's time is up; None where it waits for as long as it takes."""
    if schedule.wait_hours is None or not state.asked_at:
        return None
    return datetime.fromisoformat(state.asked_at) + timedelta(hours=schedule.wait_hours)


def next_parts(wait: Wait, progress: "Progress | None", scheduled: bool, now: datetime | None = None) -> list[Part]:
    """How far the answers are, who has how much to do, and when the retraining goes on. `scheduled`: it goes on by itself; else
    somebody types `wbc retrain`."""
    parts: list[Part] = [{"code": "agreed", "agreed": wait.answered, "count": wait.asked}]
    if progress is not None:
        parts += _who(progress)
    return [*parts, _by_itself(wait, now or datetime.now(UTC)) if scheduled else _by_hand(wait)]


def said_on_the_page(wait: Wait, parts: list[Part], scheduled: bool) -> list[Part]:
    """What the page shows of these. Where a watch repeats them each minute it is the same; else only what stays true."""
    return parts if scheduled else [{"code": "somebody", "enough": wait.enough, "count": wait.asked}]


def in_words(parts: list[Part]) -> str:
    """All of it in one line, in the words that the page has for it."""
    return "; ".join(_in_words(**part) for part in parts)


def _in_words(code: str, readers: Sequence[Mapping[str, Any]] = (), more: int = 0, until: str = "", **numbers: int) -> str:
    words = words_of("en")
    if code == "readers":
        named = [words("label.next.reader_too" if place else "label.next.reader", **one) for place, one in enumerate(readers)]
        return ", ".join([*named, *([words("label.next.readers_more", more=more)] if more else [])])
    return words(f"label.next.{code}", until=_day(until) if until else "", **numbers)


def _by_itself(wait: Wait, now: datetime) -> Part:
    if not wait.asked:
        return {"code": "all_unnamed"}
    if wait.answered >= wait.enough:
        return {"code": "now"}
    if wait.overdue(now):
        return {"code": "first_answer"}
    if wait.ready(now):
        return {"code": "time_up"}
    if wait.deadline is None:
        return {"code": "enough", "enough": wait.enough}
    return {"code": "enough_or_on", "enough": wait.enough, "until": wait.deadline.isoformat()}


def _by_hand(wait: Wait) -> Part:
    if not wait.asked:
        return {"code": "all_unnamed"}
    return {"code": "enough_by_hand"} if wait.answered >= wait.enough else {"code": "by_hand", "enough": wait.enough}


def _who(progress: "Progress") -> list[Part]:
    """Who has how much to read, the most first; what waits for the lead, and what nobody can name."""
    left = sorted(((count, name) for name, count in progress.left.items() if count), key=lambda one: (-one[0], one[1]))
    named = [{"name": name, "left": count} for count, name in left[:MOST_READERS]]
    parts: list[Part] = [{"code": "readers", "readers": named, "more": len(left) - len(named)}] if left else []
    if not left and not progress.readers and progress.open:
        parts.append({"code": "nobody"})
    counts = {"disputed": progress.disputed, "unnamed": progress.unnamed}
    return [*parts, *({"code": code, "count": count} for code, count in counts.items() if count)]


def _day(moment: str) -> str:
    """A moment as people write it, in UTC, as the logs are."""
    then = datetime.fromisoformat(moment).astimezone(UTC)
    return f"{then:%b} {then.day}, {then:%H:%M} UTC"
