"""What calls will take and have taken: guessed, learned, reserved, and given back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from benchmarks import tokens
from ratelimit_worker.calls import Attempt, Cost, Outcome, Response, Usage
from ratelimit_worker.config import Settings, read_settings
from ratelimit_worker.contracts.lesson import Lesson, Settlement
from ratelimit_worker.contracts.plan import Estimated, Plan
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.flow.call import observe
from ratelimit_worker.flow.call.enqueue import Kind, plan
from ratelimit_worker.flow.duty.record import Beside, Recorder, learn
from ratelimit_worker.policy import estimate
from ratelimit_worker.policy.estimate import DEFAULT_OUTPUT_TOKENS, Learned, Sample, Size
from ratelimit_worker.policy.usage import usage_of
from ratelimit_worker.providers.tokenizer import MOST_CHARACTERS, Tokenizer
from ratelimit_worker.simulate import HeaderStyle, Scenario, Simulator
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.stores.tracker import Tracker, engine_for
from ratelimit_worker.stores.usage import MOST_KEPT, TTL_S, LearnedUsage, UsageMemory
from ratelimit_worker.wiring import Services, connect
from tests.builders import attempt, clean_environment, entry
from tests.conftest import wait_for
from tests.fleet import fleet
from tests.lua.cluster import Cluster, said

KNOWN = Learned(answers=9, factor=1.5, factor_of=9, output_tokens=80.4, output_of=9)


# ── the guess ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {}, Size()),
        (("x" * 41,), {}, Size(input_tokens=11)),
        (("x" * 20, ["y" * 10, {"z": "z" * 10}]), {}, Size(input_tokens=10)),
        (("é" * 20,), {}, Size(input_tokens=10)),
        ((7, None, 2.5, True), {"temperature": 0.1}, Size()),
        ((), {"prompt": "x" * 40, "max_tokens": 9}, Size(input_tokens=10, output_tokens=9)),
        ((), {"max_output_tokens": 7, "max_tokens": 9, "n": 2}, Size(output_tokens=7, choices=2)),
        ((), {"max_tokens": True}, Size()),
        ((), {"max_tokens": -1}, Size()),
        ((), {"generation_config": {"maxOutputTokens": 5}}, Size(output_tokens=5)),
        (({"max_tokens": 6, "messages": ["x" * 8]},), {}, Size(input_tokens=2, output_tokens=6)),
        ((), {"model": "gpt-4o-x", "input": "x" * 32}, Size(input_tokens=10, output_tokens=0, model="gpt-4o-x")),
        ((), {"input": [{"role": "u"}]}, Size(input_tokens=1)),
        (({"type": "image_url", "image_url": {"url": "A" * 10**6}},), {}, Size(input_tokens=1_000)),
    ],
)
def test_what_the_arguments_of_any_function_say(args: tuple[Any, ...], kwargs: dict[str, Any], expected: Size) -> None:
    """Bytes / 4 of all texts, wherever they stand, and the most output under any of its names."""
    assert estimate.size_of(args, kwargs) == expected


@pytest.mark.parametrize(
    ("size", "learned", "expected"),
    [
        (Size(input_tokens=100), None, Cost(input_tokens=100, output_tokens=DEFAULT_OUTPUT_TOKENS)),
        (Size(input_tokens=100, output_tokens=0), None, Cost(input_tokens=100)),
        (Size(input_tokens=100), KNOWN, Cost(input_tokens=150, output_tokens=80)),
        (Size(input_tokens=100, output_tokens=40), KNOWN, Cost(input_tokens=150, output_tokens=40)),
        (Size(input_tokens=100, choices=3), KNOWN, Cost(input_tokens=150, output_tokens=240)),
        (Size(input_tokens=100, counted=True), KNOWN, Cost(input_tokens=100, output_tokens=80)),
        (Size(input_tokens=100), structs.replace(KNOWN, factor_of=4), Cost(input_tokens=100, output_tokens=80)),
        (Size(input_tokens=100), structs.replace(KNOWN, output_of=4), Cost(input_tokens=150, output_tokens=256)),
        (Size(input_tokens=100), structs.replace(KNOWN, factor=99.0), Cost(input_tokens=1000, output_tokens=80)),
        (Size(input_tokens=100), structs.replace(KNOWN, factor=0.0), Cost(input_tokens=10, output_tokens=80)),
    ],
)
def test_a_cost_is_a_size_corrected_by_what_was_learned(size: Size, learned: Learned | None, expected: Cost) -> None:
    """From five answers on; a named maximum and a counted prompt stay as they are; the factor is bounded."""
    assert estimate.cost(size, learned) == expected


def test_the_first_answers_count_alike_and_then_the_newest_most() -> None:
    """A plain mean of the first hundred; later it follows a change, and forgets what was."""
    learned = Learned()
    for length in (100, 200, 300):
        learned = estimate.learn(learned, Sample(estimated_tokens=100, usage=Usage(length, length), at=1.0))
    assert (learned.output_tokens, learned.factor) == (pytest.approx(200), pytest.approx(2.0))
    for _ in range(2_000):
        learned = estimate.learn(learned, Sample(estimated_tokens=100, usage=Usage(50, 10), at=2.0))
    assert (learned.output_tokens, learned.factor) == (pytest.approx(10, abs=0.1), pytest.approx(0.5, abs=0.01))
    assert (learned.answers, learned.at) == (2_003, 2.0)


def test_half_an_answer_teaches_half() -> None:
    """Without input tokens, or without an estimate of them, only the output is learned; and the other way round."""
    for sample in (
        Sample(estimated_tokens=100, usage=Usage(None, 7), at=1.0),
        Sample(estimated_tokens=0, usage=Usage(50, 7), at=1.0),
        Sample(estimated_tokens=None, usage=Usage(50, 7), at=1.0),
    ):
        assert estimate.learn(None, sample) == Learned(answers=1, output_tokens=7.0, output_of=1, at=1.0)
    embedded = estimate.learn(None, Sample(estimated_tokens=100, usage=Usage(50, None), at=1.0))
    assert embedded == Learned(answers=1, factor=0.5, factor_of=1, at=1.0)


counts = st.none() | st.integers(-5, 10**12)


def test_a_tools_schema_may_name_several_types() -> None:
    """JSON Schema's way to say that an argument may be left out."""
    tool = {"function": {"parameters": {"properties": {"city": {"type": ["string", "null"], "enum": ["image"]}}}}}
    assert estimate.text_tokens([tool]) == pytest.approx(estimate.text_tokens(["string", "null", "image"]))


