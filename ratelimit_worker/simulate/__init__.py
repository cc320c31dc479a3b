"""A provider with a real limit and scripted faults, for demos and tests (docs/simulate.md).

    with Simulator(Scenario(rpm=600)) as provider:
        client = OpenAI(base_url=provider.base_url, api_key="any")
        ...
        assert most_in_window([arrival.t for arrival in provider.arrivals()]) <= 11

bucket, window, draws, timeline, headers, answers, provider: decisions; pure, the time is an argument
http1, server: the provider over HTTP · process: the server as a process of its own · arrivals: its log
scenarios, oracle: providers against which clients are measured, and the most that a client could reach there
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
