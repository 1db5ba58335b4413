"""The service: `wbc serve`, `outbox`, `backup`, `restore`, its keys and its audit log; and `wbc demo`."""

import enum
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.workspace import AUDIT, KEYRING, STORE
from wbc_model.core.errors import WbcError, counted

if TYPE_CHECKING:
    from serving.reports.store import Store
    from serving.upkeep.backup import Places
from flows.cli.command import Json, app, audit_app, emit, here, keys_app


# Literals would do, as in wbc_model/choices.py, but Typer 0.29 refuses a list of them ("complex sub-types").
class ScopeChoice(enum.StrEnum):
    """What a key may do; the names of `serving.security.keys.SCOPES`."""

    classify = "classify"
    review = "review"
    label = "label"
    adjudicate = "adjudicate"
    admin = "admin"


@app.command("serve")
def serve_command(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
    host: Annotated[str | None, typer.Option(metavar="IP", help="Address to listen on; loopback unless a key is made.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A model directory; default: $WBC_MODEL_DIR, else the workspace's champion."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A host name that it may be called by, beside loopback's; also $WBC_HOSTS."),
    ] = None,
) -> None:
    """Serve the champion as an HTTP service, with the workspace's keys, audit log and store (WBC_STORE_URL names another).

    The first start makes a key and shows the page's address with it, once, on the terminal.
    """
    from flows.cli.serve import serve_workspace
    from serving.run import allow_hosts

    allow_hosts(allow_host or [])
    serve_workspace(port, host, model)


@app.command("outbox")
def outbox_command(
    again: Annotated[bool, typer.Option("--again", help="Put the messages that the receiver refused back in the queue.")] = False,
    json_: Json = False,
) -> None:
    """Messages to the hospital's system: how many wait, and which the receiver refused and why."""
    from serving.reports.outbox import backlog, refused, send_again

    store = open_store()
    failed = [{"control_id": one.control_id, "report": one.report_id, "error": one.error} for one in refused(store)]
    result = {"sent_again": send_again(store) if again else 0, **backlog(store)._asdict(), "refused": failed}
    lines = [f"{result['pending']} wait, the oldest for {result['oldest_seconds']:.0f} s; {result['failed']} refused"]
    lines += (
        [f"{result['sent_again']} put back in the queue" + (", which the receiver had refused:" if failed else "")]
        if again
        else []
    )
    lines += [f"  {one['control_id']} of report {one['report']}: {one['error']}" for one in failed]
    lines += ["next: `wbc outbox --again` sends them again, when the receiver takes them"] if failed and not again else []
    emit(result, json_, "\n".join(lines))


def open_store() -> "Store":
    """The store that WBC_STORE_URL names, else the workspace's; WbcError where there is none."""
    from serving.contract.site import STORE_URL
    from serving.reports.store import Store, sqlite_url
    from serving.security.image_key import ImageKeys

    if STORE_URL in os.environ:
        store = Store.from_environment()
    else:
        path = here() / STORE
        store = Store.open(sqlite_url(path), ImageKeys.from_environment()) if path.exists() else None
    if store is None:
        raise WbcError(f"there is no store: {STORE_URL} names none, and `wbc serve` has not made one in this workspace yet")
    return store


@app.command("backup")
def backup_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    json_: Json = False,
) -> None:
    """Back up what the service keeps, also while it runs: reports and images, audit log and keys, as they belong together."""
    from serving.upkeep.backup import back_up

    found = back_up(_places(), out)
    audit = found["audit"]
    lines = [
        f"{counted(found['reports'], 'report')}, "
        + (f"{counted(audit['records'], 'record')} of the audit log" if audit else "no audit log")
    ]
    lines += ["" if found["keys"] else "no keyring", *_image_keys_line(found), f"wrote {out}"]
    lines += [f"`{shlex.join(['wbc', 'restore', str(out)])}` brings it back"]
    emit({**found, "wrote": [str(out)]}, json_, "\n".join(line for line in lines if line))


@app.command("restore")
def restore_command(
    backup: Annotated[Path, typer.Argument(metavar="BACKUP", help="A folder that `wbc backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Even where what is here is newer; it is put aside first.")] = False,
    json_: Json = False,
) -> None:
    """Bring a backup back. The service must be stopped; what was here is backed up beside the backup first."""
    from serving.upkeep.backup import bring_back

    found = bring_back(backup, _places(), replace)
    lines = [f"{counted(found['reports'], 'report')} as of {found['made_at']}"]
    lines += [f"newer than the backup and put aside: {what}" for what in found["newer"]]
    lines += [f"what was here is in {found['aside']}"] if found["aside"] else []
    emit(found, json_, "\n".join([*lines, *_image_keys_line(found), "next: `wbc serve` starts the service again"]))


def _image_keys_line(found: dict[str, Any]) -> list[str]:
    names, apart = found["image_keys"], "the file of these keys is not in the backup, keep it apart"
    return [f"images are encrypted with {', '.join(names)}: {apart}"] if names else []


