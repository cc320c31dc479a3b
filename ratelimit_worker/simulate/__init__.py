"""A provider with a real limit and scripted faults, for demos and tests (docs/simulate.md).

    with Simulator(Scenario(rpm=600)) as provider:
        client = OpenAI(base_url=provider.base_url, api_key="any")
        ...
        assert most_in_window([arrival.t for arrival in provider.arrivals()]) <= 11

bucket, window, draws, timeline, headers, answers, provider: decisions, pure, with the time passed in
http1, server: the same over HTTP · process: the same as a process of its own · arrivals: what it saw
scenarios, oracle: against which providers a client is measured, and what could have been had of them
"""

from __future__ import annotations

from ratelimit_worker.simulate.arrivals import (
    Arrival,
    Incident,
    Log,
    duplicates,
    goodput,
    lost,
    most_in_window,
    rate,
    read_log,
)
from ratelimit_worker.simulate.counters import Stats
from ratelimit_worker.simulate.process import Simulator, SimulatorFailed
from ratelimit_worker.simulate.scenario import Entry, Fault, HeaderStyle, Limiter, Outage, Scenario, read_scenario
from ratelimit_worker.simulate.server import Server, serve

__all__ = [
    "Arrival",
    "Entry",
    "Fault",
    "HeaderStyle",
    "Incident",
    "Limiter",
    "Log",
    "Outage",
    "Scenario",
    "Server",
    "Simulator",
    "SimulatorFailed",
    "Stats",
    "duplicates",
    "goodput",
    "lost",
    "most_in_window",
    "rate",
    "read_log",
    "read_scenario",
    "serve",
]
