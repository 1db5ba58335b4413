"""Between two networks: as far to the adapted one as the old site allows (WiSE-FT, Wortsman et al., CVPR 2022)."""

from collections.abc import Callable, Mapping
from typing import Final

from torch import Tensor

STEPS: Final = tuple(step / 10 for step in range(10, 0, -1))


def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], step: float) -> dict[str, Tensor]:
    """Weights a share `step` of the way from `start` to `end`; counters, which are no weights, are those of `end`."""
    return {name: value.lerp(end[name], step) if value.is_floating_point() else end[name] for name, value in start.items()}


def largest_step(score: Callable[[float], float], at_start: float, max_loss: float) -> float:
    """The largest of STEPS at which `score` is at most `max_loss` below `at_start`; 0 where there is none."""
    return next((step for step in STEPS if score(step) >= at_start - max_loss), 0.0)
