"""Carrying out the migrations when the service starts."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, func, select

from wbc_model.core.errors import WbcError

LOCK: Final = 0x7762635F73746F72  # "wbc_stor": what processes agree on for PostgreSQL's advisory lock


def upgrade(connection: Connection, tables: MetaData) -> None:
    """Bring the `tables` to the newest version inside the caller's write transaction; nothing to do is nothing done.

    On SQLite the transaction itself keeps other processes out; on PostgreSQL a lock does, held until it ends.
    Raises WbcError where the database was written by a newer version.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes |= {"connection": connection, "tables": tables}
    scripts = ScriptDirectory.from_config(config)
    present = set(MigrationContext.configure(connection).get_current_heads())
    unknown = present - {script.revision for script in scripts.walk_revisions()}
    if unknown:
        raise WbcError(
            f"the store was written by a newer version of this program (its tables are at {', '.join(sorted(unknown))}, "
            f"known here are those up to {scripts.get_current_head()}): install that version"
        )
    if present != set(scripts.get_heads()):
        command.upgrade(config, "head")
