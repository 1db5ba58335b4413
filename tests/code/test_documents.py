"""The documents are read once: short sentences, lines that fit, names of commands, parameters and files that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COLUMNS, WORDS = 130, 25
READ_ONCE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
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
    assert [line for line in text.splitlines() if len(line) > COLUMNS and not line.lstrip().startswith(("|", "!["))] == []
