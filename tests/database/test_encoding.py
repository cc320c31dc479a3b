"""PostgreSQL in any encoding: an outcome arrives, and what its server has no letter for is written as an escape."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from ratelimit_worker.calls import Attempt, Content, Mode, ModeChange
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.encoding import codec_of, fitting
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tracker import Tracker
from tests import builders
from tests.builders import clean_environment
from tests.conftest import PostgresServer

LANE = "größe:日本 🎉"


def attempt(number: int) -> Attempt:
    content = Content(asked="日本", answer="“naïve”", traceback=None)
    more: dict[str, Any] = {"lane": LANE, "task": "shop.ask", "tags": ("é", "日"), "cause": "Ω…", "content": content}
    return builders.attempt(f"c{number}", finished_at=1_700_000_001.0, took_s=1.0, **more)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("encoding", "lane", "tags"),
    [
        ("UTF8", LANE, ("é", "日")),
        ("SQL_ASCII", LANE, ("é", "日")),
        ("LATIN1", "größe:\\u65e5\\u672c \\U0001f389", ("é", "\\u65e5")),
        ("EUC_JP", "größe:日本 \\U0001f389", ("é", "日")),
        ("WIN1251", "gr\\xf6\\xdfe:\\u65e5\\u672c \\U0001f389", ("\\xe9", "\\u65e5")),
    ],
)
def test_an_outcome_arrives(postgres_server: PostgresServer, encoding: str, lane: str, tags: tuple[str, ...]) -> None:
    engine = engine_for(postgres_server.new_database(encoding))
    tracker = Tracker(engine)
    change = ModeChange(
        id="m", lane=LANE, from_mode=Mode.NORMAL, to_mode=Mode.HALT, at=1_700_000_000.0, cause="Ω", numbers={"日": 1.0},
        who="Jürgen", reason="日", until=None,
    )  # fmt: skip
    assert tracker.record([attempt(1), attempt(2), change]) == 3
    assert tracker.record([attempt(1)]) == 0
    found = tracker.attempts_of("c1")[0]
    if encoding in {"UTF8", "SQL_ASCII"}:
        assert found.lane == LANE
        assert found.content == attempt(1).content
    assert (found.lane, found.tags) == (lane, tags)
    assert [(one.lane, list(one.numbers.values())) for one in tracker.mode_changes(LANE)] == [(lane, [1.0])]
    cells = Queries(engine).cells(0, 2_000_000_000, 60.0)
    assert sum(cell.outcomes["answered"] for key, cell in cells if key.series.lane == lane) == 2
    engine.dispose()


@pytest.mark.parametrize(
    ("server", "codec"),
    [("UTF8", None), ("SQL_ASCII", None), ("LATIN1", "iso8859-1"), ("WIN1252", "cp1252"), ("ISO_8859_5", "iso8859-5"),
     ("KOI8R", "koi8-r"), ("EUC_KR", "euc_kr"), ("MULE_INTERNAL", "ascii")],
)  # fmt: skip
def test_each_encoding_has_a_codec(server: str, codec: str | None) -> None:
    assert codec_of(server) == codec


def test_what_fits_stays_as_it_is() -> None:
    assert fitting("größe 日", "iso8859-1") == "größe \\u65e5"
    assert fitting("größe 日", None) == "größe 日"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u:secret@h/d", "use a URL that starts with sqlite:// or postgresql://"),
        ("postgresql+asyncpg://u:secret@h/d", "the driver 'asyncpg' cannot be used here: leave it out, postgresql://…"),
        ("sqlite+aiosqlite:///x", "the driver 'aiosqlite' cannot be used here: leave it out, sqlite://…"),
        ("postgres", "use a URL that starts with sqlite:// or postgresql://"),
    ],
)
@pytest.mark.parametrize("variable", ["MAISD_DATABASE_URL", "DATABASE_URL"])
def test_a_database_of_another_kind_is_one_line(variable: str, url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)) as told:
        read_settings({variable: url})
    assert str(told.value).count("\n") == 0
    assert "secret" not in str(told.value)
    if url.startswith("mysql"):
        ran = subprocess.run(
            [sys.executable, "-m", "ratelimit_worker", "doctor"],
            env=clean_environment(**{variable: url}), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert (ran.returncode, len(ran.stderr.splitlines())) == (78, 1), ran.stderr
        assert "Traceback" not in ran.stderr
