"""The documents are read once: short sentences, lines that fit, and no command, option or parameter that is not there."""

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from flows.cli import app
from serving.http.app import create_app

ROOT = Path(__file__).parents[2]
COLUMNS, WORDS = 130, 25
READ_ONCE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "studies/README.md", *sorted((ROOT / "docs").glob("*.md"))]
DECISIONS = sorted((ROOT / "docs/decisions").glob("*.md"))
_FENCE = re.compile(r"^ *```.*?^ *```[^\n]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^()\s]*\)")
_ABBREVIATED = re.compile(r"\b(al|vs|Dr)\.")


def _prose(text: str) -> str:
    """The text without what is no prose: code blocks, tables, headings; a link is its words, a span of code is one word."""
    text = _FENCE.sub("\n\n", text)
    text = re.sub(r"^ *\|.*$|^ {4,}\S.*$|^#+ .*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]+`", "code", text)
    return _LINK.sub(r"\1", text)


def _sentences(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) )", _prose(text)):
        line = _ABBREVIATED.sub(r"\1", " ".join(paragraph.split()))
        yield from re.split(r"(?<=[.!?])[\"')*]*\s+(?=[\"'(*]*[A-Z0-9]|code|[a-z]+[A-Z])", line)


def _words(sentence: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in sentence.split())


def _names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", READ_ONCE, ids=_names)
def test_no_sentence_has_to_be_read_twice(path: Path) -> None:
    assert [s for s in _sentences(path.read_text()) if _words(s) > WORDS] == []


@pytest.mark.parametrize("path", [*READ_ONCE, *DECISIONS], ids=_names)
def test_lines_fit_the_columns_of_the_code(path: Path) -> None:
    text = _FENCE.sub("", path.read_text())
    assert [line for line in text.splitlines() if len(line) > COLUMNS and not line.lstrip().startswith(("|", "![", "* "))] == []


def test_the_reference_is_what_the_commands_say() -> None:
    reference = runpy.run_path(str(ROOT / "docs/reference.py"))
    assert (ROOT / "docs/reference.md").read_text() == reference["page"](), "run `make reference`"


def _lines_of_code(text: str) -> Iterator[str]:
    for block in _FENCE.findall(text):
        yield from block.splitlines()[1:-1]
    yield from re.findall(r"`([^`]+)`", " ".join(_FENCE.sub("", text).split()))


def _calls(text: str) -> Iterator[list[str]]:
    """The words of each `wbc ...`, without what follows a comment, a pipe or a second command."""
    for line in _lines_of_code(text):
        for call in re.findall(r"(?:^|&& |\$\()(wbc [^#|;&)]*)", line):
            yield shlex.split(call.replace("'", ""))[1:]


def _missing(words: list[str]) -> str | None:
    """The first command or option among the words of a call that is not there."""
    command = typer.main.get_command(app)
    while words and (inner := getattr(command, "commands", None)):
        name, *words = words
        if name.startswith("-") or not name.islower():
            return None  # `wbc --help`, `wbc COMMAND`
        if name not in inner:
            return name
        command = inner[name]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    return next((word for word in words if re.match(r"--\w", word) and word not in options), None)


@pytest.mark.parametrize("path", [*READ_ONCE, *DECISIONS], ids=_names)
def test_every_command_that_is_named_is_there(path: Path) -> None:
    assert [(words, gone) for words in _calls(path.read_text()) if (gone := _missing(words))] == []


@pytest.mark.parametrize("path", READ_ONCE, ids=_names)
def test_every_parameter_that_is_named_is_there(path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert [name for name in _parameters(path.read_text(), params) if not _there(name, params)] == []


def test_a_name_that_is_gone_is_found() -> None:
    code = "```sh\nwbc labels exprot FILE  # wbc nothing\n```\n"
    text = f"{code}`wbc retrain --soon`, `cd x && wbc trian` and `train.ema`, `train.emma: 1`, `model.json`"
    assert [_missing(words) for words in _calls(text)] == ["exprot", "--soon", "trian"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert [_there(name, params) for name in _parameters(text, params)] == [True, False]
    assert not _there("train.nothing.at.all", params)
    assert _there("model.init_weights", params)
    long = "one " * WORDS
    text = f"{long}end. Short (et al. 2020) `a b c` [text](x.md).\n\n| {long} |\n"
    assert [words for s in _sentences(text) if (words := _words(s))] == [WORDS + 1, 6]


def _parameters(text: str, params: dict[str, object]) -> list[str]:
    """Whatever looks like a parameter in code: a section of params.yaml and names after it, but no file."""
    found = re.findall(rf"(?<![\w./])(?:{'|'.join(params)})(?:\.[a-z_0-9]+)+(?![\w/(])", " ".join(_lines_of_code(text)))
    return [name for name in found if name.rpartition(".")[2] not in {"json", "onnx", "csv", "yaml"}]


def _there(name: str, params: object) -> bool:
    for key in name.split("."):
        if not isinstance(params, dict) or key not in params:
            return False
        params = params[key]
    return True


@pytest.mark.parametrize("path", [*READ_ONCE, *DECISIONS], ids=_names)
def test_every_file_that_is_named_is_there(path: Path) -> None:
    """Files and folders of the repository; a study's name stands for its folder."""
    code = " ".join(_lines_of_code(path.read_text()))
    named = re.findall(r"(?<![\w./])((?:wbc_model|flows|serving|studies|tests|docs|deploy)/[\w./-]*\w)", code)
    named = [name for name in named if "NAME" not in name]
    assert [name for name in named if not ((ROOT / name).exists() or (ROOT / f"{name}.py").exists())] == []


def test_the_index_has_every_page_and_every_decision_by_its_title() -> None:
    index = " ".join((ROOT / "docs/index.md").read_text().split())
    titles = {path.name: path.read_text().splitlines()[0].removeprefix("# ") for path in DECISIONS}
    lines = [f"[{title}](decisions/{name})" for name, title in titles.items()]
    pages = [f"({path.name})" for path in sorted((ROOT / "docs").glob("*.md")) if path.stem != "index"]
    assert [line for line in [*lines, *pages] if line not in index] == []


def test_every_call_of_the_service_is_in_the_documents() -> None:
    text = "".join((ROOT / f"docs/{name}.md").read_text() for name in ("http", "reports"))
    described = {re.sub(r"\{\w+\}|\$[A-Z]+\b", "{}", path) for path in re.findall(r"/v1/[\w/{}$.]*[\w}]", text)}
    calls = {re.sub(r"\{\w+\}", "{}", path) for path in create_app().openapi()["paths"]}
    assert sorted(calls - described) == []


def test_the_readme_shows_results_within_one_screen() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    findings = [number for number, line in enumerate(lines, 1) if line.startswith("- **") and number <= 45]
    assert len(findings) == 5
