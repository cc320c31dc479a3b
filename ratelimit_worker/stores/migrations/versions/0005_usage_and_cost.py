"""All tokens that an attempt used, and what it cost. The columns are nullable: older rows have no such values."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_COLUMNS: tuple[sa.Column[object], ...] = (
    sa.Column("cached_input_tokens", sa.BigInteger(), nullable=True, comment="of input_tokens, read from a cache"),
    sa.Column("cache_write_tokens", sa.BigInteger(), nullable=True, comment="of input_tokens, written to a cache"),
    sa.Column("reasoning_tokens", sa.BigInteger(), nullable=True, comment="of output_tokens"),
    sa.Column("audio_input_tokens", sa.BigInteger(), nullable=True, comment="of input_tokens"),
    sa.Column("audio_output_tokens", sa.BigInteger(), nullable=True, comment="of output_tokens"),
    sa.Column("image_input_tokens", sa.BigInteger(), nullable=True, comment="of input_tokens"),
    sa.Column("image_output_tokens", sa.BigInteger(), nullable=True, comment="of output_tokens"),
    sa.Column("service_tier", sa.String(), nullable=True),
    sa.Column("first_byte_s", sa.Double(), nullable=True, comment="from the request to the first byte of its answer"),
    sa.Column("finish_reason", sa.String(), nullable=True),
    sa.Column("cost_nanousd", sa.BigInteger(), nullable=True, comment="billionths of a dollar; NULL: no price known"),
    sa.Column("cached_saving_nanousd", sa.BigInteger(), nullable=True, comment="by cached input"),
    sa.Column("price_source", sa.String(32), nullable=True, comment="told, own, list, estimated"),
    sa.Column("lost_attempts", sa.Integer(), nullable=True, comment="before this one, whose worker died"),
    sa.Column("lost_nanousd", sa.BigInteger(), nullable=True, comment="what these are taken to have cost"),
)


def upgrade() -> None:
    for column in _COLUMNS:
        op.add_column("attempts", column)


def downgrade() -> None:
    for column in reversed(_COLUMNS):
        op.drop_column("attempts", column.name)
