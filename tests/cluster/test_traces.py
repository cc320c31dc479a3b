"""One trace a call, from `.delay()` to its settled answer, on a real worker: retried, joined, kept, failed, waiting.

Whether a wait or a settlement has a span depends on how long it took, so these tests expect one only where there is
something to say about it.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ratelimit_worker.errors import CallFailed
from ratelimit_worker.telemetry import SHORTEST_S, Tracer
from ratelimit_worker.worker.installed import services_of
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker
from tests.fleet import fleet as a_fleet

pytestmark = pytest.mark.worker
OWN = "ratelimit_worker."
AT_WILL = ("wait", "settle")  #: names of the spans that a call has only if they took long
LANES = '{"free": {"unlimited": true}, "stamp": {"unlimited": true, "concurrency": 1}, "sick": {"unlimited": true}}'


class Place:
    """A traced worker, and this process as a traced agent. Spans are dicts, as the SDK writes them as JSON."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.agent = fleet.agent()
        self._sent = InMemorySpanExporter()
        traces = TracerProvider()
        traces.add_span_processor(SimpleSpanProcessor(self._sent))
        live = services_of(self.agent.app)
        live.once("tracer", lambda: Tracer(live._holding, traces))

    def spans(self, call_id: str) -> list[dict[str, Any]]:
        """Of a call, in the order in which they began."""
        path = self.fleet.folder / "spans"
        lines = path.read_text().splitlines() if path.exists() else []
        lines += [span.to_json(indent=None) for span in self._sent.get_finished_spans()]
        found = [span for span in map(json.loads, lines) if span["attributes"].get(OWN + "call.id") == call_id]
        return sorted(found, key=lambda span: str(span["start_time"]))

    def trace(self, call_id: str, *names: str) -> list[dict[str, Any]]:
        """The spans of a call once they have these names, all in one trace, and those of workers under the first.

        Of waits and settlements there may be more.
        """

        def are_there() -> bool:
            missing = list(names)
            for name in (span["name"] for span in self.spans(call_id)):
                if name in missing:
                    missing.remove(name)
                elif name not in AT_WILL:
                    return False
            return not missing

        wait_for(are_there, what=lambda: f"{names}, not {[span['name'] for span in self.spans(call_id)]}")
        found = self.spans(call_id)
        send = next(span for span in found if span["name"].startswith("send "))
        assert {span["context"]["trace_id"] for span in found} == {send["context"]["trace_id"]}
        assert {span["parent_id"] for span in found if span is not send} <= {send["context"]["span_id"]}
        return [next(span for span in found if span["name"] == name) for name in dict.fromkeys(names)]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with a_fleet(MAISD_LANES=LANES, MAISD_OTEL="auto") as fleet:
        worker = Worker("traced", fleet.folder, fleet.env, ("-P", "threads", "-c", "8"), app="tests.traced_app")
        fleet.workers.append(worker)
        worker.wait_ready()
        yield Place(fleet)