@given(
    st.lists(st.tuples(counts, counts, counts), max_size=30),
    st.integers(0, 10**9),
    st.none() | st.integers(0, 10**9),
    st.integers(-3, 10**6),
)
def test_whatever_was_seen_the_cost_is_bounded(
    seen: list[tuple[int | None, int | None, int | None]], input_tokens: int, output_tokens: int | None, choices: int
) -> None:
    """No answer, however odd, makes a cost negative or endless, or moves the factor beyond its bounds."""
    learned = Learned()
    for estimated, counted, output in seen:
        learned = estimate.learn(learned, Sample(estimated_tokens=estimated, usage=Usage(counted, output), at=0.0))
        assert estimate.LEAST_FACTOR <= learned.factor <= estimate.MOST_FACTOR
        assert 0 <= learned.output_tokens <= estimate.MOST_TOKENS
    cost = estimate.cost(Size(input_tokens=input_tokens, output_tokens=output_tokens, choices=choices), learned)
    assert 0 <= cost.input_tokens <= estimate.MOST_TOKENS
    assert 0 <= cost.output_tokens <= estimate.MOST_TOKENS


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, Usage(3, 4)),
        ({"usage": {"prompt_tokens": 3}}, Usage(3, None)),
        (SimpleNamespace(usage=SimpleNamespace(prompt_tokens=3, completion_tokens=4)), Usage(3, 4)),
        (SimpleNamespace(usage_metadata={"input_tokens": 1, "output_tokens": 2}), Usage(1, 2)),
        (SimpleNamespace(usage_metadata=SimpleNamespace(prompt_token_count=1, candidates_token_count=2)), Usage(1, 2)),
        ({"usage": {"prompt_tokens": "3"}}, Usage(3, None)),
        ({"usage": "much"}, None),
        ({}, None),
        ("text", None),
        (None, None),
        (Usage, None),
    ],
)
def test_what_an_answer_has_used(answer: Any, usage: Usage | None) -> None:
    """A body or an SDK's object of it, in the spellings that there are."""
    assert usage_of(answer) == usage


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def planned(kind: Kind, *args: Any, learned: Mapping[str, Learned] | None = None, **kwargs: Any) -> Plan:
    return plan(kind, args, kwargs, Settings(), now=0.0, learned=(learned or {}).get)


