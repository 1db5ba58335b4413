"""Day by day: whether the cells of a site are still as usual, under one model. Decision 067 has the reasons.

The first day with enough cells is compared with the cells that the model was chosen by: whether it differs from training is said
once. From then on the site is compared with itself. A day that chance explains joins its usual state, until it has enough cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from flows.monitoring.measures import NAMES, Cells, Compared, compare

LEAST: Final = 100  # cells that are judged; a day with fewer waits for the next days
USUAL: Final = 2000  # cells that a site's usual state has; more of them make no test sharper
PLAIN: Final = 0.001  # a day of which chance explains less than this does not join the usual ones, be it an alarm or not
State = Literal["usual", "alarm", "differs", "few", "unknown"]


class Day(NamedTuple):
    """The cells that a site was asked about on a day of UTC, as 2026-11-29."""

    day: str
    cells: Cells


@dataclass(frozen=True)
class Usual:
    """A site's usual state: its `cells` of the days `since`; all days up to `through` were judged. Empty before the first day."""

    since: str = ""
    through: str = ""
    cells: Cells = field(default_factory=Cells.none)


class Verdict(NamedTuple):
    """What was found of one measure on a day; `against` is what it was compared with, `training` how far it is from that."""

    day: str
    measure: str
    against: Literal["training", "site"]
    cells: int
    compared: Compared | None
    training: float | None
    state: State


def judge(days: Sequence[Day], usual: Usual, training: Cells | None) -> tuple[list[Verdict], Usual]:
    """Judge days in their order that were not judged before; returns the verdicts, and the usual state after them.

    A day of fewer than LEAST cells gets the state `few`, and counts again together with the next.
    """
    verdicts: list[Verdict] = []
    waiting = Cells.none()
    for day in days:
        waiting = waiting.plus(day.cells)
        if len(waiting) < LEAST:
            verdicts += [Verdict(day.day, name, _against(usual), len(waiting), None, None, "few") for name in NAMES]
            continue
        found = [_verdict(day.day, name, waiting, usual, training) for name in NAMES]
        joins = not len(usual.cells) or (len(usual.cells) < USUAL and all(_plain(one) for one in found))
        cells = usual.cells.plus(waiting) if joins else usual.cells
        usual = Usual(usual.since or day.day, day.day, cells)
        verdicts += found
        waiting = Cells.none()
    return verdicts, usual


def _plain(verdict: Verdict) -> bool:
    return verdict.compared is None or verdict.compared.p >= PLAIN


def _against(usual: Usual) -> Literal["training", "site"]:
    return "site" if len(usual.cells) else "training"


def _verdict(day: str, measure: str, now: Cells, usual: Usual, training: Cells | None) -> Verdict:
    from_training = None if training is None else compare(measure, now, training)
    against = _against(usual)
    compared = compare(measure, now, usual.cells) if against == "site" else from_training
    state: State = "usual"
    if compared is None:
        state = "unknown"
    elif compared.drifts:
        state = "alarm" if against == "site" else "differs"
    effect = None if from_training is None else from_training.effect
    return Verdict(day, measure, against, len(now), compared, effect, state)
