"""Run by Alembic for every command: works on the connection that `upgrade` hands over, inside its transaction."""

from alembic import context

handed = context.config.attributes
context.configure(connection=handed["connection"], target_metadata=handed.get("tables"))
with context.begin_transaction():
    context.run_migrations()
