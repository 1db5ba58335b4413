"""Which workspace this is: an identity of its own, that notices when the folder was moved or copied.

A moved workspace goes on as the same. A copy becomes another one, and must not write into what the original writes into: its own
MLflow store it has in its folder; where params.yaml names one outside, it needs other names there than the original's.
"""

import contextlib
import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from flows.artifacts import database_of
from flows.workspace import slug
from wbc_model.core.errors import WbcError
from wbc_model.core.files import write_atomic
from wbc_model.params import Params, read_params

FILE: Final = ".wbc/workspace.json"


@dataclass(frozen=True)
class Identity:
    """`id` names the workspace; it was last seen at `path`, as this `inode` of this `device`. Of a copy: what it was
    `copied_from`, and the names in MLflow that it shares with that."""

    id: str
    path: str
    device: int
    inode: int
    copied_from: str = ""
    shares: dict[str, str] = field(default_factory=dict)


def identify(workspace: Path) -> tuple[Identity, str]:
    """The identity of a workspace, made where there is none. The line says, once, that it was moved or is a copy; else it is
    empty."""
    workspace = workspace.resolve()
    known, status = _read(workspace), workspace.stat()
    here = {"path": str(workspace), "device": status.st_dev, "inode": status.st_ino}
    if known is None:
        return _write(workspace, Identity(uuid.uuid4().hex, **here)), ""  # type: ignore[arg-type]
    if known.path == here["path"]:
        if (known.device, known.inode) != (here["device"], here["inode"]):  # brought back from a backup
            known = _write(workspace, Identity(**{**asdict(known), **here}))
        return known, ""
    original = _read(Path(known.path))
    if (known.device, known.inode) == (here["device"], here["inode"]) or original is None or original.id != known.id:
        moved = _write(workspace, Identity(**{**asdict(known), **here}))
        return moved, f"this workspace was moved from {known.path}"
    names = read_params(workspace / "params.yaml").tracking.model_dump()
    copy = _write(workspace, Identity(uuid.uuid4().hex, **here, copied_from=known.path, shares=names))  # type: ignore[arg-type]
    return copy, f"this workspace is a copy of {known.path}: from now on it is one of its own"


def workspace_name(workspace: Path) -> str:
    """The workspace's own name where several share a server: its folder's, and six hex digits of its identity. A moved workspace
    keeps the digits, a copy gets others."""
    return f"{slug(workspace.resolve().name)}-{identify(workspace)[0].id[:6]}"


def check_own_names(workspace: Path, params: Params, uri: str) -> None:
    """Raises WbcError where a copy would write into its original's runs and registered models, in an MLflow store that lies
    outside of both."""
    identity, _ = identify(workspace)
    if not identity.copied_from or database_of(uri, workspace) or not Path(identity.copied_from).is_dir():
        return
    names = params.tracking.model_dump()
    same = [name for name in ("experiment", "model_name") if names[name] == identity.shares.get(name)]
    if same and names["uri"] == identity.shares.get("uri"):
        raise WbcError(
            f"this workspace is a copy of {identity.copied_from} and would write into its MLflow runs and models at {uri}: "
            f"give it other names for {' and '.join(f'tracking.{name}' for name in same)} in params.yaml, or another tracking.uri"
        )


def _read(workspace: Path) -> Identity | None:
    try:
        return Identity(**json.loads((workspace / FILE).read_text(encoding="utf-8")))
    except OSError:
        return None
    except (ValueError, TypeError):
        raise WbcError(f"{workspace / FILE} is damaged: remove it, and the workspace gets a new identity") from None


def _write(workspace: Path, identity: Identity) -> Identity:
    with contextlib.suppress(PermissionError):  # who may only read here has no use for an identity
        write_atomic(workspace / FILE, json.dumps(asdict(identity), indent=1) + "\n")
    return identity
