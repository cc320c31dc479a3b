"""The race against other clients: the measure itself, and what is counted. The clients run in benchmarks/."""

from __future__ import annotations

import heapq
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.race import aimd
from benchmarks.race.batch import Pace, answered, calls, tied
from benchmarks.race.clients import CLIENTS, HERE, environment
from benchmarks.race.count import count, statuses, table
from benchmarks.race.cubic import BETA, LEAST_RATE, AdaptiveRate, RetryQuota, backoff_s
from ratelimit_worker.simulate.answers import Endpoint, read
from ratelimit_worker.simulate.arrivals import Arrival, Incident, Log
from ratelimit_worker.simulate.http1 import Request
from ratelimit_worker.simulate.oracle import Best, delivered, oracle, oracle_time_s
from ratelimit_worker.simulate.provider import Provider, Verdict
from ratelimit_worker.simulate.scenario import Entry, Fault, Limiter, Scenario
from ratelimit_worker.simulate.scenarios import CASES, POISON, Case
from tests.properties import share

CHAT = "/v1/chat/completions"


def flood(case: Case, seconds: float, every_s: float = 0.01) -> list[Arrival]:
    """Put the case's calls to the pure provider in virtual time, one request every 10 ms, each until it is taken."""
    provider = Provider(case.provider, 0.0, "flood")
    provider.begin(0.0)
    bodies = [json.dumps(call.body(), separators=(",", ":")).encode() for call in case.calls(seconds)]
    arrivals: list[Arrival] = []
    in_hand: list[tuple[float, int, Verdict]] = []
    done = 0
    for tick in range(math.floor(seconds / every_s) + 1):
        if done == len(bodies):
            break
        now_s = tick * every_s
        while in_hand and in_hand[0][0] <= now_s:
            provider.ended(heapq.heappop(in_hand)[2])
        verdict = provider.decide(Request("POST", CHAT, {}, bodies[done], True), now_s, 1e9 + now_s)
        arrival = verdict.arrival
        heapq.heappush(in_hand, (now_s + arrival.latency_s, tick, verdict))
        arrivals.append(arrival)
        done += arrival.status in {200, 400}
    return arrivals


# --- the oracle -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flooding_never_beats_the_oracle(name: str, seed: int) -> None:
    """Nobody gets more than the oracle, and who takes all there is, whatever the refusals, gets nearly as much."""
    case = CASES[name].seeded(seed)
    mean = case.mean()
    best = oracle(case.provider, case.horizon_s, mean)
    arrivals = flood(case, case.horizon_s)
    got = best.worth(delivered(arrivals, case.horizon_s), mean)
    failed = sum(arrival.admitted and not arrival.good for arrival in arrivals)
    luck = 3 * math.sqrt(failed) if failed else 0.0  # of the share that fails by chance; its mean is what counts
    if case.finite is not None:
        assert got == case.finite
        last_s = max(arrival.t + arrival.latency_s for arrival in arrivals)
        assert oracle_time_s(case.provider, case.finite) <= last_s <= oracle_time_s(case.provider, case.finite) + 0.5
    else:
        assert len(case.calls()) > best.calls + 100
        least = min(0.985 * best.calls, best.calls - 1)  # of a slow limit, the last call is not a whole one
        if case.provider.in_flight is not None:
            luck = 0.03 * best.calls  # of the latencies that were drawn; the oracle goes by their mean
        if case.provider.knee is not None:
            least = 0.0  # a flood makes it slow
        assert least - luck <= got <= best.calls + luck


limits = st.sampled_from([30.0, 120.0, 600.0, 1200.0])
entries = st.one_of(
    st.builds(Entry, at_s=st.integers(0, 15), for_s=st.integers(1, 10), rpm=limits),
    st.builds(Entry, at_s=st.integers(0, 15), for_s=st.integers(1, 10), fault=st.just(Fault.OUTAGE)),
)


