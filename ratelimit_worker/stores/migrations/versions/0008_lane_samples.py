"""What lanes were allowed and how much waited, a row a lane and minute."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lane_samples",
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("at_s", sa.BigInteger(), autoincrement=False, nullable=False, comment="the minute's beginning, epoch"),
        sa.Column("allowed_per_min", sa.Double(), nullable=True, comment="requests; NULL: not bound"),
        sa.Column("waiting", sa.BigInteger(), nullable=False, comment="the most"),
        sa.Column("running", sa.BigInteger(), nullable=False, comment="the most"),
        sa.Column("mode", sa.String(length=32), nullable=False, comment="the strictest"),
        sa.PrimaryKeyConstraint("lane", "at_s"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_lane_samples_at_s", "lane_samples", ["at_s"])


def downgrade() -> None:
    op.drop_table("lane_samples")