def test_the_plan_of_a_call_reserves_what_is_estimated() -> None:
    """By its arguments; by what was learned of its task and model; by its task's own word, which nothing corrects."""
    fresh = planned(Kind(task="t", lane="l"), "x" * 400)
    assert (fresh.cost.vector(), fresh.estimated) == ((1.0, 356.0, 100.0, 256.0), Estimated("l", 100))
    known = planned(Kind(task="t", lane="l"), "x" * 400, learned={"t\nl": KNOWN})
    assert (known.cost.vector(), known.estimated) == ((1.0, 230.0, 150.0, 80.0), Estimated("l", 100))
    of_model = planned(Kind(task="t", lane="l"), prompt="x" * 400, model="", learned={"t\nm": KNOWN})
    assert of_model.cost.tokens == 356
    of_model = planned(Kind(task="t", lane="l"), prompt="x" * 399, model="m", learned={"t\nm": KNOWN})
    assert (of_model.cost.tokens, of_model.estimated) == (230, Estimated("m", 100))
    own = planned(Kind(task="t", lane="l", cost=lambda *_: Cost(input_tokens=5)), "x", learned={"t\nl": KNOWN})
    assert (own.cost.vector(), own.estimated) == ((1.0, 5.0, 5.0, 0.0), None)
    sized = planned(Kind(task="t", cost=lambda *_: Size(input_tokens=10, model="m")), learned={"t\nm": KNOWN})
    assert sized.cost.vector() == (1.0, 95.0, 15.0, 80.0)
    counted = planned(Kind(task="t", lane="l", cost=lambda *_: Size(input_tokens=10, counted=True)))
    assert counted.estimated == Estimated("l", 0), "what was counted teaches no factor"


def test_a_tokenizer_counts_while_nothing_is_learned() -> None:
    """Its count stands for the guess until the answers have taught a factor, which is of the guess all the while."""
    asked: list[str] = []

    def count(values: Iterable[Any], model: str) -> int | None:
        asked.append(model)
        return sum(len(value.split()) for value in values if isinstance(value, str))

    def made(learned: Mapping[str, Learned]) -> Plan:
        kwargs = {"model": "m", "prompt": "one two three four"}
        return plan(Kind(task="t"), (), kwargs, Settings(), now=0.0, learned=learned.get, tokenizer=count)

    assert (made({}).cost.input_tokens, made({}).estimated) == (5, Estimated("m", 5))
    assert made({"t\nm": structs.replace(KNOWN, factor_of=4)}).cost.input_tokens == 5
    before = len(asked)
    assert made({"t\nm": KNOWN}).cost.input_tokens == 8
    assert len(asked) == before


