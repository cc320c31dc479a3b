"""Alerts, open and past."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("lane", sa.String(), nullable=False, comment="empty: the deployment as a whole; * for all lanes"),
        sa.Column("about", sa.String(), nullable=False, comment="which function, quota or budget"),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False, comment="what is wrong was seen first"),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True, comment="NULL: it is open"),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column(
            "numbers",
            sa.JSON().with_variant(postgresql.JSONB(), "postgresql"),
            nullable=False,
            comment="the figures behind the cause",
        ),
        sa.Column("ended", sa.String(), nullable=False, comment="why it closed"),
        sa.Column("acked_by", sa.String(), nullable=False, comment="empty: nobody"),
        sa.Column("acked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_alerts_opened_at", "alerts", ["opened_at"])


def downgrade() -> None:
    op.drop_table("alerts")
