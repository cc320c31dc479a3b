"""Calls that have failed are found without reading those that were answered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_FAILED = "outcome = 'failed'"


def upgrade() -> None:
    op.create_index(
        "ix_attempts_failed",
        "attempts",
        ["finished_at"],
        sqlite_where=sa.text(_FAILED),
        postgresql_where=sa.text(_FAILED),
    )


def downgrade() -> None:
    op.drop_index("ix_attempts_failed", "attempts")
