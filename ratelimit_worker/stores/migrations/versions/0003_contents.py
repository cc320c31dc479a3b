"""Contents of attempts, prompts and answers, which are only captured if that is switched on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "contents",
        sa.Column("call_id", sa.String(), nullable=False, comment="as in attempts"),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False, comment="as in attempts"),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("asked", sa.String(), nullable=False, comment="the arguments, as JSON"),
        sa.Column("answer", sa.String(), nullable=True, comment="as JSON"),
        sa.Column("traceback", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("call_id", "number"),
    )
    op.create_index("ix_contents_finished_at", "contents", ["finished_at"])


def downgrade() -> None:
    op.drop_table("contents")
