"""What a caller says of a call is checked alike at every door: one line, and nothing was sent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_worker import llm_task, optimize_api_call
from ratelimit_worker.calls import Cost
from ratelimit_worker.cli import main
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import BadInput, ConfigurationError
from ratelimit_worker.flow.call.enqueue import Kind, Said, plan
from ratelimit_worker.inprocess.limiter import AdvancedRateLimiter
from ratelimit_worker.policy import choices
from ratelimit_worker.wiring import Services

SETTINGS = read_settings({})
LIMITER = AdvancedRateLimiter(Services(SETTINGS))


def option(**said: Any) -> None:
    """An option of `apply_async`; what only a task says, of the task."""
    of_task = {"cache_ttl_s": said.pop("cache_ttl")} if "cache_ttl" in said else {}
    plan(Kind(task="t", **of_task), (), {}, SETTINGS, Said(**said), now=1e9)


def of_task(**said: Any) -> None:
    """What a subclass of CallTask says of all its calls."""
    renamed = {"cache_ttl": "cache_ttl_s", "stale_ttl": "stale_ttl_s"}
    if "cost" in said:
        said["cost"] = lambda cost=said["cost"]: cost
    plan(Kind(task="t", **{renamed.get(name, name): value for name, value in said.items()}), (), {}, SETTINGS, now=1e9)


def decorator(**said: Any) -> None:
    """`@llm_task(…)`: said where it stands."""
    llm_task(**said)


def in_process(**said: Any) -> None:
    """A call without a queue, without Redis too."""
    LIMITER.make_rate_limited_call(lambda: None, **{"context_tags" if k == "tags" else k: v for k, v in said.items()})


def decorated(**said: Any) -> None:
    """`@optimize_api_call(…)`."""
    optimize_api_call(**{"context_tags" if name == "tags" else name: value for name, value in said.items()})


NO_SECONDS = [math.nan, math.inf, -math.inf, -1, -0.001, 1e300, 10**400, True, False, "5", "nan", b"1", [1], {}, 1j,
              Decimal("1"), Decimal("NaN")]  # fmt: skip
NO_NAMES = ["\ud800", "a\udfff", "a\x00", "a\nb", "\x1b[2J", "a\x7f", "a\x85", "a\u2028", "a\u202eb", "x" * 201, 5,
            True, b"x", [], 1.5]  # fmt: skip
NO_REQUESTS: list[Any] = [math.nan, math.inf, -1, True, "1", 1e300]
NO_TOKENS: list[Any] = [math.nan, -1, None, 10**400]
SAID: list[tuple[str, Any]] = [
    *(("deadline_s", value) for value in [*NO_SECONDS, 0]),
    *(("timeout_s", value) for value in [*NO_SECONDS, 0]),
    *(("cache_ttl", value) for value in NO_SECONDS),
    *(("stale_ttl", value) for value in NO_SECONDS),
    *(("priority", value) for value in [math.nan, 1.5, -1, 10, True, "urgent", b"high", [], {}, "\ud800"]),
    *(("shed_below", value) for value in [True, 1, "", "urgent", [], math.nan]),
    *(("lane", value) for value in [*NO_NAMES, ""]),
    *(("tenant", value) for value in NO_NAMES),
    *(("context", value) for value in NO_NAMES),
    *(("tags", [value]) for value in [*NO_NAMES, ""]),
    *(("tags", value) for value in ["codegen", 5, True, ["x"] * 101]),
    *(("cost", Cost(requests=value)) for value in NO_REQUESTS),
    *(("cost", Cost(input_tokens=value)) for value in NO_TOKENS),
    *(("cost", value) for value in [5, "1", {}]),
]
DOORS: dict[Callable[..., None], set[str]] = {
    option: set(),
    of_task: {"priority"},  # checked when the task makes its Kind
    decorator: {"cost"},  # a function there, whose answers are checked
    in_process: {"cache_ttl"},
    decorated: {"cache_ttl"},
}


@pytest.mark.parametrize("door", DOORS)
def test_what_cannot_be_is_refused_in_one_line(door: Callable[..., None]) -> None:
    """It names the option, and a terminal or a log can take it."""
    let_in = []
    for name, value in SAID:
        if name in DOORS[door]:
            continue
        try:
            door(**{name: value})
        except BadInput as error:
            text = str(error)
            assert name.rstrip("s") in text, text
            assert "use " in text
            assert text.isprintable(), ascii(text)
            assert len(text) < 300
        else:
            let_in.append((name, value))
    assert not let_in


@pytest.mark.long
@pytest.mark.parametrize("door", DOORS)
def test_what_can_be_is_taken(door: Callable[..., None]) -> None:
    """Other scripts, emoji and joiners are text."""
    said: dict[str, Any] = {
        "lane": "openai:gpt-4o / Grüße 模型 👩\u200d💻",
        "tenant": "",
        "context": "",
        "tags": ("a", "b"),
        "deadline_s": 5,
        "timeout_s": 0.5,
        "cache_ttl": 0,
        "stale_ttl": 0,
        "shed_below": "normal",
        "priority": "high",
    }
    for name, value in said.items():
        if name not in DOORS[door]:
            door(**{name: value})


@given(st.text(max_size=250))
def test_a_name_that_is_taken_can_be_stored_and_shown(text: str) -> None:
    """UTF-8 for Redis, JSON for messages, one line for a terminal."""
    if choices.flaw_of_name(text) is not None:
        return
    assert 0 < len(text) <= 200
    assert json.loads(json.dumps(text)) == text
    assert len(text.encode()) <= 800
    assert len(text.splitlines()) == 1


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=3), st.none()))
def test_a_number_that_is_taken_has_an_end(value: Any) -> None:
    """And is what was said."""
    try:
        taken = choices.number("x", value, 1000.0)
    except BadInput:
        return
    assert 0 < taken <= 1000
    assert taken == value


@pytest.mark.parametrize(
    "arguments",
    [
        ["limits", "set", "l", "--rpm", "nan"],
        ["limits", "set", "l", "--tpd", "inf"],
        ["run", "IN", "-o", "x", "--rpm", "nan"],
        ["run", "IN", "-o", "x", "--tpm", "1e999"],
        ["analytics", "--since", "9" * 400 + "d"],
        ["emergency", "--for", "9" * 400 + "d"],
    ],
)
def test_the_command_line_takes_no_number_without_end(arguments: list[str], tmp_path: Any) -> None:
    """Exit code 2, before anything is asked of a server."""
    source = tmp_path / "in.jsonl"
    source.write_text("")
    said = CliRunner().invoke(main, [str(source) if word == "IN" else word for word in arguments])
    assert said.exit_code == 2, said.output
    assert "Traceback" not in said.output


@pytest.mark.parametrize("lane", ["", "a\nb", "\ud800", "x" * 201, "\u202e"])
def test_a_lane_of_the_settings_has_a_name(lane: str) -> None:
    """One line of the settings' own error."""
    with pytest.raises(ConfigurationError, match="MAISD_LANES") as refused:
        read_settings({"MAISD_LANES": json.dumps({lane: {"rpm": 5}})})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "DEADLINE_HOURS",
        "VISIBILITY_TIMEOUT_SECONDS",
        "CACHE_TTL_SECONDS",
        "RETENTION_DAYS",
        "MAX_ANSWER_MB",
        "MAX_DELAY",
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf", "1e300", "-1", "true"])
def test_a_time_of_the_settings_has_an_end(name: str, value: str) -> None:
    """Redis keeps no key for 1e300 hours."""
    with pytest.raises(ConfigurationError, match=f"MAISD_{name}"):
        read_settings({f"MAISD_{name}": value})