@pytest.mark.long
@settings(max_examples=share(0.6))
@given(
    rpm=limits,
    burst_s=st.sampled_from([0.0, 1.0, 5.0, 60.0]),
    limiter=st.sampled_from(list(Limiter)),
    window_s=st.sampled_from([1.0, 7.0, 60.0]),
    timeline=st.lists(entries, max_size=4),
)
def test_flooding_never_beats_the_oracle_of_any_timeline(
    rpm: float, burst_s: float, limiter: Limiter, window_s: float, timeline: list[Entry]
) -> None:
    """Limits that change and outages, over each other, for buckets and windows of any depth."""
    scenario = Scenario(
        rpm=rpm, burst_s=burst_s, limiter=limiter, window_s=window_s, latency="0", timeline=tuple(timeline)
    )
    case = Case(name="any", what="any", provider=scenario, horizon_s=20.0, nominal_rpm=1200)
    got = len(delivered(flood(case, 20.0), 20.0))
    assert got <= oracle(scenario, 20.0).calls + 1e-6


@pytest.mark.parametrize(
    ("scenario", "calls"),
    [
        (Scenario(rpm=600, latency="0"), 10 + 600),
        (Scenario(rpm=600, latency="0.5"), 10 + 595),
        (Scenario(rpm=600, burst_s=60, latency="0"), 600 + 600),
        # An outage gives nothing, and a full bucket when it is over.
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=20, for_s=30, fault=Fault.OUTAGE),)), 10 + 200 + 10 + 100),
        # ... which is empty where it lasts to the end, and not full where it is short.
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=20, fault=Fault.OUTAGE),)), 10 + 200),
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=50, for_s=10, fault=Fault.OUTAGE),)), 10 + 500 + 10),
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=20, for_s=0.5, fault=Fault.OUTAGE),)), 610),
        # What is charged and fails is gone, but for a bucket that was kept full for better times.
        (
            Scenario(rpm=600, latency="0", timeline=(Entry(at_s=10, for_s=10, fault=Fault.SERVER_ERROR, share=0.5),)),
            10 + 100 + 45 + 10 + 400,
        ),
        # What is refused for free costs nothing, nor does slowness.
        (Scenario(rpm=600, latency="0", timeline=(Entry(fault=Fault.BAD_REQUEST, share=0.5),)), 610),
        (Scenario(rpm=600, latency="0", timeline=(Entry(fault=Fault.SLOW),)), 610),
        # A lower limit empties a bucket down to its depth.
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=30, rpm=60),)), 10 + 300 + 30),
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=20, for_s=20, neighbour_rpm=300),)), 610 - 100),
        (Scenario(rpm=600, latency="0", limiter=Limiter.SLIDING, window_s=10), 700),
        (Scenario(rpm=600, latency="0.1", limiter=Limiter.SLIDING, window_s=10), 600),
        (
            Scenario(
                rpm=600,
                latency="0",
                limiter=Limiter.SLIDING,
                window_s=10,
                timeline=(Entry(at_s=15, for_s=20, fault=Fault.OUTAGE),),
            ),
            100 * len([0, 10, 35, 45, 55]),
        ),
        (Scenario(latency="0"), math.inf),
        (Scenario(latency="0", timeline=(Entry(fault=Fault.OUTAGE),)), 0),
        (Scenario(rpm=600, latency="61"), 0),
    ],
)
def test_what_the_oracle_gets_in_a_minute(scenario: Scenario, calls: float) -> None:
    """By hand: what the bucket holds, what flows in, and what becomes of it."""
    assert oracle(scenario, 60.0).calls == pytest.approx(calls)


def test_the_dimension_that_gives_fewest_binds() -> None:
    """At 500 tokens a call, 300,000 tokens a minute are 600 calls."""
    scenario = Scenario(rpm=6000, tpm=300_000, latency="0")
    assert oracle(scenario, 60.0, {"requests": 1.0, "tokens": 500.0}) == Best(610.0, "tokens")
    assert oracle(scenario, 60.0, {"requests": 1.0, "tokens": 5.0}) == Best(6100.0, "requests")


def test_how_long_the_oracle_takes() -> None:
    """1,000 calls at 20 a second, of which 20 go at once; a limit of none is no answer."""
    assert oracle_time_s(Scenario(rpm=1200, latency="0.2"), 1000) == pytest.approx(49.2, abs=0.002)
    with pytest.raises(ValueError, match="more than a day"):
        oracle_time_s(Scenario(rpm=1, timeline=(Entry(at_s=1, fault=Fault.OUTAGE),)), 10)


