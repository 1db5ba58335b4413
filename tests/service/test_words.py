"""The words of the pages and of the PDF: each language has all of them, none is missing where it is named, none is left over."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from specimens import counted, site

from serving.contract.words import Language, words_of
from serving.http.refused import LEFT, TABLE, UNSIGNABLE
from serving.page.static import FILES, FOLDER
from wbc_model.core.classes import CLASSES

LANGUAGES = ("en", "de")
GROUPS = ("common", "kinds", "several", "label", "report", "pdf", "watch")
NAMED_BY_DATA = ("kinds", "several")  # their keys are names of classes, which no source has to write down
PLURAL = {"one", "other"}
# A word is named by its path, or by the beginning of one: `report.status.${name}` in JavaScript, f"pdf.status.{name}" in Python.
NAMED = re.compile(rf"[\"'`]((?:{'|'.join(GROUPS)})\.[\w.]*)([$&{{]?)")


def words(language: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((FOLDER / "words" / f"{language}.json").read_text(encoding="utf-8"))
    return read


def texts(group: dict[str, Any], path: str = "") -> dict[str, dict[str, str]]:
    """By the path of a word its text; one for one and one for several where there are two."""
    found: dict[str, dict[str, str]] = {}
    for name, value in group.items():
        here = f"{path}.{name}".lstrip(".")
        if isinstance(value, str):
            found[here] = {"": value}
        elif set(value) == PLURAL:
            found[here] = value
        else:
            found |= texts(value, here)
    return found


def sources() -> dict[str, str]:
    """All that names words."""
    files = [FOLDER / name for name in FILES if name.endswith((".html", ".js"))]
    files += sorted((FOLDER.parent / "formats").glob("*.py"))
    return {path.name: path.read_text(encoding="utf-8") for path in files}


ENGLISH = texts(words("en"))


def test_the_groups_are_those_that_the_sources_name() -> None:
    assert set(words("en")) == set(GROUPS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_has_the_same_words_with_the_same_places_to_fill(language: str) -> None:
    others = texts(words(language))
    assert list(others) == list(ENGLISH), "the same keys in the same order"
    for key, variants in ENGLISH.items():
        places = [set(re.findall(r"\{(\w+)\}", text)) for text in (*variants.values(), *others[key].values())]
        assert all(one == places[0] for one in places) or "count" in set.union(*places), key
        assert set(variants) == set(others[key]), key
    assert not [key for key, variants in others.items() for text in variants.values() if text != text.strip()]


def test_every_word_that_is_named_is_there_and_none_is_left_over() -> None:
    used: set[str] = set()
    for name, text in sources().items():
        for key, more in NAMED.findall(text):
            found = {one for one in ENGLISH if one.startswith(key)} if more else {key} & ENGLISH.keys()
            assert found, f"{name} names the word {key}{more}, which words/en.json has not"
            used |= found
    left = [key for key in ENGLISH if key not in used and key.partition(".")[0] not in NAMED_BY_DATA]
    assert not left, f"nothing names {', '.join(left)}"


def test_every_refusal_of_the_service_has_words_in_every_language() -> None:
    """A page says them by the code of the problem, and not by the service's English line."""
    named = re.compile(r"(?:Problem|__init__)\(\s*\w+,\s*\"([a-z-]+)\"")
    codes = {code for path in FOLDER.parent.rglob("*.py") for code in named.findall(path.read_text(encoding="utf-8"))}
    codes |= {*LEFT, *(kind.replace("_", "-") for kind in UNSIGNABLE)}
    assert len(codes) > 50
    for language in LANGUAGES:
        assert words(language)["common"]["problem"].keys() == codes
    places = {name for kind in words("en")["common"]["problem"].values() for name in re.findall(r"\{(\w+)\}", kind)}
    facts = {field.name for error in TABLE for field in dataclasses.fields(error)}
    assert places <= facts | {"limit", "field", "parameter"}, "what the service does not say cannot be filled in"


def test_whatever_happens_next_has_words_in_every_language() -> None:
    """The flow gives it to the page in parts, each with a code."""
    sources = [FOLDER.parents[1] / "flows" / name for name in ("labelling/waiting.py", "retraining/people.py")]
    codes = {code for path in sources for code in re.findall(r'"code": "(\w+)"', path.read_text(encoding="utf-8"))}
    beside = {"readers", "reader", "reader_too", "readers_more", "disputed", "unnamed"}  # made of several, or by a variable
    assert len(codes) > 12
    for language in LANGUAGES:
        assert words(language)["label"]["next"].keys() == (codes | beside | by_choice(sources)) - {"readers"}


def by_choice(sources: list[Path]) -> set[str]:
    """Codes of which one is chosen where it is written."""
    chosen = re.compile(r'"code": "\w+" if [^}]* else "(\w+)"')
    return {code for path in sources for code in chosen.findall(path.read_text(encoding="utf-8"))}


def test_the_classes_have_words_in_every_language() -> None:
    for language in LANGUAGES:
        read = words(language)
        assert set(CLASSES) <= read["kinds"].keys() & read["several"].keys() & read["report"]["short"].keys()


def test_the_pages_write_no_words_of_their_own() -> None:
    """A text of an element is a key, a digit or an arrow; what a person reads comes from the files of words."""
    for name in FILES:
        if not name.endswith(".html"):
            continue
        page = re.sub(r"<noscript>.*?</noscript>|<kbd[^>]*>.*?</kbd>", "", Path(FOLDER / name).read_text(encoding="utf-8"))
        assert not re.findall(r">[^<>]*[A-Za-z]{2}[^<>]*<", page.replace("\n", " ")), name
        assert not re.findall(r'\s(?:title|alt|aria-label|placeholder)="[^"]*[A-Za-z]', page), name


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_report_of_one_cell_says_cell(language: Language) -> None:
    cell, cells = (words_of(language)("pdf.note", count=count, to_review=0).split()[1] for count in (1, 2))
    assert (cell, cells) in {("cell", "cells"), ("Zelle", "Zellen")}
    assert counted(["Monocyte"], site()).note.startswith("1 cell counted, ")
