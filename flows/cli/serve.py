"""`wbc serve`: the workspace's keys, audit log and store, whichever model answers."""

import os
import sys
from pathlib import Path
from typing import Final

from flows.registry.champion import followed, followed_for, registered_cards
from flows.workspace import AUDIT, KEYRING, STORE, find_workspace
from serving.contract.schemas import ModelName
from serving.contract.site import STORE_URL
from serving.first_page import show
from serving.reports.signing import models_unheard_of, say_rendered
from serving.reports.store import Store, sqlite_url
from serving.run import environment, serve
from serving.security.audit import AUDIT_LOG
from serving.security.keys import KEYS, KEYS_FILE, empty_keyring, first_key
from serving.settings import MODEL_DIR
from wbc_model.core.errors import WbcError

CHAMPION: Final = "models/champion"
LABEL_PAGE: Final = "label"
_NO_CHAMPION: Final = (
    "there is no champion yet: readers name cells on /label, and nothing is classified before `wbc champion` has one, which is "
    "then taken in; --model DIR serves another model"
)


def serve_workspace(port: int, host: str | None, model: Path | None) -> None:
    """Serve `model`, else what WBC_MODEL_DIR names, else the champion; replaces this process. Makes a key where there is none.

    Where there is no champion yet the pages for people work, and the first champion is taken in when it comes.

    Outside a workspace a model and keys must be named. Raises WbcError as `serving.run.serve`.
    """
    named = os.environ.get(MODEL_DIR, "").strip()
    chosen = model or (Path(named) if named else None)
    try:
        workspace = find_workspace()
    except WbcError:
        if chosen is None or not (KEYS in os.environ or KEYS_FILE in os.environ):
            raise
        serve(chosen, port, host)
    else:
        _serve_in(workspace, port, host, chosen)


def _serve_in(workspace: Path, port: int, host: str | None, chosen: Path | None) -> None:
    if line := followed(workspace) if chosen is None else followed_for(chosen):
        print(line, file=sys.stderr)
    model = chosen or workspace / CHAMPION
    awaited = chosen is None and not model.is_dir()
    if awaited:
        print(f"wbc: {_NO_CHAMPION}", file=sys.stderr)
    elif not model.is_dir():
        raise WbcError(f"{chosen} is not there; give a model directory with --model DIR")
    mark_rendered(workspace)
    os.environ.setdefault(AUDIT_LOG, str(workspace / AUDIT))
    key = _keys(workspace / KEYRING)
    home = Path(environment(port, None)["BENTOML_HOME"])
    try:
        page = LABEL_PAGE if awaited else ""
        serve(model, port, host, workspace / STORE, lambda address, at: show(address, at, key, home, page), awaited)
    except WbcError:
        if key is not None:
            (workspace / KEYRING).unlink()  # nobody has seen it
        raise


def mark_rendered(workspace: Path) -> None:
    """Let the reports of before the store kept it say that their model learned from drawn cells, where the registry knows that.

    The service asks the card of the model that it serves; those of earlier ones are in the registry alone.
    """
    url = os.environ.get(STORE_URL, sqlite_url(workspace / STORE)).strip()
    if not url or (STORE_URL not in os.environ and not (workspace / STORE).exists()):
        return
    store = Store.open(url)
    try:
        if models := models_unheard_of(store):
            for card in registered_cards(workspace, models):
                if card.rendered:
                    say_rendered(store, ModelName(name=card.name, version=card.version))
    finally:
        store.close()


def _keys(keyring: Path) -> str | None:
    """See to it that there is a key, and that keys which are made later are taken; the key where it was made now."""
    if KEYS_FILE in os.environ:
        return None
    os.environ[KEYS_FILE] = str(keyring)
    if KEYS in os.environ:
        empty_keyring(keyring)
        return None
    return first_key(keyring)
