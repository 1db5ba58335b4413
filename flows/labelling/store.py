"""The store in which a retraining and the service meet: that of WBC_STORE_URL, else the workspace's own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.workspace import STORE

if TYPE_CHECKING:
    from serving.reports.store import Store


def has_store(workspace: Path) -> bool:
    """Whether there is a store for this workspace already."""
    from serving.contract.site import STORE_URL

    return bool(os.environ.get(STORE_URL, "").strip()) or (workspace / STORE).exists()


@contextmanager
def meeting_store(workspace: Path) -> Iterator["Store"]:
    """The store of the workspace for the block; the workspace's own is made where there is none, as `wbc serve` makes it.

    Raises WbcError where it cannot be reached, and while it is being restored.
    """
    from serving.reports.store import Store, sqlite_url
    from serving.security.image_key import ImageKeys

    store = Store.from_environment() or Store.open(sqlite_url(workspace / STORE), ImageKeys.from_environment())
    try:
        with store.held():
            yield store
    finally:
        store.close()
