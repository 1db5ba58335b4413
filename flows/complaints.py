"""The one place where an error becomes the line that a person reads.

A WbcError is that line already. An error of the operating system names its file and what to do. An error of a library is its
first line, and the library's part in plain words. An error that nobody has thought of says so. A log file
has all of the last two.
"""

import errno
import os
import platform
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from wbc_model.core.errors import WbcError

FOLDER: Final = ".wbc/logs"
FULL: Final = "no space left on the disk; finished work is kept, and with more space the same command continues"
_PROBE: Final = 4096  # bytes
_SAID: Final = ("no space left on", "disk is full")  # by the system, and by SQLite, in what a library or a child says of it
# Libraries by the module that their errors come from, and what they do here in plain words.
LIBRARIES: Final = {
    "sqlalchemy": "a database",
    "sqlite3": "a database",
    "alembic": "a database",
    "psycopg": "a database",
    "mlflow": "MLflow's registry",
    "prefect": "Prefect",
    "httpx": "a server",
    "httpcore": "a server",
    "requests": "a server",
    "urllib3": "a server",
    "dvc": "DVC",
    "pyarrow": "an image shard",
    "safetensors": "a model's weights",
    "safetensors_rust": "a model's weights",
    "openvino": "the inference engine",
    "onnx": "a model's graph",
    "great_expectations": "the data checks",
    "torch": "the training",
    "bentoml": "BentoML",
    "yaml": "a YAML file",
    "ruamel": "a YAML file",
    "pandas": "a table",
    "json": "a JSON file",
}


def line_of(error: BaseException, workspace: Path | None) -> str:
    """The line for an error. One that is neither ours nor the system's goes to a log file first, as a whole."""
    if isinstance(error, WbcError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory for this; finished work is kept, and the same command continues"
    if is_full(error) or (workspace is not None and takes_nothing(workspace)):
        return FULL
    if isinstance(error, OSError) and (line := _of_the_system(error)):
        return line
    library = next((LIBRARIES[name] for name in _modules(error) if name in LIBRARIES), None)
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "") or type(error).__name__
    where = _log(error, workspace)
    if library:
        return f"{library} failed: {said[:500]} (all of it: {where})"
    return f"wbc itself failed, {type(error).__name__}: {said[:500]} (report it with {where})"


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that it came of, is that of a full disk."""
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno == errno.ENOSPC) or says_full(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def says_full(text: str) -> bool:
    """Whether a text speaks of a full disk."""
    return any(words in text.lower() for words in _SAID)


def takes_nothing(folder: Path) -> bool:
    """Whether the disk of a folder is full: a library, or a server that keeps its data there, may not say why it failed."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(bytes(_PROBE))
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def _modules(error: BaseException) -> list[str]:
    return [kind.__module__.partition(".")[0] for kind in type(error).__mro__]


def _of_the_system(error: OSError) -> str | None:
    """The line for what the operating system refuses, where it names a file or says all that there is to know."""
    if error.filename is None or isinstance(error.filename, int):
        return None
    path, why = os.fsdecode(error.filename), os.strerror(error.errno or 0)
    if error.errno == errno.EROFS:
        return f"{path} cannot be written: its file system is read-only; wbc needs a workspace that it may write"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path} cannot be used: {why}; give this user the right to it"
    if error.errno == errno.ENOENT:
        return f"{path} is not there: `dvc checkout` brings back what is versioned, and the stage before this one makes the rest"
    return f"{path}: {why}"


def _log(error: BaseException, workspace: Path | None) -> Path:
    """Write the traceback, the command and the versions to a file; to the temporary folder where the workspace takes none."""
    moment = datetime.now(UTC)
    name = f"error-{moment:%Y%m%d-%H%M%S}-{os.getpid()}.log"
    text = "".join(traceback.format_exception(error))
    here = f"Python {platform.python_version()}, {platform.platform()}"
    head = f"{moment:%Y-%m-%d %H:%M:%S}Z  wbc {' '.join(sys.argv[1:])}\n{here}\n\n"
    for folder in [*([workspace / FOLDER] if workspace else []), Path(tempfile.gettempdir())]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(head + text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return Path("no file: no disk takes one")