def test_a_tokenizer_is_loaded_beside_the_caller() -> None:
    """Nothing is counted until it is there, nor of long prompts, attachments and models that it does not know."""
    loads: list[Callable[[], None]] = []

    def load(model: str) -> Callable[[str], int]:
        if model != "known":
            raise KeyError(model)
        return lambda text: len(text.split())

    tokenizer = Tokenizer(load, loads.append)
    assert [tokenizer(["a b"], model) for model in ("known", "known", "other", "")] == [None] * 4
    assert len(loads) == 2
    for fetch in loads:
        fetch()
    assert tokenizer(["a b", {"c": ["d e f", 7]}], "known") == 5
    assert tokenizer(["a b"], "other") is None
    assert tokenizer(["a " * MOST_CHARACTERS], "known") is None
    assert tokenizer([{"type": "image_url", "image_url": "x"}], "known") is None
    assert len(loads) == 2


def test_tiktoken_is_found_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported when the first model asks for it; without it nothing is counted and nothing is started."""
    loads: list[Callable[[], None]] = []
    monkeypatch.setattr("ratelimit_worker.providers.tokenizer.find_spec", lambda name: None)
    assert Tokenizer(spawn=loads.append)(["a"], "gpt-4o") is None
    assert loads == []
    encoding = SimpleNamespace(encode=lambda text, disallowed_special: list(text))
    module = SimpleNamespace(encoding_for_model={"gpt-4o": encoding}.__getitem__)
    monkeypatch.setattr("ratelimit_worker.providers.tokenizer.find_spec", lambda name: module)
    monkeypatch.setitem(sys.modules, "tiktoken", module)
    tokenizer = Tokenizer(spawn=loads.append)
    assert tokenizer(["abc"], "gpt-4o") is None
    loads[0]()
    assert tokenizer(["abc"], "gpt-4o") == 3


# ── what is learned ──────────────────────────────────────────────────────────────────────────────────────────────────


def answered(task: str = "t", **more: Any) -> Attempt:
    tokens = {"estimated_tokens": 100, "input_tokens": 120, "output_tokens": 30}
    return attempt(**{"task": task, "asked_model": "m", **tokens, **more})


@pytest.mark.server
def test_what_is_learned_lives_in_redis(redis_client: redis.Redis) -> None:
    """Written for 30 days, read by name; what is no such thing is unknown."""
    memory = UsageMemory(redis_client)
    assert memory.read([]) == memory.read(["t\nm"]) == {}
    memory.write({})
    memory.write({"t\nm": KNOWN})
    redis_client.hset(keys.USAGE, "other", b"\xc1 of another version")
    assert memory.read(["t\nm", "other", "none"]) == {"t\nm": KNOWN}
    assert TTL_S - 60 < int(redis_client.ttl(keys.USAGE)) <= TTL_S


@pytest.mark.server
def test_tasks_that_were_quiet_for_longest_are_forgotten(redis_client: redis.Redis) -> None:
    """The hash is bounded."""
    memory = UsageMemory(redis_client)
    memory.write({f"t{n}\nm": structs.replace(KNOWN, at=float(n)) for n in range(MOST_KEPT)})
    assert redis_client.hlen(keys.USAGE) == MOST_KEPT
    memory.write({"new\nm": structs.replace(KNOWN, at=1e9)})
    assert redis_client.hlen(keys.USAGE) == MOST_KEPT - MOST_KEPT // 10
    assert set(memory.read(["t0\nm", "t200\nm", "t201\nm", "new\nm"])) == {"t201\nm", "new\nm"}


@pytest.mark.server
def test_the_recorder_learns_from_what_it_records(redis_client: redis.Redis, tmp_path: Any) -> None:
    """Of answered attempts that were estimated, by task and model; a second batch goes on where the first ended."""
    memory, outbox = UsageMemory(redis_client), Outbox(redis_client)
    engine = engine_for(f"sqlite:///{tmp_path}/t.db")
    recorder = Recorder(outbox, Tracker(engine), beside=Beside(usage=memory), block_ms=1)
    outbox.append([answered(call_id=f"c{n}") for n in range(3)])
    outbox.append([answered("other", call_id="d", asked_model=None), answered("bad", outcome=Outcome.FAILED)])
    outbox.append([answered("silent", call_id="e", input_tokens=None, output_tokens=None)])
    stop = threading.Event()
    stop.set()
    recorder.run(stop)
    outbox.append([answered(call_id="last", output_tokens=70)])
    recorder.run(stop)
    engine.dispose()
    names = [estimate.key(task, "m") for task in ("t", "other", "bad", "silent")]
    found = memory.read(names)
    assert list(found) == ["t\nm"]
    assert (found["t\nm"].answers, found["t\nm"].factor) == (4, pytest.approx(1.2))
    assert found["t\nm"].output_tokens == pytest.approx(40.0)
    assert outbox.backlog() == 0


@pytest.mark.server
def test_a_thousand_answers_are_learned_in_two_round_trips(redis_client: redis.Redis) -> None:
    """One to read and one to write, whatever the number of attempts."""
    memory = UsageMemory(redis_client)
    before = int(redis_client.info("commandstats")["cmdstat_hset"]["calls"]) if _has(redis_client, "hset") else 0
    assert learn(memory, [answered(f"t{n % 10}") for n in range(1_000)]) == 1_000
    assert int(redis_client.info("commandstats")["cmdstat_hset"]["calls"]) - before == 1
    assert memory.read(["t3\nm"])["t3\nm"].answers == 100


def _has(client: redis.Redis, command: str) -> bool:
    return f"cmdstat_{command}" in client.info("commandstats")


class Copy:
    """A process's copy whose look is in the test's hand."""

    def __init__(self, memory: Callable[[], Any]) -> None:
        self.now, self.looks = 0.0, list[Callable[[], None]]()
        self.learned = LearnedUsage(memory, clock=lambda: self.now, spawn=self.looks.append)


def test_who_makes_calls_never_waits_for_what_was_learned() -> None:
    """Unknown at first; a look of its own brings what was asked for, once in ten seconds."""
    copy = Copy(lambda: SimpleNamespace(read=lambda names: dict.fromkeys(names, KNOWN)))
    assert copy.learned("a") is None
    assert copy.learned("b") is None
    assert len(copy.looks) == 1
    copy.looks[0]()
    assert copy.learned("a") == copy.learned("b") == KNOWN
    copy.now = 9.9
    assert copy.learned("c") is None
    assert len(copy.looks) == 1
    copy.now = 10.0
    assert copy.learned("c") is None
    assert len(copy.looks) == 2
    copy.looks[1]()
    assert copy.learned("c") == KNOWN


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ConfigurationError("no Redis")])
def test_without_redis_there_is_only_the_default(error: Exception) -> None:
    """The look fails in its own thread, is logged, and is tried again."""

    def memory() -> Any:
        raise error

    copy = Copy(memory)
    assert copy.learned("a") is None
    copy.looks[0]()
    copy.now = 20.0
    assert copy.learned("a") is None
    assert len(copy.looks) == 2


# ── given back ───────────────────────────────────────────────────────────────────────────────────────────────────────

NO_HEADERS = Response(status=200, headers={"content-type": "application/json"}, body={})
HEADERS = Response(
    status=200,
    headers={"x-ratelimit-limit-tokens": "100", "x-ratelimit-remaining-tokens": "50"},
    body={},
)


@pytest.mark.parametrize(
    ("response", "usage", "reconcile", "expected"),
    [
        (NO_HEADERS, Usage(10, 5), None, [0, 15, 10, 5]),
        (None, Usage(10, 5), True, [1, 15, 10, 5]),
        (NO_HEADERS, Usage(10, None), None, [0, 10, 10, -1]),
        (NO_HEADERS, Usage(None, 5), None, [0, -1, -1, 5]),
        (HEADERS, Usage(10, 5), None, [0, -1, 10, 5]),
        (HEADERS, Usage(None, None), None, None),
        (NO_HEADERS, None, True, None),
        (NO_HEADERS, Usage(10, 5), False, None),
        (
            replace(HEADERS, headers={**HEADERS.headers, "x-ratelimit-limit-tokens": "-1"}),
            Usage(1, 2),
            None,
            [0, 3, 1, 2],
        ),
    ],
)
def test_what_settling_makes_good(
    response: Response | None, usage: Usage | None, reconcile: bool | None, expected: list[int] | None
) -> None:
    """What the provider counted, but where headers tell what is left; nothing where a person says so."""
    packed = Lesson(reading=observe.read(response, "good", 0.0), usage=usage, reconcile=reconcile).used()
    assert (msgspec.msgpack.decode(packed) if packed else None) == expected


class Tokens(Cluster):
    """A lane with a budget of tokens alone: 100/s, of which it keeps 50."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lanes.set_points("gpt", {"p2": 100.0, "d2": 50.0})
        self.worker(slots=16)

    def put(self, ref: str, tokens: int = 400) -> None:
        self.lanes.enqueue(entry(ref, cost=Cost(input_tokens=100, output_tokens=tokens - 100)))

    def start(self) -> str:
        tag, begun = self.begin()
        assert begun.state == "go"
        return tag

    def finish(self, tag: str, used: int | None, told: bool | None = None, answer: bytes = b"a") -> None:
        usage = None if used is None else Usage(100, used - 100)
        self.lanes.settle(
            Settlement(tag=tag, lane="gpt", answer=answer, lesson=said("plain", usage=usage, reconcile=told))
        )

    def refuse(self, tag: str, dimension: str | None = "tokens") -> None:
        response = Response(status=429, headers={}, body={"error": {"type": dimension or "x"}})
        word = Lesson(verdict="refused", reading=observe.read(response, "refused", 0.0)).word()
        self.lanes.back(tag, "gpt", said(word, 0.01), after_s=0, tries=0)

    def level(self) -> float:  # type: ignore[override]
        """What may go now, given back beyond the depth included; written now."""
        self.lanes.set_points("gpt", {})
        fields = self.lanes.fields("gpt")
        return float(fields["l2"]) + float(fields.get("o2", 0))

    def sent(self) -> float:
        """Tokens that went, without those of refused calls."""
        fields = self.lanes.fields("gpt")
        return float(fields["c2"]) - float(fields.get("x2", 0))


