"""Files that ask for the same servers are run by one process, which starts them once."""

import ast
from pathlib import Path

import pytest

from tests.conftest import GROUP

FILES = sorted((Path(__file__).parents[1] / "service").glob("test_*.py"))
OF_GROUP = {"pages": {"keeping", "forgetting"}, "stores": {"postgres", "store_url", "blank_url", "empty_tables"}}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_who_asks_for_a_server_is_of_its_group(file: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)]
    asked = {argument.arg for function in functions for argument in function.args.args}
    wanted = {group for group, fixtures in OF_GROUP.items() if asked & fixtures}
    assert not wanted or GROUP.get(f"tests/service/{file.name}") in wanted


def test_a_group_has_no_file_that_is_gone() -> None:
    assert not [name for name in GROUP if not (Path(__file__).parents[2] / name).exists()]
