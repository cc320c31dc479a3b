"""The table of attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Types are written out, not imported from tables.py: this file says for ever what 0001 was.
    op.create_table(
        "attempts",
        sa.Column("call_id", sa.String(), nullable=False, comment="the Celery task id"),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False, comment="from 1"),
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("latency_s", sa.Double(), nullable=False),
        sa.Column("waited_s", sa.Double(), nullable=False),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("context", sa.String(), nullable=False),
        sa.Column("tags", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("priority", sa.String(32), nullable=False),
        sa.Column("provider", sa.String(), nullable=True),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("category", sa.String(32), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True, comment="HTTP status"),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("retry_after_s", sa.Double(), nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cause", sa.String(), nullable=True, comment="one line without prompt or key"),
        sa.Column("worker", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("call_id", "number"),
    )
    op.create_index("ix_attempts_lane_finished_at", "attempts", ["lane", "finished_at"])
    op.create_index("ix_attempts_finished_at", "attempts", ["finished_at"])


def downgrade() -> None:
    op.drop_table("attempts")
