"""A call ends once: a second end is not stored, and those that are there become attempts that were retried."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_END = "outcome IN ('answered', 'failed')"


def upgrade() -> None:
    op.execute(
        f"UPDATE attempts SET outcome = 'retried' WHERE {_END} AND EXISTS (SELECT 1 FROM attempts AS first "
        f"WHERE first.call_id = attempts.call_id AND first.number < attempts.number AND first.outcome IN ('answered', 'failed'))"
    )
    op.create_index(
        "uq_attempts_end", "attempts", ["call_id"], unique=True, sqlite_where=sa.text(_END), postgresql_where=sa.text(_END)
    )


def downgrade() -> None:
    op.drop_index("uq_attempts_end", "attempts")