def test_a_long_timeline_is_no_trouble() -> None:
    """Sixty changes are done in no time, though at each the bucket may be kept or spent."""
    steps = tuple(Entry(at_s=at, for_s=0.5, rpm=300 + at, fault=Fault.SERVER_ERROR, share=0.1) for at in range(60))
    assert 400 < oracle(Scenario(rpm=600, latency="0", timeline=steps), 60.0).calls < 610


# --- what clients are given, and what counts ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_the_same_for_the_same_seed(name: str) -> None:
    """Another seed asks other questions, of the same provider; ids are unique; costs are what the provider charges."""
    case = CASES[name]
    calls = case.seeded(3).calls(10.0)
    assert calls == case.seeded(3).calls(10.0)
    assert {call.prompt for call in calls}.isdisjoint(call.prompt for call in case.seeded(4).calls(10.0))
    assert len({call.custom_id for call in calls}) == len({call.prompt for call in calls}) == len(calls)
    assert case.seeded(3).provider.limits() == case.provider.limits()
    for call in calls[:50]:
        asked = read(Endpoint.CHAT, json.dumps(call.body(), separators=(",", ":")).encode())
        assert not isinstance(asked, str)
        assert asked.cost(Endpoint.CHAT) == call.cost()


def test_one_call_in_twenty_is_poisoned() -> None:
    """And their cost is not in the mean, since the provider does not take them."""
    calls = CASES["poison"].calls()
    assert sum(POISON in call.prompt for call in calls) == pytest.approx(len(calls) / 20, rel=0.3)


