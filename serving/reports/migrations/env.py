"""Run by Alembic for every command: works on the connection that `upgrade` hands over, inside its transaction."""

from alembic import context

from serving.reports.store import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
