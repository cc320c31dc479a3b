"""Many callers want one lane: who starts when? The real scripts on a real server, in virtual time.

`tests/lua/test_fairness.py` runs it small, `benchmarks/fairness.py` whole.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import redis

from ratelimit_worker.calls import Cost, Priority
from ratelimit_worker.contracts.call import US
from tests.builders import entry
from tests.lua.cluster import LEASE_S, Cluster

WORKER_LIFE_S = 3.0  #: a worker beats at least so often
TOKENS_PER_S = 40_000.0
#: Requests that nobody runs short of, tokens that everybody does; a quarter of a second in the bucket.
TOKENS_BOUND: Mapping[str, float | str] = {
    "p1": 1000,
    "d1": 1000,
    "p2": TOKENS_PER_S,
    "d2": TOKENS_PER_S / 4,
    "l2": 0,
}


@dataclass(frozen=True, slots=True)
class Start:
    """A call that a worker began."""

    at_s: float  #: since the scene began
    ref: str
    tenant: str
    tokens: int


@dataclass
class Scene:
    """One or more lanes, a worker with slots enough, and calls that end as soon as they begin.

    Args:
        queue: All calls go there.
    """

    client: redis.Redis
    queue: str = "q"
    starts: list[Start] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client.flushall()
        self.cluster = Cluster(self.client)
        self.cluster.worker(slots=64)
        self._began_us = self.cluster.now_us
        self._beat_at_us = self.cluster.now_us
        self._calls: dict[str, tuple[str, int]] = {}

    @property
    def at_s(self) -> float:
        """Since the scene began."""
        return (self.cluster.now_us - self._began_us) / US

    def put(
        self,
        tenant: str,
        tokens: int,
        *,
        weight: float = 1.0,
        lane: str = "gpt",
        priority: Priority = Priority.NORMAL,
        fields: Mapping[str, float | str] = TOKENS_BOUND,
    ) -> str:
        """A call arrives in its lane → its reference."""
        ref = f"c{len(self._calls)}"
        self._calls[ref] = (tenant, tokens)
        self.cluster.lanes.enqueue(
            entry(
                ref,
                lane,
                self.queue,
                tenant=tenant,
                weight=weight,
                priority=priority,
                cost=Cost(input_tokens=tokens),
                lane_fields=fields,
                deadline_in_s=10 * 86_400.0,
            )
        )
        return ref

    def run(self, until_s: float) -> None:
        """Time passes: the pump does its work at its times, and what is ready begins and ends at once."""
        until_us = self._began_us + round(until_s * US)
        while True:
            self._serve()
            sleep_s = self.cluster.pump()
            if self.cluster.lying(self.queue):
                continue
            if self.cluster.now_us >= until_us:
                return
            self.cluster.advance(min(max(sleep_s, 1 / US), (until_us - self.cluster.now_us) / US))
            if self.cluster.now_us - self._beat_at_us >= WORKER_LIFE_S * US:
                self._beat_at_us = self.cluster.now_us
                self.cluster.beat("w")

    def started(self) -> set[str]:
        """References of all that have begun."""
        return {start.ref for start in self.starts}

    def _serve(self) -> None:
        while self.cluster.lying(self.queue):
            tag, _ = self.cluster.take(self.queue)
            ref = tag.rpartition(".")[0]
            if self.cluster.lanes.begin(tag, LEASE_S).state == "go":
                self.starts.append(Start(self.at_s, ref, *self._calls[ref]))
                self.cluster.free(tag)
            else:
                self.cluster.drop(tag)


def lognormal(rng: random.Random, median: float, sigma: float = 0.6) -> Callable[[], int]:
    """Token costs of one tenant: a long tail, as real answers have."""
    return lambda: max(1, round(median * rng.lognormvariate(0.0, sigma)))


def shares(starts: Sequence[Start], tenant: str, window_s: float, until_s: float) -> list[float]:
    """The share of all tokens that a tenant got, in each whole window before `until_s`."""
    got: dict[int, float] = defaultdict(float)
    everybody: dict[int, float] = defaultdict(float)
    for start in starts:
        window = int(start.at_s / window_s)
        everybody[window] += start.tokens
        got[window] += start.tokens if start.tenant == tenant else 0
    return [got[window] / everybody[window] for window in range(int(until_s / window_s))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What two tenants with weights 1 and 3 got."""

    windows: list[float]  #: share of the light one in each 10 s in which both had calls waiting; 0.25 is fair
    waits_s: list[tuple[float, float]]  #: of a third tenant's single calls: waited, and the bound of its fair share

    @property
    def worst(self) -> float:
        """The largest deviation from a quarter, as a part of it."""
        return max(abs(share - 0.25) / 0.25 for share in self.windows)