def _places() -> "Places":
    """Where the service keeps what a backup holds: what the environment names, else the workspace's."""
    from serving.contract.site import STORE_URL
    from serving.reports.store import sqlite_url
    from serving.upkeep.backup import Places

    url = os.environ.get(STORE_URL, "").strip() or sqlite_url(here() / STORE)
    return Places(url, audit_log(None), _keyring(None))


KeysFile = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help=f"The keyring; default: $WBC_API_KEYS_FILE, else {KEYRING}.")
]


def _keyring(file: Path | None) -> Path:
    named = file or os.environ.get("WBC_API_KEYS_FILE")
    return Path(named) if named else here() / KEYRING


@keys_app.command("add")
def keys_add_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use it; written into the audit log.")],
    scope: Annotated[list[ScopeChoice], typer.Option(help="What it may do; give it more than once for more.")],
    person: Annotated[
        str, typer.Option(metavar="NAME", help="Whose key it is: reports are signed and cells are named in this name only.")
    ] = "",
    file: KeysFile = None,
    json_: Json = False,
) -> None:
    """Make a key and print it, once: only its digest is kept."""
    from serving.security.keys import add_key

    path = _keyring(file)
    key = add_key(path, name, [choice.value for choice in scope], person)
    following = "next: send it in the header X-API-Key; a running service takes it at once, `wbc serve` starts one"
    if person:
        following = f"next: hand it to {person}, who signs in on the page with it; a running service takes it at once"
    text = f"{key}\nkept nowhere else: note it now\nwrote {path}\n{following}"
    emit({"name": name, "person": person or None, "key": key, "wrote": [str(path)]}, json_, text)


def _add_a_key(file: Path | None) -> str:
    return "wbc keys add NAME --scope SCOPE" + (f" --file {shlex.quote(str(file))}" if file else "")


@keys_app.command("list")
def keys_list_command(file: KeysFile = None, json_: Json = False) -> None:
    """Names, scopes, age and persons of the keys."""
    from serving.security.keys import list_keys

    keys: list[dict[str, Any]] = [
        {"name": key.name, "scopes": sorted(key.scopes), "created": key.created, "person": key.person or None}
        for key in list_keys(_keyring(file))
    ]
    lines = ["  ".join(filter(None, [key["name"], ",".join(key["scopes"]), key["created"], key["person"]])) for key in keys]
    emit({"keys": keys}, json_, "\n".join(lines) or f"no key\nnext: `{_add_a_key(file)}` makes one")


@keys_app.command("revoke")
def keys_revoke_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `wbc keys list` shows it.")],
    file: KeysFile = None,
    json_: Json = False,
) -> None:
    """Take a key away; a running service refuses it within a second or so."""
    from serving.security.keys import revoke_key

    path = _keyring(file)
    revoke_key(path, name)
    text = f"{name} is revoked\nwrote {path}\nnext: `{_add_a_key(file)}` makes another"
    emit({"name": name, "wrote": [str(path)]}, json_, text)


def audit_log(file: Path | None) -> Path:
    named = file or os.environ.get("WBC_AUDIT_LOG", "").strip()
    return Path(named) if named else here() / AUDIT


@audit_app.command("verify")
def audit_verify_command(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help=f"Default: $WBC_AUDIT_LOG, else {AUDIT}.")] = None,
    contains: Annotated[
        str | None, typer.Option(metavar="HASH", help="A hash that this command gave before: its record must still be there.")
    ] = None,
    archived: Annotated[
        bool, typer.Option("--archived", help="The first files of a rotated log lie elsewhere, on purpose.")
    ] = False,
    json_: Json = False,
) -> None:
    """Check that no line of the audit log was changed, taken out, moved or cut off; names the first that was."""
    from serving.security.chain import verify

    path = audit_log(file)
    found = verify(path, contains, archived)
    torn = f", {counted(found.torn, 'line')} torn by a crash" if found.torn else ""
    first = f"; records before {found.first} lie elsewhere" if found.first > 1 else ""
    calls = counted(found.open, "call has", "calls have")
    waiting = f"\n{calls} no outcome yet: under way, or to be completed by the service at its next start"
    text = f"{path}: {counted(found.records, 'record')}, unbroken{torn}{first}{waiting if found.open else ''}\nlast {found.last}"
    emit({"file": str(path), **asdict(found)}, json_, text)


@audit_app.command("rotate")
def audit_rotate_command(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help=f"Default: $WBC_AUDIT_LOG, else {AUDIT}.")] = None,
    json_: Json = False,
) -> None:
    """Go on in a new file, also under a running service; the chain goes on over it."""
    from serving.security.audit import rotate

    path = audit_log(file)
    moved = rotate(path)
    emit({"file": str(path), "wrote": [str(moved)]}, json_, f"wrote {moved}\nmoved elsewhere, verify with --archived")


@app.command("demo")
def demo_command(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where the demo's workspace goes; default: a temporary folder.")
    ] = None,
    json_: Json = False,
) -> None:
    """All of it, small, on rendered cells: two trainings, then one HTTP request."""
    from flows.cli.demo import demo, demo_text

    result = demo(directory)
    emit(result, json_, demo_text(result))