@pytest.fixture
def lane(redis_client: redis.Redis) -> Tokens:
    return Tokens(redis_client)


@pytest.mark.server
def test_an_answer_gives_back_what_it_did_not_use(lane: Tokens) -> None:
    """Reserved 400, used 150: the lane owes 100, not 350; settled twice is once; what was sent in all falls too."""
    lane.put("one")
    tag = lane.start()
    assert (lane.level(), lane.sent()) == (pytest.approx(-350), 400)
    lane.finish(tag, 150)
    assert (lane.level(), lane.sent()) == (pytest.approx(-100), 150)
    lane.finish(tag, 150)
    assert (lane.level(), lane.sent()) == (pytest.approx(-100), 150)


@pytest.mark.server
def test_an_answer_that_nobody_keeps_gives_back_too(lane: Tokens) -> None:
    """In process the answer stays with its caller: nothing is stored, and twice is once all the same."""
    lane.put("one")
    tag = lane.start()
    for _ in range(2):
        lane.finish(tag, 150, answer=b"")
        assert lane.level() == pytest.approx(-100)


@pytest.mark.server
def test_an_answer_that_took_more_is_paid(lane: Tokens) -> None:
    """Reserved 400, used 600."""
    lane.put("one")
    lane.finish(lane.start(), 600)
    assert (lane.level(), lane.sent()) == (pytest.approx(-550), 600)


