"""The settings that name a file or a folder: resolved once, from where the command was typed.

BentoML's processes work in other folders than the one that starts them: a relative path would mean one file to the check at the
start and another to the service.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from serving.contract.site import SITE_FILE, STORE_URL
from serving.security.audit import AUDIT_LOG
from serving.security.image_key import IMAGE_KEY_FILE
from serving.security.keys import KEYS_FILE

MODEL_DIR: Final = "WBC_MODEL_DIR"
AWAITED: Final = "WBC_MODEL_AWAITED"  # set by `wbc serve`: the model directory may not be there yet
PATHS: Final = (MODEL_DIR, KEYS_FILE, AUDIT_LOG, SITE_FILE, IMAGE_KEY_FILE)


def absolute_paths(environment: Mapping[str, str], folder: Path | None = None) -> dict[str, str]:
    """The settings of an environment that name a path, with the path made absolute; `folder` is where the command was typed.

    Links are not followed: one may be led elsewhere while the service runs.
    """
    folder = folder or Path.cwd()
    made = {name: str(folder / environment[name].strip()) for name in PATHS if environment.get(name, "").strip()}
    named = environment.get(STORE_URL, "").strip()
    if named and (url := _absolute_url(named, folder)):
        made[STORE_URL] = url
    return made


def resolve_paths() -> None:
    """Make them absolute in this process' environment, and so in those of the processes that it starts."""
    os.environ.update(absolute_paths(os.environ))


def _absolute_url(url: str, folder: Path) -> str | None:
    """A SQLite URL with the whole path of its file; None for any other, which `Store.open` looks at."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return parsed.set(database=str(folder / str(parsed.database))).render_as_string(hide_password=False)
