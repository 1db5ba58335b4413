"""What a report expects and what happened to it: changes, undone corrections, deeds, removals, retired messages, twins, and the
images in a table of their own.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
APPEND_ONLY = ("corrections", "signatures", "changes")


def upgrade() -> None:
    """From 0001. The table `reports` only gets columns: SQLite cannot make it anew while others refer to it."""
    _columns()
    _images()
    _changes()
    _deeds()
    _removals()
    _retired_messages()
    for table in APPEND_ONLY:
        _only_added(table)
    _never_touched("removals")


def _columns() -> None:
    op.add_column("reports", sa.Column("expected_images", sa.Integer(), nullable=True))
    op.add_column("reports", sa.Column("rendered", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("reports", sa.Column("withdrawn_at", MOMENT, nullable=True))
    op.add_column("reports", sa.Column("images_deleted_at", MOMENT, nullable=True))
    op.create_index(op.f("ix_reports_specimen_id"), "reports", ["specimen_id"])
    op.create_index(op.f("ix_reports_model_version"), "reports", ["model_version"])
    op.add_column("cells", sa.Column("twin", sa.Integer(), nullable=True))
    op.add_column("cells", sa.Column("fingerprint", sa.LargeBinary(), nullable=True))
    op.add_column("corrections", sa.Column("undoes", sa.Integer(), nullable=True))


def _images() -> None:
    """The images leave `cells`: every reading of a cell read its image along."""
    op.create_table(
        "images",
        sa.Column("report_id", sa.String(32), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(16), nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["report_id", "position"], ["cells.report_id", "cells.position"], name=op.f("fk_images_cell"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("report_id", "position", name=op.f("pk_images")),
    )
    op.create_index(op.f("ix_images_key"), "images", ["key"])
    op.execute(
        "INSERT INTO images (report_id, position, data) SELECT report_id, position, image FROM cells WHERE image IS NOT NULL"
    )
    op.drop_column("cells", "image")


def _changes() -> None:
    op.create_table(
        "changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("report_id", sa.String(32), nullable=False),
        sa.Column("what", sa.String(32), nullable=False),
        sa.Column("from_value", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("to_value", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["report_id"], ["reports.id"], name=op.f("fk_changes_report_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changes")),
    )
    op.create_index(op.f("ix_changes_report_id"), "changes", ["report_id"])


def _deeds() -> None:
    op.create_table(
        "deeds",
        sa.Column("intention", sa.String(32), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("intention", name=op.f("pk_deeds")),
        sa.UniqueConstraint("caller", "key", name=op.f("uq_deeds_caller_key")),
    )
    op.create_index(op.f("ix_deeds_at"), "deeds", ["at"])


def _removals() -> None:
    op.create_table(
        "removals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("report_id", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_removals")),
    )
    op.create_index(op.f("ix_removals_report_id"), "removals", ["report_id"])


def _retired_messages() -> None:
    with op.batch_alter_table("outbox", table_kwargs={"sqlite_autoincrement": True}) as outbox:
        outbox.drop_constraint(op.f("ck_outbox_state"), type_="check")
        outbox.create_check_constraint(op.f("ck_outbox_state"), "state IN ('pending', 'delivered', 'failed', 'retired')")
    op.execute(
        "UPDATE outbox SET state = 'retired' WHERE state IN ('pending', 'failed') AND ("
        "EXISTS (SELECT 1 FROM outbox AS later WHERE later.report_id = outbox.report_id AND later.id > outbox.id) "
        "OR EXISTS (SELECT 1 FROM signatures AS s WHERE s.report_id = outbox.report_id AND s.at > outbox.created_at))"
    )


def _only_added(table: str) -> None:
    """Rows are added, never changed; they are deleted only with the whole report, after its removal was written down."""
    removed = "EXISTS (SELECT 1 FROM removals WHERE removals.report_id = OLD.report_id)"
    if op.get_bind().dialect.name == "sqlite":
        for what, unless in (("UPDATE", ""), ("DELETE", f" WHEN NOT {removed}")):
            op.execute(f"DROP TRIGGER IF EXISTS {table}_no_{what.lower()}")
            op.execute(
                f"CREATE TRIGGER {table}_no_{what.lower()} BEFORE {what} ON {table} FOR EACH ROW{unless} "
                f"BEGIN SELECT RAISE(ABORT, '{table} are only ever added'); END"
            )
        return
    op.execute(f"DROP TRIGGER IF EXISTS {table}_only_added ON {table}")
    op.execute(
        f"CREATE OR REPLACE FUNCTION {table}_only_added() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} are only ever added'; END $$"
    )
    op.execute(
        f"CREATE OR REPLACE FUNCTION {table}_only_removed() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF {removed} THEN RETURN OLD; END IF; RAISE EXCEPTION '{table} are only ever added'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_only_added BEFORE UPDATE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_only_added()"
    )
    op.execute(
        f"CREATE TRIGGER {table}_only_removed BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_only_removed()"
    )


def _never_touched(table: str) -> None:
    """Rows are added, never changed and never deleted."""
    if op.get_bind().dialect.name == "sqlite":
        for what in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{what.lower()} BEFORE {what} ON {table} FOR EACH ROW "
                f"BEGIN SELECT RAISE(ABORT, '{table} are only ever added'); END"
            )
        return
    op.execute(
        f"CREATE OR REPLACE FUNCTION {table}_only_added() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} are only ever added'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_only_added BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_only_added()"
    )