def test_lengths_vary_where_tokens_bind() -> None:
    """Lognormal around 400, and their mean makes 300,000 a minute about ten calls a second."""
    case = CASES["tokens_bound"]
    lengths = sorted(call.max_tokens for call in case.calls())
    assert lengths[len(lengths) // 2] == pytest.approx(400, rel=0.1)
    assert lengths[-1] > 4 * lengths[len(lengths) // 10]
    assert 300_000 / case.mean()["tokens"] == pytest.approx(600, rel=0.05)


def arrival(n: int, t: float, status: int | None = 200, **more: object) -> Arrival:
    """A line of a log."""
    return Arrival(n=n, t=t, unix=1e9 + t, path=CHAT, status=status, **more)  # type: ignore[arg-type]


def test_only_good_answers_in_time_are_delivered() -> None:
    """Counted from the first request, by when the answer left."""
    seen = [
        arrival(1, 5.0, 429),
        arrival(2, 6.0, latency_s=1.0),
        arrival(3, 14.0, latency_s=1.0),
        arrival(4, 14.5, latency_s=1.0),
        arrival(5, 7.0, fault="malformed"),
        arrival(6, 8.0, None),
    ]
    assert [one.n for one in delivered(seen, 10.0)] == [2, 3]
    assert delivered([], 10.0) == []


def test_a_call_counts_by_its_tokens_where_they_bind() -> None:
    """Short calls that were picked out are worth less than the mean."""
    seen = [arrival(1, 0.0, cost_tokens=100), arrival(2, 0.0, cost_tokens=300)]
    mean = {"requests": 1.0, "tokens": 400.0}
    assert Best(9.0, "tokens").worth(seen, mean) == 1.0
    assert Best(9.0, "requests").worth(seen, mean) == 2.0


def test_the_figures_of_a_run_until_the_horizon() -> None:
    """Good answers in time by the oracle; 429s by the requests that met no fault; what came later is out."""
    case = CASES["outage"]
    first, second, third, fourth, fifth = (call.custom_id for call in case.calls()[:5])
    log = Log(
        [
            arrival(1, 100.0, custom_id=first, latency_s=0.2),
            arrival(2, 100.1, 429, custom_id=second),
            arrival(3, 101.0, custom_id=second, latency_s=0.2),
            arrival(4, 102.0, custom_id=first, latency_s=0.2),
            arrival(5, 103.0, 503, custom_id=third, fault="outage"),
            arrival(6, 104.0, custom_id=third, latency_s=0.2),  # whose client did not wait for it
            arrival(7, 174.9, custom_id=fourth, latency_s=0.2),  # answered too late
            arrival(8, 176.0, custom_id=fifth),
        ],
        [Incident(what="gone", t=104.1, unix=1e9, n=6)],
        [],
    )
    ends = {first: 200, second: 200, third: None, fourth: 400}
    run = count("some", case, 75.0, log, ends, ended=False)
    best = oracle(case.provider, 75.0)
    assert (run.good, run.requests, run.in_outage) == (3, 7, 1)
    assert (run.oracle, run.share) == (best.calls, 3 / best.calls)
    assert run.refusals == 1 / 6
    assert (run.failed, run.ended, run.lost, run.duplicates) == (1, 4, None, 1)
    assert "3 good of 7 requests" in run.line()
    assert json.loads(run.as_json())["client"] == "some"


def test_the_figures_of_a_run_until_its_end() -> None:
    """The oracle's time by the client's, less what it left unanswered; lost is what nothing is said of."""
    case = CASES["thousand_at_once"]
    ids = [call.custom_id for call in case.calls()]
    log = Log([arrival(n, n * 0.1, custom_id=ids[n], latency_s=0.1) for n in range(900)], [], [])
    ends: dict[str, int | None] = {**dict.fromkeys(ids[:900], 200), ids[900]: 429}
    run = count("some", case, 1000.0, log, ends, ended=True)
    assert run.seconds == pytest.approx(90.0)
    assert run.oracle == pytest.approx(49.2, abs=0.002)
    assert run.share == pytest.approx(0.9 * 49.2 / 90.0, abs=0.001)
    assert (run.failed, run.lost, run.duplicates) == (1, 99, 0)
    assert "lost 99" in run.line()
    hasty = Log([arrival(n, n * 0.01, custom_id=ids[n], latency_s=0.1) for n in range(100)], [], [])
    assert count("hasty", case, 1000.0, hasty, ends, ended=True).share == pytest.approx(0.1)


def test_a_client_that_sent_nothing_has_no_figures() -> None:
    """A figure of 0 % would say something about it."""
    with pytest.raises(ValueError, match="sent no request"):
        count("some", CASES["steady"], 60.0, Log([], [], []), {}, ended=True)


def test_the_table_has_a_row_for_each_case_and_client() -> None:
    """Medians of the seeds, with the worst beside them."""
    log = Log([arrival(1, 0.0), arrival(2, 0.1, 429)], [], [])
    worse = Log([*log.arrivals, arrival(3, 0.2, 429)], [], [])
    ends: dict[str, int | None] = {"a": 200, "b": None, "c": 400, "d": 200}
    runs = [
        count("some", CASES["steady"].seeded(seed), 60.0, seen, ends, ended=False)
        for seed, seen in enumerate([log, worse, worse])
    ]
    rows = table(runs).splitlines()
    assert len(rows) == 3
    assert rows[2] == "| steady | some | 3 | 0.2% | 0.2% | 66.7% | 66.7% | 0 | 25.0% | – | 0 |"


def test_answers_of_all_clients_are_read_alike(tmp_path: Path) -> None:
    """Ours are Batch lines, the others write as much of one; a line that was cut off is none; bad lines have no id."""
    path = tmp_path / "out.jsonl"
    answered(path, "a", 200)
    answered(path, "b", None, "APITimeoutError: too long")
    ours = {"id": "batch_req_1", "custom_id": "c", "response": {"status_code": 400, "body": {}}, "error": None}
    nameless = {"id": "batch_req_2", "custom_id": None, "response": None, "error": {"code": "bad"}}
    with path.open("a") as file:
        file.write(json.dumps(ours) + "\n" + json.dumps(nameless) + "\n" + '{"custom_id": "d", "resp')
    with path.open() as file:
        assert statuses(file) == {"a": 200, "b": None, "c": 400}


# --- the other clients ----------------------------------------------------------------------------------------------


def test_the_adaptive_rate_is_open_until_it_is_throttled() -> None:
    """Then it is 0.7 of what was measured, and grows back to the old rate along a cubic curve."""
    rate = AdaptiveRate(0.0)
    for tick in range(1, 201):
        assert rate.wait_s(tick / 20) == 0.0
        rate.learn(tick / 20, throttled=False)
    assert rate.measured == pytest.approx(20.0, rel=0.05)
    rate.learn(10.05, throttled=True)
    low = rate.rate or 0.0
    assert low == pytest.approx(BETA * rate.measured, rel=0.01)
    grown = []
    now_s = 10.05
    while now_s < 20.0:
        now_s += max(rate.wait_s(now_s), 0.01)
        rate.learn(now_s, throttled=False)
        grown.append(rate.rate or 0.0)
    assert min(grown) >= LEAST_RATE
    assert max(grown) > low
    waits = [rate.wait_s(now_s) for _ in range(400)]
    assert waits == sorted(waits)
    assert waits[-1] - waits[-2] == pytest.approx(1 / (rate.rate or 0.0))


def test_the_adaptive_rate_never_falls_below_one_in_two_seconds() -> None:
    """However often it is throttled."""
    rate = AdaptiveRate(0.0)
    for tick in range(100):
        rate.wait_s(tick / 10)
        rate.learn(tick / 10, throttled=True)
    assert (rate.rate or 0.0) >= LEAST_RATE


def test_the_retry_quota_runs_dry_and_fills_by_successes() -> None:
    """100 retries; a call that was answered gives its last one back, one that needed none gives a unit."""
    quota = RetryQuota()
    assert sum(quota.take() for _ in range(200)) == 100
    quota.succeeded(retried=True)
    assert quota.take()
    for _ in range(4):
        quota.succeeded(retried=False)
    assert not quota.take()
    assert all(0 <= backoff_s(retry) <= min(20, 2**retry) for retry in range(12))


def test_a_pace_gives_a_turn_each_interval() -> None:
    """The second turn of 6000 a minute is not before its time."""
    pace, started_s = Pace(6000), time.monotonic()
    for _ in range(4):
        pace.wait()
    assert time.monotonic() - started_s >= 0.03 - 1e-3


def test_every_client_has_an_environment_of_pinned_packages(tmp_path: Path) -> None:
    """Ours is told no rate, the others their true one; none sees this machine's keys, brokers or proxies."""
    for client in CLIENTS.values():
        lines = (HERE / f"requirements-{client.environment}.txt").read_text().splitlines()
        assert all("==" in line or line == "-r ../../requirements.lock" for line in lines)
        command = client.command(Path("in"), Path("out"), "http://localhost/v1", 600)
        assert ("--rpm" in command) == (client.script is not None)
        assert client.script is None or (HERE / client.script).is_file()
    seen = environment(tmp_path, {"OPENAI_API_KEY": "sk-x", "CELERY_BROKER_URL": "x", "HTTPS_PROXY": "x", "PATH": "p"})
    assert seen == {
        "PATH": "p",
        "OPENAI_API_KEY": "race",
        "MAISD_STATE_DIR": str(tmp_path / "state"),
        "PYTHONUNBUFFERED": "1",
    }


def test_a_file_of_calls_is_read_as_it_was_written(tmp_path: Path) -> None:
    """custom_id and body."""
    path = tmp_path / "in.jsonl"
    path.write_text('{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"x": 1}}\n')
    assert calls(path) == [("a", {"x": 1})]


def test_a_tied_process_is_the_command_and_dies_with_its_parent() -> None:
    """Its output and exit code are the command's; a parent that was killed leaves none."""
    done = subprocess.run(
        tied([sys.executable, "-c", "print(7); raise SystemExit(3)"]), capture_output=True, check=False
    )
    assert (done.stdout, done.returncode) == (b"7\n", 3)
    parent = (
        "import subprocess, sys, time; from benchmarks.race.batch import tied;"
        "subprocess.Popen(tied([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(600)']));"
        "time.sleep(600)"
    )
    root = HERE.parents[1]
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        process.kill()
        assert process.stdout.read() == b""  # the pipe closes when the child has ended too


# --- additive increase, multiplicative decrease -------------------------------------------------------------------


def test_aimd_grows_by_a_fixed_amount_a_second_and_halves_once_a_second() -> None:
    """As in Chiu and Jain: a line up, a half down, however many refusals one second brings."""
    rate = aimd.AimdRate(0.0)
    rate.learn(10.0, False)
    grown = aimd.START + 10 * aimd.STEP_PER_S
    assert rate.rate == pytest.approx(grown)
    for _ in range(5):
        rate.learn(10.0, True)
    assert rate.rate == pytest.approx(grown / 2)
    assert [rate.wait_s(10.0), rate.wait_s(10.0)] == [0.0, pytest.approx(2 / grown)]