def two_tenants(client: redis.Redis, calls: int, seed: int, *, slower: float = 1.0) -> Shares:
    """Two tenants with weights 1 and 3 and different costs send all their calls; a third sends one now and then.

    Args:
        calls: Of each of the two.
        slower: The first sends its calls while the lane is so many times slower; 1: both send in turn, at one pace.
    """
    rng = random.Random(seed)
    scene = Scene(client)
    light, heavy, visitor = lognormal(rng, 400), lognormal(rng, 1000), lognormal(rng, 600)
    arrivals = [("light", light(), 1.0) for _ in range(calls)], [("heavy", heavy(), 3.0) for _ in range(calls)]
    largest = {some[0][0]: max(tokens for _, tokens, _ in some) for some in arrivals}
    left = {"light": calls, "heavy": calls}
    if slower > 1:
        fields = {**TOKENS_BOUND, "p1": 1000 / slower, "p2": TOKENS_PER_S / slower}
        for tenant, tokens, weight in arrivals[0]:
            scene.put(tenant, tokens, weight=weight, fields=fields)
        scene.cluster.lanes.set_points("gpt", {name: TOKENS_BOUND[name] for name in ("p1", "p2")})
        order = arrivals[1]
    else:
        order = [one for pair in zip(*arrivals, strict=True) for one in pair]
    for tenant, tokens, weight in order:
        scene.put(tenant, tokens, weight=weight)
    waits: list[tuple[float, float]] = []
    seen, both_until_s = 0, 0.0
    while min(left.values()) > 0:
        tokens = visitor()
        ref, put_at_s = scene.put("visitor", tokens), scene.at_s
        scene.run(scene.at_s + rng.uniform(1.0, 3.0))
        began_s = next((start.at_s for start in scene.starts if start.ref == ref), float("inf"))
        # Start-time fair queueing: each of the others goes before it once at most, with its largest call; and the call
        # that went last may have left the bucket in debt.
        bound_s = (tokens + sum(largest.values()) + max(largest.values())) / TOKENS_PER_S
        waits.append((began_s - put_at_s, bound_s))
        for start in scene.starts[seen:]:
            if start.tenant in left:
                left[start.tenant] -= 1
        seen = len(scene.starts)
        if min(left.values()) > 0:
            both_until_s = scene.at_s
    without_visitor = [start for start in scene.starts if start.tenant in left]
    return Shares(windows=shares(without_visitor, "light", 10.0, both_until_s), waits_s=waits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ageing:
    """What low calls met under a steady stream of high ones."""

    finished: int  #: low calls that began
    first_s: float  #: when the first of them began
    last_s: float
    highs_before: int  #: high calls that began before the first low one


def low_under_high(client: redis.Redis, lows: int, per_s: float, load: float, for_s: float) -> Ageing:
    """Low calls wait while high ones arrive all the time.

    Args:
        per_s: The lane's pace, calls/s.
        load: High calls that arrive, as a part of the pace; above 1 they alone are more than the lane takes.
    """
    scene = Scene(client)
    fields: Mapping[str, float | str] = {"p1": per_s, "d1": 1, "l1": 0}
    scene.put("", 0, priority=Priority.HIGH, fields=fields)
    low = {scene.put("batch", 0, priority=Priority.LOW) for _ in range(lows)}
    for at_s in _every(1 / (per_s * load), for_s):
        scene.run(at_s)
        scene.put("", 0, priority=Priority.HIGH)
    began = [index for index, start in enumerate(scene.starts) if start.ref in low]
    return Ageing(
        finished=len(began),
        first_s=scene.starts[began[0]].at_s,
        last_s=scene.starts[began[-1]].at_s,
        highs_before=began[0],
    )


def _every(step_s: float, until_s: float) -> Iterator[float]:
    for number in range(1, int(until_s / step_s) + 1):
        yield number * step_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What ran at once in a lane with a cap."""

    most: int  #: begun and not ended, those of dead workers included until their lease ended
    finished: int
    killed_with: int  #: calls that the killed worker held
    full_s: float  #: how long as many ran as may, seconds


def capped(client: redis.Redis, cap: int, calls: int, seed: int) -> Running:
    """Three workers run the calls of a lane with a cap, each for 0.5 to 3 s; one of them is killed in the middle."""
    rng = random.Random(seed)
    client.flushall()
    cluster = Cluster(client)
    for name in ("w1", "w2", "w3"):
        cluster.worker(name, slots=4)
    for number in range(calls):
        call = entry(f"c{number}", lane_fields={"p1": 200, "d1": 50, "cap": cap}, deadline_in_s=86_400.0)
        cluster.lanes.enqueue(call)
    running: dict[str, tuple[str, float]] = {}  #: tag → worker, when it ends
    ghosts: deque[tuple[str, float]] = deque()  #: tag of a dead worker's call, when it ends at the provider
    most, finished, killed_with, full_s = 0, 0, 0, 0.0
    at_s = lambda: cluster.now_us / US  # noqa: E731
    began_s, moments = at_s(), [at_s()]
    while finished < calls and at_s() - began_s < 3600:
        for name in list(cluster.workers):
            while len(cluster.held[name]) < 4 and cluster.lying():
                tag, begun = cluster.begin("q", name)
                if begun.state == "go":
                    running[tag] = (name, at_s() + rng.uniform(0.5, 3.0))
                else:
                    cluster.drop(tag)
        while ghosts and ghosts[0][1] <= at_s():
            ghosts.popleft()
        most = max(most, len(running) + len(ghosts))
        full_s += moments[-1] - moments[-2] if len(running) + len(ghosts) >= cap and len(moments) > 1 else 0.0
        if not killed_with and finished >= calls // 3 and any(worker == "w1" for worker, _ in running.values()):
            held = cluster.kill("w1")
            killed_with = len(held)
            dead = sorted((running.pop(tag)[1], tag) for tag in held if tag in running)
            ghosts.extend((tag, end_s) for end_s, tag in dead)  # they may go on at the provider
        cluster.live(0.1)
        moments.append(at_s())
        for tag in [tag for tag, (_, end_s) in running.items() if end_s <= at_s()]:
            del running[tag]
            cluster.settle(tag)
            cluster.free(tag)
            finished += 1
    assert all(b >= a for a, b in pairwise(moments))
    return Running(most=most, finished=finished, killed_with=killed_with, full_s=full_s)
