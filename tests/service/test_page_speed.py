"""What a decision costs the page: it must not grow with the number of cells, nor take longer than a frame of the screen."""

from pathlib import Path

import numpy as np
import pytest
from live import Server
from page_visits import begin, draw, focused, message
from playwright.sync_api import Browser, CDPSession, Page, expect

FRAME_MS = 16  # of a screen that shows 60 a second
WORK = ("ScriptDuration", "RecalcStyleDuration", "LayoutDuration")


def work(session: CDPSession) -> float:
    """What scripts, styles and layout of the page have cost so far, in ms of the processor."""
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return 1000 * sum(metrics[name] for name in WORK)


def cost_of_decisions(page: Page, count: int) -> np.ndarray:
    """The page's own work for each of `count` decisions, answers of the service included, by a key that is held down."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # of its thread: what else the computer does is not counted
    page.locator("#classes button", has_text="Neutrophil").click()
    page.keyboard.down("Enter")
    costs = []
    while len(costs) < count:
        number, before = focused(page)["number"], work(session)
        page.wait_for_timeout(50)
        page.keyboard.down("Enter")
        page.wait_for_timeout(100)
        if focused(page)["number"] != number:
            costs.append(work(session) - before)
    page.keyboard.up("Enter")
    return np.array(costs)


def test_a_decision_takes_less_than_a_frame(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    page = begin(browser, keeping, "some", draw(tmp_path / "slide", 150, seed=91)).page
    costs = cost_of_decisions(page, 25)
    print(f"150 cells: {np.median(costs):.1f} ms a decision (median), {costs.max():.1f} ms the longest")
    assert np.median(costs) <= FRAME_MS
    page.context.close()


@pytest.mark.slow
def test_a_decision_among_a_thousand_cells_takes_less_than_a_frame(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    page = begin(browser, keeping, "thousand", draw(tmp_path / "slide", 1000, seed=92)).page
    expect(message(page)).to_have_text("1000 images read.", timeout=120_000)
    assert page.locator(".tile").count() == 1000
    costs = cost_of_decisions(page, 100)
    print(f"1,000 cells: {np.median(costs):.1f} ms a decision (median), {costs.max():.1f} ms the longest")
    assert np.median(costs) <= FRAME_MS
    page.context.close()


LONG_TASKS = """() => {
    window.longTasks = [];
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.longTasks.push(entry.duration);
    }).observe({ type: "longtask" });
}"""


@pytest.mark.slow
def test_four_hundred_cells_without_stutter(browser: Browser, keeping: Server, tmp_path: Path) -> None:
    """400 cells are walked through by keyboard, and 40 of them corrected; no task of the page takes longer than 100 ms."""
    page = begin(browser, keeping, "four-hundred", draw(tmp_path / "slide", 400)).page
    expect(message(page)).to_have_text("400 images read.", timeout=60_000)
    page.evaluate(LONG_TASKS)
    page.keyboard.press("Home")
    seen = set()
    for step in range(400):
        if step % 10 == 9:
            page.keyboard.press(str(1 + step % 5))
        page.keyboard.press("ArrowRight")
        seen.add(focused(page)["number"])
    assert len(seen) > 350
    expect(page.locator("#message")).not_to_be_empty()
    durations = np.array(page.evaluate("window.longTasks"))
    print(f"long tasks over 50 ms: {len(durations)}, the longest {durations.max(initial=0):.0f} ms")
    assert durations.max(initial=0) <= 100
    page.context.close()