@pytest.mark.server
def test_where_nothing_is_known_nothing_changes(lane: Tokens) -> None:
    """No usage, or a person's word that the provider keeps it."""
    for ref, used, told in (("one", None, None), ("two", 150, False)):
        lane.live(5)
        lane.put(ref)
        lane.finish(lane.start(), used, told)
        assert lane.level() == pytest.approx(-350)


@pytest.mark.server
def test_what_is_given_back_goes_at_once(lane: Tokens) -> None:
    """A call that waits for tokens is released by the answer that gives them back, not when its wait was to end."""
    lane.put("one")
    lane.put("two")
    tag = lane.start()
    lane.advance(0.5)
    assert lane.pump() > 0.1
    assert lane.ready() == []
    lane.finish(tag, 50)
    assert lane.ready() == ["two"]


@pytest.mark.server
def test_what_exceeds_the_depth_is_kept_until_it_is_spent(lane: Tokens) -> None:
    """A full bucket of 50 and 350 given back: 400 may go; no more than one call's is kept, and time adds nothing."""
    for ref in ("one", "two"):
        lane.put(ref)
        lane.live(10)
    first, second = lane.start(), lane.start()
    lane.live(10)
    lane.finish(first, 50 + 100)
    assert lane.level() == pytest.approx(50 + 250)
    lane.finish(second, 100)
    assert lane.level() == pytest.approx(50 + 300)
    lane.live(60)
    assert lane.level() == pytest.approx(350)
    lane.put("three")
    assert lane.level() == pytest.approx(-50)


