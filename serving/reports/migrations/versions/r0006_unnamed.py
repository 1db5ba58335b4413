"""Cells that nobody can name, cells that were removed with their report, and what happens next in parts that a page can say.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

CHECKS = {
    "state": "state IN ('open', 'disputed', 'agreed', 'unnamed', 'withdrawn')",
    "withdrawn": "withdrawn IN ('labelled', 'held-out', 'quarantined', 'removed')",
}


def upgrade() -> None:
    """From 0005. SQLite cannot change a check: the table is made anew there, while no other one minds."""
    op.add_column("queues", sa.Column("next_parts", sa.JSON(none_as_null=True), nullable=True))
    with op.batch_alter_table("asked_cells") as cells:
        for column, check in CHECKS.items():
            cells.drop_constraint(op.f(f"ck_asked_cells_{column}"), type_="check")
            cells.create_check_constraint(op.f(f"ck_asked_cells_{column}"), check)
    if op.get_bind().dialect.name == "sqlite":
        _nothing_points_nowhere()


def _nothing_points_nowhere() -> None:
    lost = op.get_bind().exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if lost:
        raise sa.exc.IntegrityError(f"{len(lost)} rows point to a row that is not there", None, ValueError(str(lost[0][0])))
