"""What a retraining says while it runs: a line per cycle on stderr, and on a terminal also what it is doing now."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console

TRAINING_LINE: Final = re.compile(r"update +\d+ of \d+:")
_ROWS: Final = ".wbc/training.jsonl"


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 label, 2 labels."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def training_line(updates: int) -> Callable[[dict[str, float]], None]:
    """What `Training.fit` reports to: a line on stderr at each validation step, where no terminal shows its bar."""

    def say(row: dict[str, float]) -> None:
        loss, score = row["validation_loss"], row["validation_macro_f1"]
        line = f"update {row['update']:>5.0f} of {updates}: macro-F1 {score:.1%}, validation loss {loss:.3f}"
        print(line, file=sys.stderr, flush=True)

    return (lambda row: None) if sys.stderr.isatty() else say


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
        """Show what is being done while the block runs; yields a function that changes it. Nothing without a terminal."""
        if not self.console.is_terminal:
            yield lambda step: None
            return
        with self.console.status(what) as status:
            yield lambda step: status.update(step)

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