@pytest.mark.server
def test_a_provider_that_keeps_what_it_reserved_is_found_out(lane: Tokens) -> None:
    """A refusal for tokens while the lane gives back: for a minute it does not, then it tries again, then for two."""
    for doubts_s in (60, 120):
        lane.put(f"gives{doubts_s}")
        lane.finish(lane.start(), 150)
        assert lane.level() == pytest.approx(-100), "given back"
        lane.live(5)
        lane.put(f"refused{doubts_s}")
        lane.refuse(lane.start())
        assert lane.level() == pytest.approx(-751), "it may go after its wait, and two calls are left to the provider"
        lane.live(doubts_s - 1)
        lane.finish(lane.start(), 150)
        assert lane.level() == pytest.approx(50), "nothing is given back"
        lane.live(1.5)


@pytest.mark.server
@pytest.mark.parametrize(
    ("dimension", "told"), [("requests", None), (None, None), ("tokens", True)], ids=["requests", "no word", "told"]
)
def test_other_refusals_say_nothing_of_it(lane: Tokens, dimension: str | None, told: bool | None) -> None:
    """One for requests, or without a word; and none says anything against a person's `reconcile = true`."""
    lane.put("one")
    lane.finish(lane.start(), 150)
    lane.live(5)
    lane.put("two")
    lane.refuse(lane.start(), dimension)
    lane.live(20)
    lane.finish(lane.start(), 150, told)
    assert lane.level() == pytest.approx(50 + 250)


@pytest.mark.server
def test_a_refusal_gives_back_all(lane: Tokens) -> None:
    """What was sent in all is as before; the lane is not in debt, and what its call needs after its wait is there."""
    lane.put("one")
    lane.refuse(lane.start(), None)
    depth, earned_in_the_wait = 50.0, 100.0 * 0.01
    assert (lane.level(), lane.sent()) == (depth - earned_in_the_wait, 0.0)


def test_whether_a_provider_gives_back_is_a_lanes_setting() -> None:
    """true, false or auto, which is none; anything else is an error that names the fix."""
    told = {word: read_settings({"MAISD_LANES": json.dumps({"l": {"reconcile": word}})}) for word in ("true", "auto")}
    assert [settings.lanes["l"].reconcile for settings in told.values()] == [True, None]
    assert read_settings({"MAISD_LANES": '{"l": {"reconcile": false}}'}).lanes["l"].reconcile is False
    with pytest.raises(ConfigurationError, match=r"reconcile='often': use true, false or auto"):
        read_settings({"MAISD_LANES": '{"l": {"reconcile": "often"}}'})


