"""The pictures of the page /watch: a measure's days as SVG, without a word, since the page speaks several languages."""

import io
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Final

from flows.monitoring.measures import FLOOR

GREY: Final = "#808080"  # of axes and limits: it can be seen on a light page and on a dark one
DAYS: Final = 30  # that are shown
TICKS: Final = 4  # days that are written out
Point = tuple[str, float | None, float | None, str]  # day, effect, effect from training, state


def days_as_svg(points: Sequence[Point]) -> bytes:
    """The effect of each day as a dot, alarms as red squares, the distance from training as a line, the floor dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    shown = points[-DAYS:]
    with matplotlib.rc_context({"svg.hashsalt": "wbc", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.2, 1.7), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(FLOOR, color=GREY, linewidth=1, linestyle="--")
        trained = [(date.fromisoformat(day), far) for day, _, far, _ in shown if far is not None]
        if trained:
            axes.plot(*zip(*trained, strict=True), color=GREY, linewidth=1)
        for state, colour, marker in (("usual", "#0072B2", "o"), ("differs", "#E69F00", "D"), ("alarm", "#D55E00", "s")):
            of_state = [(date.fromisoformat(day), effect) for day, effect, _, was in shown if was == state and effect is not None]
            if of_state:
                axes.plot(*zip(*of_state, strict=True), color=colour, marker=marker, linestyle="none", markersize=5)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        days = [date.fromisoformat(day) for day, *_ in shown]
        axes.set_xlim(days[0] - timedelta(days=1), days[-1] + timedelta(days=1))  # type: ignore[arg-type]
        ticks = days[:: -(-len(days) // TICKS)]  # as all languages read them
        axes.set_xticks(ticks, [str(day) for day in ticks])  # type: ignore[arg-type]
        axes.tick_params(colors=GREY)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()
