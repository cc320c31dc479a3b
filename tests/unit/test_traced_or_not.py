"""Does a process notice that OpenTelemetry was given a provider, at no cost while it was not?"""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import metrics, trace

from ratelimit_worker import telemetry


class Own:
    """A provider that a program has set."""


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nobody has set a provider."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", None)
    return monkeypatch


def asked() -> Any:
    """The API's own function, which reads the environment each time."""
    raise AssertionError("the API was asked")


@pytest.mark.parametrize(
    ("api", "kept"), [(trace, "_TRACER_PROVIDER"), (metrics._internal, "_METER_PROVIDER")], ids=["traces", "metrics"]
)
def test_a_provider_that_is_set_in_code_is_noticed(nothing_set: pytest.MonkeyPatch, api: Any, kept: str) -> None:
    """Also later; and without asking the API while there is none."""
    nothing_set.setattr(trace, "get_tracer_provider", asked)
    nothing_set.setattr(metrics._internal, "get_meter_provider", asked)
    assert not telemetry.configured()
    nothing_set.setattr(api, kept, Own())
    assert telemetry.configured()


@pytest.mark.parametrize(
    ("api", "kept", "get", "none"),
    [
        (trace, "_TRACER_PROVIDER", "get_tracer_provider", trace.ProxyTracerProvider()),
        (metrics._internal, "_METER_PROVIDER", "get_meter_provider", metrics.NoOpMeterProvider()),
    ],
    ids=["traces", "metrics"],
)
def test_an_api_that_keeps_it_elsewhere_is_asked(
    nothing_set: pytest.MonkeyPatch, api: Any, kept: str, get: str, none: Any
) -> None:
    """What a later version may do: its no-ops do not count."""
    nothing_set.delattr(api, kept)
    nothing_set.setattr(api, get, lambda: none)
    assert not telemetry.configured()
    nothing_set.setattr(api, get, Own)
    assert telemetry.configured()
