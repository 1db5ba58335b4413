"""Every row of docs/faults.md names tests that exist, and every test of a fault has its row."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs/faults.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    """The cells of each row of a fault."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "fault" and set(row[0]) != {"-"}]


def found_in(path: Path) -> set[str]:
    """The tests that a file has."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_row_names_a_test_that_is_there() -> None:
    assert len(rows()) >= 20
    for row in rows():
        assert len(row) == 5, row
        assert all(row), f"an empty cell: {row}"
        named = NAMED.findall(row[-1])
        assert named, row
        gone = [f"{file}::{name}" for file, name in named if not (ROOT / file).is_file() or name not in found_in(ROOT / file)]
        assert not gone, row


def test_every_test_of_a_fault_has_its_row() -> None:
    named = {pair for row in rows() for pair in NAMED.findall(row[-1])}
    there = {
        (str(path.relative_to(ROOT)), name)
        for path in sorted((ROOT / "tests/faults").glob("test_*.py"))
        if path != Path(__file__)
        for name in found_in(path)
    }
    assert there - named == set()
