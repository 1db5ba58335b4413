"""The files of a study, which cover nothing that somebody changed, and the rows of one that a grid cannot say."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from flows.exchange.handed_out import adopt, hand_out_folder, refuse_foreign
from flows.studies.provenance import provenance
from flows.workspace import find_workspace, is_committed
from wbc_model.core.lock import locked

if TYPE_CHECKING:
    from wbc_model.studies.records import Provenance, Records

CACHE: Final = Path(".wbc/studies")
RUNS: Final = "runs.csv"


def claim(files: Iterable[Path], workspace: Path) -> None:
    """Raises WbcError where one of these files is somebody's work: not written here, and not as git has it."""
    files = list(files)
    adopt([path for path in files if path.is_file() and is_committed(path)], workspace)
    refuse_foreign(files, workspace)


@contextmanager
def publishing(out: Path, workspace: Path | None = None) -> Iterator[Path]:
    """A folder whose files go to `out` when the block ends, all of them or none; raises WbcError as `claim` does."""
    workspace = workspace or find_workspace()
    with tempfile.TemporaryDirectory(prefix="wbc-study-") as built:
        yield Path(built)
        claim([out / path.name for path in Path(built).iterdir()], workspace)
        hand_out_folder(Path(built), out, workspace)


@dataclass(frozen=True)
class Rows:
    """The rows of a study that a grid cannot say, in its `runs.csv`.

    Each is made once, under a name that hashes what it depends on, as a training of `wbc benchmark` is (decision 012). So a
    study that was killed goes on with the row that it was at. `key` are the columns that tell rows apart.
    """

    study: str
    out: Path
    key: tuple[str, ...]
    records: "Records"
    code: "Provenance"

    @classmethod
    def open(cls, study: str, out: Path, key: Sequence[str], files: Sequence[str] = (), cache: Path | None = None) -> "Rows":
        """The rows of a study in the workspace that we stand in; raises WbcError where `files` or `runs.csv` in `out` are
        somebody's work."""
        from wbc_model.studies.records import Records

        workspace = find_workspace()
        claim([out / name for name in (RUNS, *files)], workspace)
        return cls(study, out, tuple(key), Records((cache or workspace / CACHE) / "records.jsonl"), provenance())

    def once(self, named: Mapping[str, Any], depends_on: Any, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The content of the row with these values of the key, from the record where there is one, else made now.

        `depends_on` is what else its numbers depend on, as JSON can hold it; the learner's code is part of every name.
        """
        from wbc_model.studies.learner import digest

        name = digest(["row", self.study, self.code.train, self.code.query, dict(named), depends_on])
        with locked(self.records.path.parent / "locks" / name):
            record = self.records.get(name)
            if record is None:
                record = self.records.add(name, {"kind": "row", "facts": dict(self.code.facts), "content": dict(make())})
        return dict(record["content"])

    def table(self, rows: Sequence[Mapping[str, Any]], file: str = RUNS) -> pd.DataFrame:
        """These rows below those of different names that the file holds."""
        new, path = pd.DataFrame(rows), self.out / file
        if not path.exists():
            return new
        old = pd.read_csv(path, keep_default_na=False, na_values=[""])
        known = set(new[list(self.key)].astype(str).itertuples(index=False, name=None))
        named = old[list(self.key)].astype(str).itertuples(index=False, name=None)
        return pd.concat([old[[name not in known for name in named]], new], ignore_index=True)
