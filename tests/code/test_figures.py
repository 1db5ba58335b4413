"""A figure in the README and in the results is one of the studies that its paragraph or section links."""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
ROUNDED = 0.0501  # of a figure with one decimal
SCORES = ["accuracy", "macro_f1", "balanced_accuracy"]
PARTS = {"README.md": r"^- ", "docs/results.md": r"^## "}  # what begins a part that links its studies
Figure = tuple[float, float]  # a mean over seeds and its standard deviation, in per cent


def figures(text: str) -> list[Figure]:
    return [(float(mean), float(spread)) for mean, spread in re.findall(r"(\d+\.\d+) ± (\d+\.\d+)", " ".join(text.split()))]


def measured(report: Path) -> Iterator[Figure]:
    """What a report says, and what the rows beside it come to."""
    yield from figures(report.read_text(encoding="utf-8"))
    rows = report.parent / "results.csv"
    if report.name == "report.md" and rows.is_file():
        groups = pd.read_csv(rows).groupby(["test", "arm", "labels"])[SCORES]
        means, spreads = 100 * groups.mean(), 100 * groups.std()
        yield from zip(means.to_numpy().ravel(), spreads.to_numpy().ravel(), strict=True)


def unfounded(text: str, part: str, folder: Path) -> list[Figure]:
    found = []
    for section in re.split(part, text, flags=re.MULTILINE):
        reports = {(folder / name).resolve() for name in re.findall(r"\]\(([^)#]*studies/[^)#]*\.md)\)", section)}
        there = [figure for report in reports for figure in measured(report)]
        found += [
            (mean, spread)
            for mean, spread in figures(section)
            if not any(abs(mean - other) <= ROUNDED and abs(spread - around) <= ROUNDED for other, around in there)
        ]
    return found


@pytest.mark.parametrize(("name", "part"), PARTS.items())
def test_every_figure_is_that_of_a_study(name: str, part: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(figures(text)) >= 7
    assert unfounded(text, part, (ROOT / name).parent) == []


def test_a_figure_of_no_study_is_found() -> None:
    text = "- 97.4 ±\n0.4 and 97.5 ± 0.4 ([few](studies/few_labels/report.md))\n- 98.0 ± 0.3 of the rows, without a link\n"
    assert unfounded(text, PARTS["README.md"], ROOT) == [(97.5, 0.4), (98.0, 0.3)]
