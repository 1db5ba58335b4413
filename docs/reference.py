"""Writes docs/reference.md: every command from its own help, every parameter from params.yaml and its comments.

`make reference` runs it. A test says when docs/reference.md is not what it would write.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path

import typer.core
import typer.main
from typer.cli import get_docs_for_click

from flows.cli import app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference.md"
_HEAD = """# Reference

`make reference` writes this page. The commands say of themselves what stands here, and so does `params.yaml`.

- [Commands](#commands)
- [Parameters](#parameters)
"""
_LINE = re.compile(r"( *)(\w+):(?: +(\"[^\"]*\"|\{[^}]*\}|\[[^\]]*\]|[^#\s]+))?(?: +# (.*))?")


def commands() -> str:
    """All commands with their arguments and options, as Typer writes them, one heading deeper."""
    app_command = typer.main.get_command(app)
    app_command.commands = {name: command for name, command in app_command.commands.items() if not command.hidden}
    text = html.unescape(get_docs_for_click(obj=app_command, ctx=typer.Context(app_command), name="wbc"))
    lists = _lists(app_command, "wbc")  # Typer cuts the lines of its own off
    text = re.sub(r"(?<=\*\*Commands\*\*:\n\n)(?:\* .*\n)+", lambda _: next(lists), text)
    return re.sub(r"^#", "##", text, flags=re.MULTILINE).strip()


def _lists(group: typer.core.TyperGroup, name: str) -> Iterator[str]:
    """The list of a group's commands, then those of the groups in it, in the order of the text."""
    lines = (f"* [`{key}`](#{name}-{key}): {_first_line(command.help)}\n" for key, command in group.commands.items())
    yield "".join(lines)
    for key, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from _lists(command, f"{name}-{key}")


def _first_line(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def parameters(text: str) -> Iterator[tuple[str, str, str]]:
    """Key, value and comment of every parameter of a params.yaml. Raises ValueError at a line that is none of these."""
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"params.yaml: {line!r} is not `key: value  # comment`")
        indent, key, value, comment = len(found[1]), found[2], found[3], found[4]
        path = [*(above for above in path if above[0] < indent), (indent, key)]
        if value is not None or comment is not None:
            yield ".".join(name for _, name in path), value or "", comment or ""


def page() -> str:
    """The whole of docs/reference.md."""
    rows = (
        f"| `{key}` | {f'`{value}`' if value else ''} | {comment.replace('|', chr(92) + '|')} |"
        for key, value, comment in parameters((ROOT / "params.yaml").read_text())
    )
    table = "\n".join(["| parameter | value | what it is |", "|---|---|---|", *rows])
    return f"{_HEAD}\n## Commands\n\n{commands()}\n\n## Parameters\n\n{table}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
