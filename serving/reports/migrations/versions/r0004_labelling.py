"""Queues of cells that the model asks about, their images, readers, tasks and answers.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """From 0003."""
    _queues()
    _cells()
    _images()
    _readers()
    _tasks()
    _answers()
    _never_touched("answers")


def _queues() -> None:
    op.create_table(
        "queues",
        sa.Column("id", sa.String(12), nullable=False),
        sa.Column("workspace", sa.Text(), nullable=False),
        sa.Column("cycle", sa.Integer(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("published_at", MOMENT, nullable=True),
        sa.Column("closed_at", MOMENT, nullable=True),
        sa.Column("deadline", MOMENT, nullable=True),
        sa.Column("gain", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("next_step", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queues")),
    )
    op.create_index(op.f("ix_queues_workspace_published_at"), "queues", ["workspace", "published_at"])


def _cells() -> None:
    op.create_table(
        "asked_cells",
        sa.Column("queue_id", sa.String(12), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("truth", sa.Text(), nullable=False),
        sa.Column("predicted", sa.Text(), nullable=False),
        sa.Column("probability", sa.Float(), nullable=True),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("readers_least", sa.Integer(), nullable=False),
        sa.Column("readers_wanted", sa.Integer(), nullable=False),
        sa.Column("given", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("vacant", sa.Boolean(), nullable=False),
        sa.Column("withdrawn", sa.String(16), nullable=True),
        sa.Column("adjudicated", sa.Text(), nullable=True),
        sa.Column("adjudicated_by", sa.Text(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("how", sa.String(16), nullable=True),
        sa.Column("agreed_at", MOMENT, nullable=True),
        sa.Column("taken_at", MOMENT, nullable=True),
        sa.Column("taken_answer", sa.Text(), nullable=True),
        sa.CheckConstraint("purpose IN ('asked', 'test', 'known', 'reference')", name=op.f("ck_asked_cells_purpose")),
        sa.CheckConstraint("state IN ('open', 'disputed', 'agreed', 'withdrawn')", name=op.f("ck_asked_cells_state")),
        sa.CheckConstraint("how IN ('one', 'two', 'adjudicated')", name=op.f("ck_asked_cells_how")),
        sa.CheckConstraint("withdrawn IN ('labelled', 'held-out', 'quarantined')", name=op.f("ck_asked_cells_withdrawn")),
        sa.ForeignKeyConstraint(["queue_id"], ["queues.id"], name=op.f("fk_asked_cells_queue_id")),
        sa.PrimaryKeyConstraint("queue_id", "sha256", name=op.f("pk_asked_cells")),
    )
    for columns in (
        ["queue_id", "vacant", "place"],
        ["queue_id", "purpose", "place"],
        ["queue_id", "state"],
        ["answer", "agreed_at"],
        ["sha256"],
    ):
        op.create_index(op.f(f"ix_asked_cells_{'_'.join(columns)}"), "asked_cells", columns)


def _images() -> None:
    op.create_table(
        "asked_images",
        sa.Column("queue_id", sa.String(12), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("key", sa.String(16), nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["queue_id", "sha256"],
            ["asked_cells.queue_id", "asked_cells.sha256"],
            name=op.f("fk_asked_images_cell"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("queue_id", "sha256", name=op.f("pk_asked_images")),
    )
    op.create_index(op.f("ix_asked_images_key"), "asked_images", ["key"])


def _readers() -> None:
    op.create_table(
        "readers",
        sa.Column("queue_id", sa.String(12), nullable=False),
        sa.Column("reader", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("answered", sa.Integer(), nullable=False),
        sa.Column("unread", sa.Integer(), nullable=False),
        sa.Column("counted_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["queue_id"], ["queues.id"], name=op.f("fk_readers_queue_id")),
        sa.PrimaryKeyConstraint("queue_id", "reader", name=op.f("pk_readers")),
    )


def _tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("queue_id", sa.String(12), nullable=False),
        sa.Column("reader", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("sweep", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("given_at", MOMENT, nullable=False),
        sa.Column("answered_at", MOMENT, nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("answer_id", sa.Integer(), nullable=True),
        sa.CheckConstraint("kind IN ('first', 'second', 'repeat', 'known')", name=op.f("ck_tasks_kind")),
        sa.CheckConstraint("state IN ('open', 'answered', 'lapsed')", name=op.f("ck_tasks_state")),
        sa.ForeignKeyConstraint(
            ["queue_id", "sha256"], ["asked_cells.queue_id", "asked_cells.sha256"], name=op.f("fk_tasks_cell")
        ),
        sa.PrimaryKeyConstraint("queue_id", "reader", "number", name=op.f("pk_tasks")),
    )
    by_cell = (["sha256"], ["reader", "sha256"])
    for columns in (["queue_id", "state", "given_at"], ["queue_id", "reader", "state", "number"], *by_cell):
        op.create_index(op.f(f"ix_tasks_{'_'.join(columns)}"), "tasks", columns)


def _answers() -> None:
    op.create_table(
        "answers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("queue_id", sa.String(12), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("reader", sa.Text(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("way", sa.String(16), nullable=False),
        sa.Column("undoes", sa.Integer(), nullable=True),
        sa.CheckConstraint("way IN ('single', 'sweep', 'adjudicated')", name=op.f("ck_answers_way")),
        sa.ForeignKeyConstraint(
            ["queue_id", "sha256"], ["asked_cells.queue_id", "asked_cells.sha256"], name=op.f("fk_answers_cell")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_answers")),
    )
    op.create_index(op.f("ix_answers_queue_id_sha256"), "answers", ["queue_id", "sha256"])
    op.create_index(op.f("ix_answers_queue_id_reader_id"), "answers", ["queue_id", "reader", "id"])
    op.create_index(op.f("ix_answers_undoes"), "answers", ["undoes"])


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
