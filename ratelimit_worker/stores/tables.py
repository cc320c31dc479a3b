"""The tables of the tracking database, as typed models; `migrations/` brings a database to this state."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import BigInteger, DateTime, Dialect, Enum, Index, LargeBinary, SmallInteger, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from ratelimit_worker.calls import Category, Mode, Outcome, PriceSource, Priority
from ratelimit_worker.stores.encoding import FittingJson, FittingText


class UtcTime(TypeDecorator[datetime]):
    """A time, aware and in UTC in Python; SQLite has no time zones and stores UTC.

    Raises:
        ValueError: The time to be stored has no time zone.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        if value is None or value.tzinfo is UTC:
            return value
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _by_value(kind: type[StrEnum]) -> Enum:
    """A column type for `kind`: its values as text, without a CHECK, so a new member needs no migration."""
    return Enum(
        kind,
        native_enum=False,
        create_constraint=False,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )


class Base(DeclarativeBase):
    """Enums by value, times in UTC, tags as JSON (binary where the database has it)."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own declaration is no ClassVar
        datetime: UtcTime,
        Category: _by_value(Category),
        Mode: _by_value(Mode),
        Outcome: _by_value(Outcome),
        Priority: _by_value(Priority),
        PriceSource: _by_value(PriceSource),
        list[str]: FittingJson(),
        dict[str, float]: FittingJson(),
        str: FittingText(),  # no length: storable() bounds texts, and PostgreSQL gains nothing from one
    }


#: Attempts that are not in the roll-ups: from before there were roll-ups, or written by an older version.
NOT_ROLLED_UP = "rolled_up = 0"
END = "outcome IN ('answered', 'failed')"
FAILED = "outcome = 'failed'"


class AttemptRow(Base):
    """One request to a provider, or an attempt that ended before sending one: the fields of `calls.Attempt`.

    The key guarantees that an outcome which is delivered twice counts once. It is also the index for "all attempts of a
    call", so there is no separate id, and one index less to update at every insert.
    """

    __tablename__ = "attempts"
    __table_args__ = (
        Index("ix_attempts_lane_finished_at", "lane", "finished_at"),
        Index("ix_attempts_finished_at", "finished_at"),  # all lanes at once, and the purge
        # A call ends once. A replica that takes over with an old state may run an answered call again, as a further
        # attempt; the first end stays.
        Index("uq_attempts_end", "call_id", unique=True, sqlite_where=text(END), postgresql_where=text(END)),
        Index(
            "ix_attempts_not_rolled_up",
            "finished_at",
            sqlite_where=text(NOT_ROLLED_UP),
            postgresql_where=text(NOT_ROLLED_UP),
        ),
        # Few among many: a search for failed calls need not read answered ones.
        Index("ix_attempts_failed", "finished_at", sqlite_where=text(FAILED), postgresql_where=text(FAILED)),
    )

    call_id: Mapped[str] = mapped_column(primary_key=True, comment="the Celery task id")
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="from 1")
    lane: Mapped[str]
    task: Mapped[str]
    outcome: Mapped[Outcome]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime]
    #: finished_at - started_at, stored since the two databases have no common way to subtract times.
    latency_s: Mapped[float]
    waited_s: Mapped[float]
    queue: Mapped[str]
    context: Mapped[str]
    tags: Mapped[list[str]]
    tenant: Mapped[str]
    priority: Mapped[Priority]
    provider: Mapped[str | None]
    model: Mapped[str | None]
    category: Mapped[Category | None]
    status: Mapped[int | None] = mapped_column(comment="HTTP status")
    request_id: Mapped[str | None]
    retry_after_s: Mapped[float | None]
    input_tokens: Mapped[int | None] = mapped_column(BigInteger)
    output_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cause: Mapped[str | None] = mapped_column(comment="one line without prompt or key")
    worker: Mapped[str]
    cached_input_tokens: Mapped[int | None] = mapped_column(BigInteger, comment="of input_tokens, read from a cache")
    cache_write_tokens: Mapped[int | None] = mapped_column(BigInteger, comment="of input_tokens, written to a cache")
    reasoning_tokens: Mapped[int | None] = mapped_column(BigInteger, comment="of output_tokens")
    audio_input_tokens: Mapped[int | None] = mapped_column(BigInteger, comment="of input_tokens")
    audio_output_tokens: Mapped[int | None] = mapped_column(BigInteger, comment="of output_tokens")
    image_input_tokens: Mapped[int | None] = mapped_column(BigInteger, comment="of input_tokens")
    image_output_tokens: Mapped[int | None] = mapped_column(BigInteger, comment="of output_tokens")
    service_tier: Mapped[str | None]
    first_byte_s: Mapped[float | None] = mapped_column(comment="from the request to the first byte of its answer")
    finish_reason: Mapped[str | None]
    cost_nanousd: Mapped[int | None] = mapped_column(BigInteger, comment="billionths of a dollar; NULL: no price known")
    cached_saving_nanousd: Mapped[int | None] = mapped_column(BigInteger, comment="by cached input")
    price_source: Mapped[PriceSource | None] = mapped_column(comment="told, own, list, estimated")
    lost_attempts: Mapped[int | None] = mapped_column(comment="before this one, whose worker died")
    lost_nanousd: Mapped[int | None] = mapped_column(BigInteger, comment="what these are taken to have cost")
    rolled_up: Mapped[int] = mapped_column(SmallInteger, server_default="0", comment="1: the roll-ups hold it")


class SeriesRow(Base):
    """The series of a roll-up: whose attempts its cells add up."""

    __tablename__ = "rollup_series"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False, comment="a digest of the rest")
    lane: Mapped[str]
    task: Mapped[str]
    context: Mapped[str]
    tenant: Mapped[str]
    model: Mapped[str] = mapped_column(comment="empty: not known")


class CellRow(Base):
    """Sums over the attempts of one series in one minute or hour: a packed `contracts.rollup.Cell`."""

    __tablename__ = "rollups"
    __table_args__ = ({"sqlite_with_rowid": False},)

    span_s: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="60 or 3600")
    at_s: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False, comment="its beginning, epoch")
    series: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    cell: Mapped[bytes] = mapped_column(LargeBinary)


class BatchRow(Base):
    """Ids of sums that were added to the roll-ups without rows (`stores.overflow`), so that each is added once."""

    __tablename__ = "rollup_batches"

    name: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]


class LaneSampleRow(Base):
    """How a lane stood in one minute: `contracts.lane_sample.LaneSample`, field for field."""

    __tablename__ = "lane_samples"
    __table_args__ = (Index("ix_lane_samples_at_s", "at_s"), {"sqlite_with_rowid": False})

    lane: Mapped[str] = mapped_column(primary_key=True)
    at_s: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, comment="the minute's beginning, epoch"
    )
    allowed_per_min: Mapped[float | None] = mapped_column(comment="requests; NULL: not bound")
    waiting: Mapped[int] = mapped_column(BigInteger, comment="the most")
    running: Mapped[int] = mapped_column(BigInteger, comment="the most")
    mode: Mapped[Mode] = mapped_column(comment="the strictest")


class ContentRow(Base):
    """The captured content of an attempt: `calls.Content`, only while MAISD_CAPTURE_CONTENT is on.

    It has its own table, since figures never read it, and one statement can empty it.
    """

    __tablename__ = "contents"
    __table_args__ = (Index("ix_contents_finished_at", "finished_at"),)

    call_id: Mapped[str] = mapped_column(primary_key=True, comment="as in attempts")
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="as in attempts")
    finished_at: Mapped[datetime]
    asked: Mapped[str] = mapped_column(comment="the arguments, as JSON")
    answer: Mapped[str | None] = mapped_column(comment="as JSON")
    traceback: Mapped[str | None]


class ModeChangeRow(Base):
    """One change of a lane's mode, by the law or by hand: the fields of `calls.ModeChange`."""

    __tablename__ = "mode_changes"
    __table_args__ = (
        Index("ix_mode_changes_lane_at", "lane", "at"),
        Index("ix_mode_changes_at", "at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, comment="the same however often the event is told")
    lane: Mapped[str] = mapped_column(comment="* for all lanes, where none was known")
    from_mode: Mapped[Mode]
    to_mode: Mapped[Mode]
    at: Mapped[datetime]
    cause: Mapped[str]
    numbers: Mapped[dict[str, float]] = mapped_column(comment="the figures behind the cause")
    who: Mapped[str] = mapped_column(comment="law, or who pinned the mode")
    reason: Mapped[str]
    until: Mapped[datetime | None] = mapped_column(comment="when a pin ends by itself")


class AlertRow(Base):
    """Something that was wrong, from when it opened until it closed: `contracts.alert.Alert`, in its latest state."""

    __tablename__ = "alerts"
    __table_args__ = (Index("ix_alerts_opened_at", "opened_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    lane: Mapped[str] = mapped_column(comment="empty: the deployment as a whole; * for all lanes")
    about: Mapped[str] = mapped_column(comment="which function, quota or budget")
    since: Mapped[datetime] = mapped_column(comment="what is wrong was seen first")
    opened_at: Mapped[datetime]
    closed_at: Mapped[datetime | None] = mapped_column(comment="NULL: it is open")
    cause: Mapped[str]
    numbers: Mapped[dict[str, float]] = mapped_column(comment="the figures behind the cause")
    ended: Mapped[str] = mapped_column(comment="why it closed")
    acked_by: Mapped[str] = mapped_column(comment="empty: nobody")
    acked_at: Mapped[datetime | None]