# ── reserved ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.server
def test_reserved_are_the_tokens_of_calls_that_are_out(lane: Tokens) -> None:
    """Ready and running ones; none of those that wait; the real number from the answer to the ack."""
    lane.put("one", 400)
    lane.put("two", 300)

    def reserved() -> int:
        return Live(lane.client).now().lanes[0].reserved_tokens

    assert reserved() == 400
    tag = lane.start()
    assert reserved() == 400
    lane.finish(tag, 350)
    assert reserved() == 350
    lane.lanes.free([tag])
    assert reserved() == 0


def status(env: Mapping[str, str]) -> dict[str, Any]:
    """`status --format json`: the lane `free`."""
    command = [sys.executable, "-m", "ratelimit_worker", "status", "--format", "json"]
    done = subprocess.run(
        command, env=clean_environment(**env), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lanes: dict[str, dict[str, Any]] = {lane["lane"]: lane for lane in json.loads(done.stdout)["lanes"]}
    return lanes["free"]


@pytest.mark.server
@pytest.mark.worker
def test_the_reservations_of_a_killed_worker_drain() -> None:
    """Running calls hold their tokens; after kill -9 and the sweep, which another's worker makes, nothing is held."""
    with fleet() as made:
        dies = made.worker("dies", "-P", "threads", "-c", "4")
        made.worker("elsewhere", "-P", "threads", "-c", "2", "-Q", "elsewhere")
        agent = made.agent()
        for n in range(3):
            agent.echo.delay("x" * 400 + str(n), sleep_s=120.0)
        wait_for(lambda: status(made.env)["running"] == 3, what="all three run")
        assert status(made.env)["reserved_tokens"] == 3 * (101 + DEFAULT_OUTPUT_TOKENS)
        dies.kill()
        wait_for(lambda: status(made.env)["reserved_tokens"] == 0, what="nothing is reserved")
        lane = status(made.env)
        assert (lane["running"], lane["ready"], lane["waiting"]) == (0, 0, 3)


@pytest.mark.server
@pytest.mark.worker
def test_a_task_learns_what_it_uses() -> None:
    """Real answers over HTTP, without headers: after some of them the next plan reserves what they used, and the lane
    has been charged for what was used alone."""
    scenario = Scenario(latency="0.01", headers=HeaderStyle.NONE)
    with Simulator(scenario) as provider, fleet(OPENAI_BASE_URL=provider.base_url) as made:
        made.worker("works")
        agent = made.agent()
        first = agent.chat.plan(["0"], {})
        assert first.cost.vector()[1:] == (257, 1, DEFAULT_OUTPUT_TOKENS)
        for n in range(8):
            agent.chat.delay(str(n)).get(timeout=120)
        client = connect(RedisServer(made.valkey.url))
        memory, name = UsageMemory(client), estimate.key(agent.chat.name, "chat")
        wait_for(lambda: memory.read([name]).get(name, Learned()).answers == 8, what="the recorder has learned")
        learned = memory.read([name])[name]
        assert 4 <= learned.output_tokens <= 16, "max_tokens is 16"
        assert learned.factor == estimate.MOST_FACTOR, "the function adds words of its own to its argument"
        fields = made.valkey.client.hgetall("rlw:lane:chat")
        used = sum(arrival.input_tokens + arrival.output_tokens for arrival in provider.arrivals())
        assert float(fields[b"c2"]) == used
        live = Services(read_settings(clean_environment(**made.env)))
        assert live.learned_usage(name) is None
        wait_for(lambda: live.learned_usage(name) is not None, what="the copy has looked")
        assert live.learned_usage(name) == learned


# ── the trace ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("named", "reconciles", "told"), tokens.VARIANTS)
def test_a_budget_of_tokens_is_used_when_nobody_knows_how_long_answers_are(
    named: bool, reconciles: bool, told: bool | None
) -> None:
    """Lognormal lengths, in virtual time: at least 95 % of the budget, at most 0.5 % refusals, whatever the provider
    does with what was not used."""
    for seed in (101, 102):
        found = tokens.run(seed, named=named, reconciles=reconciles, told=told)
        assert found.used >= 0.95
        assert found.refused <= 0.005
