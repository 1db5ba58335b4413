"""The words of printed reports: of the same files that the pages read, one for each language."""

import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

Language = Literal["en", "de"]
FOLDER: Final = Path(__file__).resolve().parent.parent / "page" / "words"


class Words:
    """One language: words by their path in its file, numbers and moments as it writes them."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._words: dict[str, Any] = json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))

    def __call__(self, key: str, **values: object) -> str:
        """The words of a key such as "pdf.sign"; where there is a word for one and one for several, `count` chooses.

        Raises KeyError for a key that is none.
        """
        found: Any = self._words
        for name in key.split("."):
            found = found[name]
        if isinstance(found, dict):
            found = found["one" if values.get("count") == 1 else "other"]
        text: str = found.format(**values)
        return text

    def kind(self, name: str) -> str:
        """A class or a further kind, for several cells; the site's own name where there is no word."""
        several: dict[str, str] = self._words["several"]
        return several.get(name, name)

    def decimal(self, printed: str) -> str:
        """A number that is printed with a point, as the language writes it."""
        return printed.replace(".", ",") if self.language == "de" else printed

    def moment(self, time: datetime) -> str:
        """A moment, to the minute, in UTC."""
        return f"{time.astimezone(UTC):{'%d.%m.%Y, %H:%M' if self.language == 'de' else '%Y-%m-%d %H:%M'}} UTC"


@cache
def words_of(language: Language) -> Words:
    """The words of a language, read once."""
    return Words(language)
