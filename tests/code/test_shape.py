"""The shape of the code and of its doc strings: short functions, few arguments by place, sentences that are read once."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for room in ("wbc_model", "flows", "serving", "studies") for path in sorted((ROOT / room).rglob("*.py"))]
SCHEMA = ROOT / "serving/reports/migrations/versions"  # a table's columns are its arguments
KINDS = "(?:drawn|labelled|new|test|usable)"
NOUNS = f"(?:{KINDS} )*(?:answers|bytes|cells|conflicts|fields|files|images|labels|records|reports|rows|runs|updates)"
NEVER_ONE = {  # files with a number before a noun that is many whatever happens
    "flows/labels.py",
    "flows/registry/verdicts.py",
    "serving/formats/hl7.py",
    "serving/http/routes.py",
    "serving/inference/engine.py",
    "serving/reports/migrations/versions/r0006_unnamed.py",
    "wbc_model/network/batch_norm_statistics.py",
    "wbc_model/network/model_directory.py",
    "wbc_model/rendering/cells.py",
    "wbc_model/studies/plots.py",
}
MOST_LINES, MOST_LINES_OF_A_CONSTRUCTOR, MOST_BY_PLACE, MOST_WORDS = 50, 25, 7, 25
Function = ast.FunctionDef | ast.AsyncFunctionDef


def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def long_functions(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, Function):
            most = MOST_LINES_OF_A_CONSTRUCTOR if node.name == "__init__" else MOST_LINES
            if (lines := (node.end_lineno or 0) - node.lineno + 1) > most:
                yield f"{node.name} has {lines} lines"


def many_by_place(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Call) and len(node.args) > MOST_BY_PLACE:
            yield f"line {node.lineno}: a call with {len(node.args)} arguments by place"


def long_sentences(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, Function | ast.ClassDef | ast.Module):
            said = re.sub(r"[─┴└┘]+", "\n\n", ast.get_docstring(node) or "")  # of a drawing each box by itself
            for sentence in re.split(r"(?<=[.:;!?])\s+|\n\s*\n", said):
                if len(sentence.split()) > MOST_WORDS:
                    yield " ".join(sentence.split())


def chance_needles(path: Path) -> Iterator[str]:
    """A text without four certain digits: a random hash or a time in it has them one day, and the test fails by chance."""
    for node in nodes(path):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.NotIn) and isinstance(node.left, ast.Constant):
            needle = node.left.value.decode("latin-1") if isinstance(node.left.value, bytes) else str(node.left.value)
            if re.fullmatch(r"[0-9a-f]{1,12}", needle):
                yield f"line {node.lineno}: a hash may hold {needle!r}"


def one_of_many(path: Path) -> Iterator[str]:
    """A number before a noun in the plural, which may be one: `counted` says `1 cell`."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield from re.findall(rf"(?<!of )(?<!of the )\{{(?:len\([^{{}}]*\)|[a-z_]*count|[a-z]+\['[a-z_]+'\])\}} {NOUNS}\b", line)


def test_one_cell_is_no_cells() -> None:
    named = {str(path.relative_to(ROOT)): path for path in FILES if path.parts[len(ROOT.parts)] != "studies"}
    assert {name: found for name, path in named.items() if name not in NEVER_ONE and (found := list(one_of_many(path)))} == {}


@pytest.mark.parametrize("rule", [long_functions, many_by_place, long_sentences])
def test_every_file_keeps_the_rule(rule: object) -> None:
    assert callable(rule)
    broken = {str(path.relative_to(ROOT)): found for path in FILES if path.parent != SCHEMA and (found := list(rule(path)))}
    assert broken == {}


def test_no_test_fails_by_the_chance_of_a_hash() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert {path.name: found for path in tests if (found := list(chance_needles(path)))} == {}


def test_the_rules_find_what_they_are_for(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    words = " ".join(["word"] * 26)
    calls = "f(1, 2, 3, 4, 5, 6, 7, 8)\nassert '4711' not in log\nf'{len(cells)} cells wait'\n"
    path.write_text(f'def f():\n    """{words}."""\n' + "    pass\n" * 50 + calls)
    rules = (long_functions, many_by_place, long_sentences, chance_needles, one_of_many)
    assert [len(list(rule(path))) for rule in rules] == [1] * 5
