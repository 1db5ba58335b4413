"""Starting the server: `serve` for `wbc serve`, `python -m serving.run` for the container."""

import argparse
import ipaddress
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from serving.contract.site import STORE_URL, site_from_environment
from serving.http.limits import Limits
from serving.security.audit import AuditLog
from serving.security.hosts import HOSTS, Hosts
from serving.security.image_key import ImageKeys
from serving.security.keys import KEYS, KEYS_FILE, ApiKeys
from serving.settings import AWAITED, MODEL_DIR, absolute_paths
from serving.upkeep.telemetry import check_settings
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import read_card

LOOPBACK = "127.0.0.1"


def address(host: str | None, keys: ApiKeys) -> str:
    """The IP address to listen on.

    Raises WbcError for a name. Without a key of the operator's own, an address that others can reach is refused, too: the key
    that `wbc serve` makes for the page does not count.
    """
    if host in (None, "", "localhost"):
        return LOOPBACK
    try:
        parsed = ipaddress.ip_address(str(host))
    except ValueError:
        raise WbcError(f"--host {host}: give an IP address, such as 127.0.0.1 or 0.0.0.0") from None
    if not parsed.is_loopback and not keys.for_others:
        how = f"make a key with `wbc keys add`, or set {KEYS} or {KEYS_FILE}"
        raise WbcError(f"--host {host} can be reached by others: {how} first, or listen on {LOOPBACK}")
    return str(parsed)


def command(target: str, host: str, port: int, working_dir: Path | None = None) -> list[str]:
    """The command line of `bentoml serve` for an import string or a Bento directory."""
    where = ["--working-dir", str(working_dir)] if working_dir else []
    # -P: the folder the user stands in must not provide modules.
    return [sys.executable, "-P", "-m", "bentoml", "serve", target, "--host", host, "--port", str(port), *where]


def environment(port: int, model_dir: Path | None, store: Path | None = None, awaited: bool = False) -> dict[str, str]:
    """This process' environment with what BentoML needs: no usage reports, a home of its own for each port, absolute paths.

    BentoML empties `prometheus_multiproc_dir` in its home at every start, under the feet of another server that has the same.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    values = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(cache / "wbc" / f"serve-{port}"), **os.environ}
    values |= absolute_paths(os.environ)
    if model_dir is not None:
        values[MODEL_DIR] = str(model_dir.absolute())  # not resolved: a link may be led to another champion
    if awaited:
        values[AWAITED] = "true"
    if store is not None:
        from serving.reports.store import sqlite_url

        values.setdefault(STORE_URL, sqlite_url(store.resolve()))
    return values


def serve(
    model_dir: Path,
    port: int = 3000,
    host: str | None = None,
    store: Path | None = None,
    show: Callable[[str, int], None] | None = None,
    awaited: bool = False,
) -> NoReturn:
    """Serve a model directory. `bentoml serve` takes the place of this process, and signals reach the server.

    `store` is the SQLite file for reports unless WBC_STORE_URL names another store (or is set to nothing: none). Listens on
    loopback unless `host` says otherwise. `show` is told address and port when all is right. With `awaited` the model may come
    later: readers can name cells before. Raises WbcError for a damaged model or a bad setting, and as `address`.
    """
    if not awaited:
        read_card(model_dir)
    where = Path(__file__).resolve().parent.parent
    _replace("serving.service:WbcService", port, host, environment(port, model_dir, store, awaited), where, show)


def serve_bento(bento: Path, port: int = 3000, host: str | None = None) -> NoReturn:
    """Serve a Bento directory with the model in it; otherwise as `serve`."""
    if not (bento / "bento.yaml").is_file():
        raise WbcError(f"{bento} is not a Bento: bento.yaml is missing")
    _replace(str(bento.resolve()), port, host, environment(port, None))


def _replace(
    target: str,
    port: int,
    host: str | None,
    values: dict[str, str],
    working_dir: Path | None = None,
    show: Callable[[str, int], None] | None = None,
) -> NoReturn:
    Limits.from_environment()
    Hosts.from_environment()
    if audit := AuditLog.from_environment():
        audit.close()  # here only to fail early, in one line
    site_from_environment()
    ImageKeys.from_environment()
    check_settings()
    listen = address(host, ApiKeys.from_environment())
    line = command(target, listen, port, working_dir)
    Path(values["BENTOML_HOME"]).mkdir(parents=True, exist_ok=True)
    if show is not None:
        show(listen, port)
    sys.stdout.flush()
    os.execve(line[0], line, values)  # noqa: S606 - an argument list of our own


def allow_hosts(names: Sequence[str]) -> None:
    """Add host names that the service may be called by to those of WBC_HOSTS."""
    if names:
        os.environ[HOSTS] = ",".join([*filter(None, [os.environ.get(HOSTS, "").strip()]), *names])


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m serving.run (--bento DIR | --model DIR) [--host IP] [--port PORT] [--allow-host NAME]...`."""
    parser = argparse.ArgumentParser(prog="python -m serving.run")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bento", type=Path)
    what.add_argument("--model", type=Path)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=f"as {HOSTS}")
    options = parser.parse_args(arguments)
    allow_hosts(options.allow_host)
    try:
        if options.bento:
            serve_bento(options.bento, options.port, options.host)
        serve(options.model, options.port, options.host)
    except WbcError as error:
        raise SystemExit(f"wbc: {error}") from None


if __name__ == "__main__":
    main()
