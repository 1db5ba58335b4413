"""What people say of a report: comments, and second opinions that were asked for.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """From 0004."""
    _comments()
    _opinions()
    for table in ("comments", "opinions"):
        _only_added(table)


def _comments() -> None:
    op.create_table(
        "comments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("report_id", sa.String(32), nullable=False),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["report_id"], ["reports.id"], name=op.f("fk_comments_report_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comments")),
    )
    op.create_index(op.f("ix_comments_report_id"), "comments", ["report_id"])


def _opinions() -> None:
    op.create_table(
        "opinions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("report_id", sa.String(32), nullable=False),
        sa.Column("request", sa.Integer(), nullable=True),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("asked", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("step IN ('asked', 'answered', 'taken_back')", name=op.f("ck_opinions_step")),
        sa.ForeignKeyConstraint(["report_id"], ["reports.id"], name=op.f("fk_opinions_report_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_opinions")),
    )
    for column in ("report_id", "asked", "request"):
        op.create_index(op.f(f"ix_opinions_{column}"), "opinions", [column])


def _only_added(table: str) -> None:
    """Rows are added, never changed; they are deleted only with the whole report, after its removal was written down."""
    removed = "EXISTS (SELECT 1 FROM removals WHERE removals.report_id = OLD.report_id)"
    if op.get_bind().dialect.name == "sqlite":
        for what, unless in (("UPDATE", ""), ("DELETE", f" WHEN NOT {removed}")):
            op.execute(
                f"CREATE TRIGGER {table}_no_{what.lower()} BEFORE {what} ON {table} FOR EACH ROW{unless} "
                f"BEGIN SELECT RAISE(ABORT, '{table} are only ever added'); END"
            )
        return
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
