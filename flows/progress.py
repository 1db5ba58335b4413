"""What a retraining says while it runs: a line per cycle on stderr, and on a terminal what it is doing now."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from rich.console import Console

TRAINING_LINE: Final = re.compile(r"update +\d+ of \d+:")


def training_line(updates: int) -> Callable[[dict[str, float]], None]:
    """What `Training.fit` reports to: a line on stderr at each validation step, where no terminal shows its bar."""

    def say(row: dict[str, float]) -> None:
        loss, score = row["validation_loss"], row["validation_macro_f1"]
        line = f"update {row['update']:>5.0f} of {updates}: macro-F1 {score:.1%}, validation loss {loss:.3f}"
        print(line, file=sys.stderr, flush=True)

    return (lambda row: None) if sys.stderr.isatty() else say


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
