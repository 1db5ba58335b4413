"""What a retraining says while it runs: a line per cycle on stderr, and what it is doing now."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console

TRAINING_LINE: Final = re.compile(r"update +\d+ of \d+:")
SAY_SECONDS: Final = 15.0
LINE_SECONDS: Final = 60.0
_ROWS: Final = ".wbc/training.jsonl"


class TrainingLines:
    """What `Training.fit` reports to: lines on stderr, where no terminal shows its bar.

    The first update has a line, then an update every SAY_SECONDS, with the time that is left; and so has each validation step.
    The first update is slower than the others, many times on some machines: the speed is that of those after it.
    """

    def __init__(self, updates: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.updates, self.clock, self.quiet = updates, clock, sys.stderr.isatty()
        self.began = self.said_at = clock()
        self.first = 0  # the update that this process began with: a training may go on from a checkpoint

    def updated(self, update: int) -> None:
        """Called after each update, with how many there were."""
        now = self.clock()
        if not self.first:
            slowest = (now - self.began) * (self.updates - update)
            self._say(update, f"about {duration(slowest)} left at the speed of this first one, the slowest", now)
            self.first, self.began = update, now
        elif now - self.said_at >= SAY_SECONDS:
            left = (now - self.began) / (update - self.first) * (self.updates - update)
            self._say(update, f"about {duration(left)} left", now)

    def validated(self, row: dict[str, float]) -> None:
        """Called at each validation step, with its row of the history."""
        loss, score = row["validation_loss"], row["validation_macro_f1"]
        self._say(row["update"], f"macro-F1 {score:.1%}, validation loss {loss:.3f}", self.clock())

    def _say(self, update: float, what: str, now: float) -> None:
        if not self.quiet:
            print(f"update {update:>5.0f} of {self.updates}: {what}", file=sys.stderr, flush=True)
        self.said_at = now


def duration(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `3 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def noted(workspace: Path, say: Callable[[dict[str, float]], None]) -> Callable[[dict[str, float]], None]:
    """`say`, which also appends each row of the training's history to a file, for whoever follows the training from outside."""
    path = workspace / _ROWS

    def note(row: dict[str, float]) -> None:
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        say(row)

    return note


class TrainingRows:
    """The rows that a training in this workspace notes while it runs."""

    def __init__(self, workspace: Path) -> None:
        """Forget the rows of trainings before."""
        self.path, self.place = workspace / _ROWS, 0
        self.path.unlink(missing_ok=True)

    def new(self) -> list[dict[str, float]]:
        """The rows that came since the last call; a row that is half written comes with the next."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.place)
            whole, end, _ = file.read().rpartition(b"\n")
        self.place += len(whole + end)
        return [json.loads(line) for line in whole.splitlines()]


class Progress:
    """Short progress lines; everything goes to stderr."""

    def __init__(self, log: Callable[[str], object] = lambda line: None) -> None:
        """`log` is given every line too."""
        self.console, self.log = Console(stderr=True, highlight=False, soft_wrap=True), log

    def say(self, line: str) -> None:
        """One line."""
        self.console.print(line, markup=False)
        self.log(line)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[Callable[[str], None]]:
        """Show what is being done while the block runs; yields a function that changes it. Without a terminal it is a line at
        most every LINE_SECONDS."""
        if not self.console.is_terminal:
            yield self._now_and_then()
            return
        with self.console.status(what) as status:
            yield lambda step: status.update(step)

    def _now_and_then(self) -> Callable[[str], None]:
        said_at = time.monotonic()

        def say(step: str) -> None:
            nonlocal said_at
            if (now := time.monotonic()) - said_at >= LINE_SECONDS:
                self.console.print(step, markup=False)
                said_at = now

        return say

    @contextlib.contextmanager
    def cycle(self, number: int, step: int, rounds: int) -> Iterator[Callable[[str], None]]:
        """As `doing`, for the cycle `number`, step `step` of `rounds` of this retraining."""
        with self.doing(f"cycle {number}") as show:
            yield lambda what: show(f"cycle {number} ({step} of {rounds}): {what}")

    def row(self, row: dict[str, Any]) -> None:
        """The line of a finished cycle."""
        self.say(
            f"cycle {row['cycle']:>3}   labels {row['labels']:>6}   accuracy {row['accuracy']:7.2%}   "
            f"macro-F1 {row['macro_f1']:7.2%}   {row['seconds']:6.1f} s   {row['pools']}"
        )
