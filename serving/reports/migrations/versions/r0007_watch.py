"""What the watch keeps: measures of served cells, how far they are from the usual, and how often the model is right in use.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
DAY = sa.String(10)


def upgrade() -> None:
    """From 0006."""
    _measures()
    _drift()
    _in_use()
    _words()


def _measures() -> None:
    op.create_table(
        "watched_cells",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("day", DAY, nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("cells", sa.Integer(), nullable=False),
        sa.Column("measures", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_watched_cells")),
    )
    op.create_index(op.f("ix_watched_cells_site_day"), "watched_cells", ["site", "day"])
    op.create_index(op.f("ix_watched_cells_day"), "watched_cells", ["day"])
    op.create_table(
        "usual_cells",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("since", DAY, nullable=False),
        sa.Column("through", DAY, nullable=False),
        sa.Column("word", sa.Integer(), nullable=True),
        sa.Column("cells", sa.Integer(), nullable=False),
        sa.Column("measures", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("site", "model_version", name=op.f("pk_usual_cells")),
    )


def _drift() -> None:
    op.create_table(
        "drift",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("day", DAY, nullable=False),
        sa.Column("measure", sa.String(16), nullable=False),
        sa.Column("against", sa.String(16), nullable=False),
        sa.Column("cells", sa.Integer(), nullable=False),
        sa.Column("effective", sa.Float(), nullable=True),
        sa.Column("p", sa.Float(), nullable=True),
        sa.Column("effect", sa.Float(), nullable=True),
        sa.Column("from_training", sa.Float(), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.CheckConstraint("state IN ('usual', 'alarm', 'differs', 'few', 'unknown')", name=op.f("ck_drift_state")),
        sa.CheckConstraint("against IN ('training', 'site')", name=op.f("ck_drift_against")),
        sa.PrimaryKeyConstraint("site", "model_version", "day", "measure", name=op.f("pk_drift")),
    )
    op.create_index(op.f("ix_drift_site_day"), "drift", ["site", "day"])
    op.create_table(
        "watch_pictures",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("site", "name", name=op.f("pk_watch_pictures")),
    )


def _in_use() -> None:
    op.create_table(
        "accuracy_in_use",
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("cells", sa.Integer(), nullable=False),
        sa.Column("right", sa.Integer(), nullable=False),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.Column("floor", sa.Float(), nullable=True),
        sa.Column("alarm", sa.Boolean(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("site", "model_version", "label", name=op.f("pk_accuracy_in_use")),
    )


def _words() -> None:
    op.create_table(
        "watch_words",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("since", DAY, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("undoes", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_watch_words")),
    )
    if op.get_bind().dialect.name == "sqlite":
        for what in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER watch_words_no_{what.lower()} BEFORE {what} ON watch_words FOR EACH ROW "
                "BEGIN SELECT RAISE(ABORT, 'watch_words are only ever added'); END"
            )
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION watch_words_only_added() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'watch_words are only ever added'; END $$"
    )
    op.execute(
        "CREATE TRIGGER watch_words_only_added BEFORE UPDATE OR DELETE OR TRUNCATE ON watch_words "
        "FOR EACH STATEMENT EXECUTE FUNCTION watch_words_only_added()"
    )