def events(span: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of a span, by name."""
    return {event["name"]: event["attributes"] for event in span["events"]}


def test_a_call_is_one_trace_from_sending_to_its_settled_answer(place: Place) -> None:
    sent = place.agent.echo.apply_async((1,), tenant="team-a", priority="high")
    assert sent.get(timeout=120) == 1
    send, attempt = place.trace(sent.id, "send tests.fleet_app.echo", "chat")
    assert (send["kind"], attempt["kind"]) == ("SpanKind.PRODUCER", "SpanKind.CLIENT")
    assert send["start_time"] <= attempt["start_time"] <= attempt["end_time"]
    assert attempt["attributes"][OWN + "wait_s"] >= 0.0
    for span in (send, attempt):
        assert span["attributes"][OWN + "lane"] == "free"
        assert (span["attributes"][OWN + "tenant"], span["attributes"][OWN + "class"]) == ("team-a", "high")
    assert attempt["attributes"]["gen_ai.operation.name"] == "chat"
    assert (attempt["attributes"][OWN + "outcome"], attempt["status"]["status_code"]) == ("answered", "UNSET")


def test_the_attempts_of_a_retried_call_are_in_one_trace(place: Place) -> None:
    sent = place.agent.sick.delay(1)
    assert sent.get(timeout=120) == 1
    place.trace(sent.id, "send tests.fleet_app.sick", "chat", "wait", "chat")
    waits, attempts = ([span for span in place.spans(sent.id) if span["name"] == name] for name in ("wait", "chat"))
    assert [span["attributes"].get("error.type") for span in attempts] == ["server_error", None]
    assert [span["attributes"][OWN + "attempt"] for span in attempts] == [1, 2]
    assert [span["status"]["status_code"] for span in attempts] == ["ERROR", "UNSET"]
    assert ["again" in events(wait) for wait in waits[:-1]] == [False] * len(waits[:-1])
    assert waits[-1]["end_time"] == attempts[1]["start_time"]
    costs = int(attempts[0]["attributes"][OWN + "outcome"] == "retried")  # not while the provider is thought away
    assert events(waits[-1])["again"] == {OWN + "attempts": 1, OWN + "tries": costs}
    assert events(waits[-1])["sick"] == {OWN + "in_a_row": 1}


def test_a_task_that_retries_itself_stays_in_its_trace(place: Place) -> None:
    """`self.retry` sends the call again within its attempt: that span is the attempt's child, and the next one its."""
    sent = place.agent.flaky.delay(1)
    assert sent.get(timeout=120) == 1
    names = ("send tests.fleet_app.flaky", "chat")
    wait_for(
        lambda: [span["name"] for span in place.spans(sent.id) if span["name"] not in AT_WILL] == [*names, *names],
        what=lambda: str([span["name"] for span in place.spans(sent.id)]),
    )
    chain = [span for span in place.spans(sent.id) if span["name"] not in AT_WILL]
    assert [span["parent_id"] for span in chain[1:]] == [span["context"]["span_id"] for span in chain[:-1]]
    assert len({span["context"]["trace_id"] for span in place.spans(sent.id)}) == 1
    assert [span["attributes"][OWN + "outcome"] for span in chain if span["name"] == "chat"] == ["retried", "answered"]


def test_a_failed_call_says_its_kind_of_error_and_nothing_that_was_asked(place: Place) -> None:
    sent = place.agent.refused.delay("a secret question", "sk-secret")
    with pytest.raises(CallFailed):
        sent.get(timeout=120)
    _, attempt = place.trace(sent.id, "send tests.fleet_app.refused", "chat")
    told = attempt["attributes"]
    assert (told["error.type"], told["http.response.status_code"]) == ("invalid_request", 400)
    assert (told[OWN + "outcome"], attempt["status"]) == ("failed", {"status_code": "ERROR"})
    assert "secret" not in json.dumps(place.spans(sent.id))


def test_joined_and_kept_answers_link_to_the_call_that_asked(place: Place) -> None:
    """Also for a second hit, whose result the script stores itself; and no answer shows who asked for it."""
    ask = place.agent.shared_twice
    first = ask.delay("the same")
    wait_for(lambda: place.fleet.stamps("twice"), what="the leader runs")
    second = ask.delay("the same")
    place.agent.shared_twice.apply_async(("other",)).get(timeout=120)  # lets the leader end
    assert first.get(timeout=120) == second.get(timeout=120)
    asked = place.trace(first.id, "send tests.fleet_app.shared_twice", "chat")[0]["context"]
    _, joined = place.trace(second.id, "send tests.fleet_app.shared_twice", "shared tests.fleet_app.shared_twice")
    assert joined["attributes"][OWN + "reuse"] == "joined"
    hits = [ask.delay("the same") for _ in range(2)]
    assert [hit.get(timeout=120) for hit in hits] == [first.get()] * 2
    for hit in hits:
        (send,) = place.trace(hit.id, "send tests.fleet_app.shared_twice")
        assert send["attributes"][OWN + "reuse"] == "hit"
        assert [link["context"]["span_id"] for link in send["links"]] == [asked["span_id"]]
        result: Any = place.fleet.valkey.client.get(f"celery-task-meta-{hit.id}")
        assert json.loads(result)["result"] == first.get()
    assert [link["context"]["trace_id"] for link in joined["links"]] == [asked["trace_id"]]


def test_a_wait_says_what_held_the_call(place: Place) -> None:
    """The lane lets one call run at a time, and two others wait for it."""
    sent = [place.agent.stamp.delay(str(number), 0.5) for number in range(3)]
    assert [one.get(timeout=120) for one in sent] == ["0", "1", "2"]
    waits = [place.trace(one.id, "send tests.fleet_app.stamp", "wait", "chat")[1] for one in sent[1:]]
    assert any("concurrency" in events(wait) for wait in waits), [events(wait) for wait in waits]


def test_a_settlement_lasts_until_the_answer_is_safe(place: Place) -> None:
    """Redis stands still when the function ends: the attempt's span ends then, `settle` only when Redis goes on."""
    sent = place.agent.meet.delay(2, "settled")
    wait_for(lambda: place.fleet.stamps("settled"), what="it runs")
    place.fleet.valkey.signal(signal.SIGSTOP)
    try:
        with (place.fleet.folder / "settled").open("a") as file:
            file.write("0.0 y\n")  # the function ends
        _, attempt = place.trace(sent.id, "send tests.fleet_app.meet", "chat")
        ended_s = datetime.fromisoformat(attempt["end_time"]).timestamp()
        wait_for(lambda: time.time() - ended_s > 2 * SHORTEST_S, what="it has taken long enough to be seen")
        stood_until_s = time.time()
    finally:
        place.fleet.valkey.signal(signal.SIGCONT)
    assert sent.get(timeout=120) is None
    *_, settle = place.trace(sent.id, "send tests.fleet_app.meet", "chat", "settle")
    assert settle["start_time"] == attempt["end_time"]
    assert datetime.fromisoformat(settle["end_time"]).timestamp() >= stood_until_s
    assert settle["attributes"][OWN + "outcome"] == "answered"


@pytest.mark.parametrize(
    ("pool", "traced_from"),
    [("-P prefork -c 2", "start"), ("-P prefork -c 2", "child"), ("-P gevent -c 4", "start")],
)
def test_no_span_is_lost_in_other_pools_and_none_has_a_prompt(pool: str, traced_from: str) -> None:
    """The SDK exports batches while the worker runs, also in a process that was forked, and the rest when it ends.

    Arguments, answers and tracebacks are captured for the tracking database, and are in no span all the same.
    """
    env = {
        "MAISD_LANES": LANES,
        "MAISD_CAPTURE_CONTENT": "true",
        "TRACED_FROM": traced_from,
        "TRACED_IN_BATCHES": "1",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
        "OTEL_BSP_SCHEDULE_DELAY": "3600000",  # nothing is exported because of time
    }
    with a_fleet(**env) as fleet:
        worker = Worker("traced", fleet.folder, fleet.env, tuple(pool.split()), app="tests.traced_app")
        fleet.workers.append(worker)
        worker.wait_ready()
        place = Place(fleet)
        sent = [place.agent.echo.delay("a secret answer") for _ in range(9)]
        assert [one.get(timeout=120) for one in sent] == ["a secret answer"] * 9
        failed = place.agent.leaks.delay("a secret question")
        with pytest.raises(LookupError):
            failed.get(timeout=120)
        wait_for((fleet.folder / "spans").exists, what="a batch is exported while the worker runs")
        worker.stop()
        for one in sent:
            place.trace(one.id, "send tests.fleet_app.echo", "chat")
        _, attempt = place.trace(failed.id, "send tests.fleet_app.leaks", "chat")
        assert (attempt["attributes"]["error.type"], attempt["status"]["status_code"]) == ("LookupError", "ERROR")
        assert "secret" not in (fleet.folder / "spans").read_text()
        assert "secret" not in "".join(json.dumps(place.spans(one.id)) for one in [*sent, failed])
