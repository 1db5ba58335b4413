"""The version of a function's code changes with what it computes, and with nothing that only a reader sees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wbc_model.cells import decoded
from wbc_model.checks import near_duplicates, quality
from wbc_model.code_version import ROOT, code_version, modules_behind, package_version

FILES = {
    "wbc_model/__init__.py": '"""The learner."""\n\n__version__ = "1.0"\n',
    "wbc_model/work.py": '''"""What is done."""
import json
from typing import TYPE_CHECKING
from wbc_model.near import load
if TYPE_CHECKING:
    from wbc_model.typed import Cell

LIMIT = 3

class Line:
    """Two points."""
    slope: float = 1.0
    """How steep."""

def helper(x):
    """Below the limit."""
    return x if x < LIMIT else (
        LIMIT
    )

def work(cell: "Cell"):
    from wbc_model.lazy import fit
    return fit(helper(load()), Line.slope)

def other():
    return json.dumps({})
''',
    "wbc_model/near.py": "from wbc_model import deep\n\ndef load():\n    return deep.VALUE\n",
    "wbc_model/deep.py": "VALUE = 1\n",
    "wbc_model/lazy.py": "def fit(x, y):\n    return x + y\n",
    "wbc_model/typed.py": "class Cell:\n    side = 3\n",
    "wbc_model/unrelated.py": "ANSWER = 42\n",
    "serving/__init__.py": "",
    "serving/app.py": "from wbc_model.deep import VALUE\n",
    "serving/page.css": "body { margin: 0 }\n",
}


def written(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new", "changes"),
    [
        ("work.py", "return x if", "# as it came\n    return x if", False),
        ("work.py", '"""Below the limit."""', '"""Never above the limit."""', False),
        ("work.py", '    """Below the limit."""\n', "", False),
        ("work.py", "def other", 'def other():\n    """New."""\n\ndef other2', False),
        ("work.py", '"""What is done."""', '"""What has to be done."""', False),
        ("work.py", '"""How steep."""', '"""How steep the line is."""', False),
        ("work.py", "(\n        LIMIT\n    )", "LIMIT", False),
        ("work.py", "import Cell", "import Cell, Other", False),  # only a type checker follows it
        ("work.py", "json.dumps({})", "json.dumps([])", False),  # of a function that `work` does not use
        ("typed.py", "side = 3", "side = 4", False),
        ("unrelated.py", "42", "43", False),
        ("__init__.py", '"1.0"', '"1.1"', False),
        ("work.py", "LIMIT = 3", "LIMIT = 4", True),
        ("work.py", "x < LIMIT", "x <= LIMIT", True),
        ("work.py", "slope: float = 1.0", "slope: float = 2.0", True),
        ("near.py", "deep.VALUE", "-deep.VALUE", True),
        ("deep.py", "VALUE = 1", "VALUE = 2", True),  # two imports away
        ("lazy.py", "x + y", "x - y", True),  # imported inside the function
        ("__init__.py", '__version__ = "1.0"', "import os", True),  # loading a module loads its package
    ],
)
def test_what_makes_a_new_version(tmp_path: Path, name: str, old: str, new: str, changes: bool) -> None:
    before = code_version("wbc_model.work:work", root=written(tmp_path))
    path = tmp_path / "wbc_model" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (code_version("wbc_model.work:work", root=tmp_path) != before) is changes


def test_a_module_can_be_left_out(tmp_path: Path) -> None:
    root = written(tmp_path)
    before = code_version("wbc_model.work:work", ["wbc_model.deep"], root)
    (root / "wbc_model/deep.py").write_text("VALUE = 2\n")
    assert (
        code_version("wbc_model.work:work", ["wbc_model.deep"], root) == before != code_version("wbc_model.work:work", root=root)
    )


@pytest.mark.parametrize(
    ("name", "old", "new", "changes"),
    [
        ("serving/app.py", "VALUE\n", "VALUE  # one\n", False),
        ("wbc_model/unrelated.py", "42", "43", False),
        ("serving/page.css", "0", "1", True),
        ("serving/app.py", "VALUE\n", "VALUE as V\n", True),
        ("wbc_model/deep.py", "1", "2", True),
    ],
)
def test_a_package_counts_whole(tmp_path: Path, name: str, old: str, new: str, changes: bool) -> None:
    before = package_version("serving", written(tmp_path))
    (tmp_path / name).write_text(FILES[name].replace(old, new))
    assert (package_version("serving", tmp_path) != before) is changes


@pytest.mark.parametrize("name", ["wbc_model.nowhere:work", "wbc_model.work:nothing"])
def test_a_name_that_is_nowhere_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(LookupError, match=name):
        code_version(name, root=written(tmp_path))


# --- of any module of ours ------------------------------------------------------------------------------------------------

SOURCES = {path: path.read_text() for room in ("wbc_model", "flows") for path in sorted((ROOT / room).rglob("*.py"))}
TEXTS = st.deferred(lambda: st.sampled_from([text for text in SOURCES.values() if ast.parse(text).body[1:]]))


def version_of(folder: Path, text: str) -> str:
    (folder / "wbc_model").mkdir(exist_ok=True)
    (folder / "wbc_model/subject.py").write_text(text)
    (folder / "wbc_model/entry.py").write_text("from wbc_model import subject\n\ndef run():\n    return subject\n")
    return code_version("wbc_model.entry:run", root=folder)


def commented(text: str, line: int, words: str) -> str:
    """The text with a comment behind one of the lines that are not within a string or a statement of several lines."""
    ends = sorted({node.end_lineno or 0 for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)})
    lines = text.split("\n")
    lines[ends[line % len(ends)] - 1] += f"  # {words}"
    return "\n".join(lines)


def documented(text: str, place: int, words: str) -> str:
    """The text, laid out anew, with other words in the doc string of one of its functions or classes."""
    tree = ast.parse(text)
    owners = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)]
    owner = owners[place % len(owners)]
    if ast.get_docstring(owner) is not None:
        owner.body.pop(0)
    owner.body.insert(0, ast.Expr(ast.Constant(words)))
    return ast.unparse(ast.fix_missing_locations(tree))


def changed(text: str, place: int) -> str | None:
    """The text with one number, text or operator changed; None where it has none."""
    tree = ast.parse(text)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    choices = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Constant) and isinstance(node.value, int | float | str) and id(node) not in alone)
        or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div))
        or (isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Lt | ast.Gt | ast.Eq))
    ]
    if not choices:
        return None
    node = choices[place % len(choices)]
    if isinstance(node, ast.Constant):
        node.value = node.value + "!" if isinstance(node.value, str) else float(node.value) + 7
    elif isinstance(node, ast.BinOp):
        node.op = ast.Mod()
    else:
        node.ops[0] = ast.NotEq()
    return ast.unparse(tree)


WORDS = st.text("abc xyz'", min_size=1, max_size=20)


@settings(max_examples=20, deadline=None)
@given(TEXTS, st.integers(0, 10_000), WORDS)
def test_words_and_layout_of_any_module_make_no_new_version(
    tmp_path_factory: pytest.TempPathFactory, text: str, place: int, words: str
) -> None:
    folder = tmp_path_factory.mktemp("root")
    before = version_of(folder, text)
    for same in (commented(text, place, words), documented(text, place, words), ast.unparse(ast.parse(text))):
        assert version_of(folder, same) == before


@settings(max_examples=20, deadline=None)
@given(TEXTS, st.integers(0, 10_000))
def test_another_constant_or_operator_in_any_module_makes_a_new_version(
    tmp_path_factory: pytest.TempPathFactory, text: str, place: int
) -> None:
    folder, different = tmp_path_factory.mktemp("root"), changed(text, place)
    assume(different is not None and '__version__ = "' not in text)
    assert different is not None
    assert version_of(folder, different) != version_of(folder, text)


# --- what is kept under it ------------------------------------------------------------------------------------------------


def test_what_is_kept_depends_on_the_code_that_makes_it() -> None:
    behind = {function.__name__: set(modules_behind(function)) for function in (quality.measure, decoded.images.preprocess)}
    assert {"wbc_model.core.images", "wbc_model.core.twins", "wbc_model.core.structure"} <= behind["measure"]
    assert {"wbc_model.core.canonical", "wbc_model.core.structure"} <= behind["preprocess"]
    pairs = set(modules_behind(near_duplicates.near_duplicates))
    assert "wbc_model.core.twins" in pairs
    assert not {"wbc_model.cells.store", "wbc_model.core.files", "wbc_model.params"} & (pairs | behind["measure"])


def test_a_version_needs_no_torch() -> None:
    code = "import sys; from wbc_model.code_version import code_version; code_version('flows.pipeline.stages:train');"
    done = subprocess.run(
        [sys.executable, "-c", f"{code} print('torch' in sys.modules)"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "False"


def test_what_was_parsed_once_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = code_version("flows.pipeline.stages:train")
    monkeypatch.setattr(ast, "parse", None)
    assert code_version("flows.pipeline.stages:train") == first


def test_a_checkpoint_depends_on_the_code_of_its_batches() -> None:
    from wbc_model.training.adaptation import SiteBatches
    from wbc_model.training.train import Training

    training, batches = set(modules_behind(Training)), set(modules_behind(SiteBatches))
    assert "wbc_model.training.batches" in training & batches
    assert "wbc_model.training.adaptation:SiteBatches" in batches - training
