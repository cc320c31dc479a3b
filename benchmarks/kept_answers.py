"""How much more does a cache save that keeps the answers of most worth, instead of those that were used last (LRU)?

    python -m benchmarks.kept_answers            (three minutes)

Requests follow Zipf's law (exponent 1.0) over 3,000 prompts, with fixed seeds. Costs are from 100 to 10,000 tokens
(uniform in the logarithm), sizes are lognormal (median 3 kB); both are independent of how often a prompt comes. The
first quarter fills the cache, and is not counted. Goals, at the same bytes: the cost saved is at least 1.2 times that
of LRU; if all costs are equal, at least 0.98 times. The other traces are cases in which such a rule could do harm.

The traces run through the model (policy/worth.py). One of them also runs through the scripts on a real Valkey, which
must save exactly the same within their bounds; the bytes that they count are compared with the server's real memory.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
from bisect import bisect
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from ratelimit_worker.contracts.call import Claim
from ratelimit_worker.contracts.kept import ENTRY_BYTES, NANOUSD_PER_TOKEN, Keep
from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.policy.worth import Bounds, Kept
from ratelimit_worker.stores import keys
from tests.builders import entry
from tests.fleet import Valkey
from tests.lua.cluster import Cluster, said

PROMPTS = 3000
MANY = 10**6  #: bound of entries if only bytes are short
UNEQUAL, EQUAL = 1.2, 0.98
TAGS = len("[]")
MOST_BEYOND = 1.05  #: most bytes that the server may really use for each byte that is counted


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The parameters of a trace."""

    name: str
    goal: float
    equal_costs: bool = False
    equal_sizes: bool = False
    by_size: bool = False  #: whether longer answers cost more, with a random factor of 1 to 10
    moves: float = 0.0  #: share of requests before which a new prompt replaces another
    lasts: int = 0  #: requests after which an answer expires; 0: never
    bytes: float = 0.03  #: bound of bytes, as a share of the size of all answers
    entries: float = 0.0  #: bound of entries, as a share of all prompts; 0: only bytes are bounded


KINDS = (
    Kind(name="costs over two decades, room for 3 %", goal=UNEQUAL),
    Kind(name="the same, room for 10 %", goal=UNEQUAL, bytes=0.10),
    Kind(name="the same, entries short (5 %)", goal=UNEQUAL, bytes=1.0, entries=0.05),
    Kind(name="equal costs, room for 3 %", goal=EQUAL, equal_costs=True),
    Kind(name="equal costs and sizes, room for 3 %", goal=EQUAL, equal_costs=True, equal_sizes=True),
    Kind(name="the same, room for 10 %", goal=EQUAL, equal_costs=True, equal_sizes=True, bytes=0.10),
    Kind(name="equal costs, entries short (5 %)", goal=EQUAL, equal_costs=True, bytes=1.0, entries=0.05),
    Kind(name="cost by size, room for 10 %", goal=EQUAL, by_size=True, bytes=0.10),
    Kind(name="costs over two decades, 2 % new prompts", goal=UNEQUAL, moves=0.02),
    Kind(name="equal costs, 2 % new prompts", goal=EQUAL, equal_costs=True, moves=0.02),
    Kind(name="equal costs and sizes, 10 % new prompts", goal=EQUAL, equal_costs=True, equal_sizes=True, moves=0.10),
    Kind(name="costs over two decades, answers end", goal=UNEQUAL, lasts=4000),
    Kind(name="equal costs and sizes, answers end", goal=EQUAL, equal_costs=True, equal_sizes=True, lasts=4000),
)


@dataclass(frozen=True)
class Trace:
    """The prompts that are asked, in order, and cost and size of each answer."""

    asked: list[int]
    tokens: Mapping[int, int]
    size: Mapping[int, int]
    bounds: Bounds
    lasts: int

    @property
    def from_here(self) -> int:
        """The first request that is counted."""
        return len(self.asked) // 4


def trace(kind: Kind, requests: int, seed: int = 1) -> Trace:
    """Draw a trace."""
    draw = random.Random(seed)
    weights = list(accumulate(1 / (rank + 1) for rank in range(PROMPTS)))
    tokens: dict[int, int] = {}
    size: dict[int, int] = {}

    def new(prompt: int) -> int:
        text = 3000 if kind.equal_sizes else min(200_000, round(math.exp(draw.gauss(math.log(3000), 0.9))))
        spread: float = 100 ** draw.random()
        size[prompt] = text + ENTRY_BYTES + TAGS
        tokens[prompt] = 1000 if kind.equal_costs else round(text / 10 * spread**0.5 if kind.by_size else 100 * spread)
        return prompt

    prompts = [new(number) for number in range(PROMPTS)]
    room = round(sum(size.values()) * kind.bytes)
    asked = []
    for _ in range(requests):
        if draw.random() < kind.moves:
            prompts[draw.randrange(PROMPTS)] = new(len(size))
        asked.append(prompts[bisect(weights, draw.random() * weights[-1])])
    bounds = Bounds(entries=round(PROMPTS * kind.entries) or MANY, bytes=room)
    return Trace(asked, tokens, size, bounds, kind.lasts)


def saved_by_value(one: Trace) -> tuple[int, int]:
    """Tokens that the model saves, and tokens of all requests."""
    kept, ends = Kept(), dict[str, int]()
    saved = total = 0
    for number, prompt in enumerate(one.asked):
        name, counts = str(prompt), one.tokens[prompt] * (number >= one.from_here)
        total += counts
        if one.lasts and ends.get(name, 0) <= number:
            kept.forget(name)
        if kept.use(name):
            saved += counts
            continue
        kept.keep(name, one.size[prompt], one.tokens[prompt] * NANOUSD_PER_TOKEN, one.bounds)
        ends[name] = number + one.lasts
    return saved, total


def saved_by_last_use(one: Trace) -> tuple[int, int]:
    """The same if the answer that was used longest ago is evicted first (LRU)."""
    kept: OrderedDict[int, int] = OrderedDict()  # prompt -> request at which it expires
    saved = total = used = 0
    for number, prompt in enumerate(one.asked):
        counts = one.tokens[prompt] * (number >= one.from_here)
        total += counts
        if prompt in kept and (not one.lasts or kept[prompt] > number):
            saved += counts
            kept.move_to_end(prompt)
            continue
        if kept.pop(prompt, None) is not None:
            used -= one.size[prompt]
        if one.size[prompt] > one.bounds.bytes:
            continue
        while kept and (len(kept) >= one.bounds.entries or used + one.size[prompt] > one.bounds.bytes):
            used -= one.size[kept.popitem(last=False)[0]]
        kept[prompt] = number + one.lasts
        used += one.size[prompt]
    return saved, total


def saved_by_scripts(one: Trace, cluster: Cluster) -> tuple[int, int, int, float]:
    """Tokens saved, tokens of all requests, commands in the script of a hit, and real bytes for each that is counted.

    Raises:
        AssertionError: a bound did not hold.
    """
    client: Any = cluster.client
    saved = total = hits = calls = 0
    for number, prompt in enumerate(one.asked):
        claim = Claim(
            fingerprint=str(prompt),
            ttl_s=1e6,
            join=False,
            at_once=True,
            max_entries=one.bounds.entries,
            max_bytes=one.bounds.bytes,
        )
        counts = one.tokens[prompt] * (number >= one.from_here)
        total += counts
        before = _commands(client) if hits < 100 else 0
        placed = cluster.lanes.enqueue(entry(f"c{number}", claim=claim, lane_fields={"unlimited": 1}))
        if placed.answer is not None:
            saved += counts
            if hits < 100:
                calls += _commands(client) - before
            hits += 1
            continue
        tag, _ = cluster.begin()
        text = b"x" * (one.size[prompt] - ENTRY_BYTES - TAGS)
        keep = Keep(again_nanousd=one.tokens[prompt] * NANOUSD_PER_TOKEN, packs=False)
        cluster.lanes.settle(Settlement(tag=tag, lane="gpt", answer=text, lesson=said("good"), keep=keep))
        cluster.free(tag)
        counted = int(client.hget(keys.CACHE_SIZES, "all"))
        assert counted <= one.bounds.bytes, f"{counted} bytes are kept, of at most {one.bounds.bytes}"
        assert client.zcard(keys.CACHE_USED) <= one.bounds.entries
    real = sum(client.memory_usage(name, samples=0) for name in client.scan_iter(f"{keys.CACHE}*"))
    return saved, total, round(calls / min(hits, 100)), real / counted


def _commands(client: Any) -> int:
    """Redis commands so far, without INFO and FCALL."""
    stats = client.info("commandstats")
    return sum(one["calls"] for name, one in stats.items() if name not in {"cmdstat_info", "cmdstat_fcall"})


def main(requests: int, script_requests: int, seeds: int) -> int:
    """Print the table; returns 1 if a goal is missed."""
    missed = 0
    print(f"{requests:,} requests, {PROMPTS:,} prompts, the worst of {seeds} seeds; load {os.getloadavg()[0]:.1f}\n")
    print("| trace | LRU saves | by value | x LRU's | goal |\n|---|---|---|---|---|")
    for kind in KINDS:
        shares = []
        for seed in range(1, seeds + 1):
            one = trace(kind, requests, seed)
            (by_value, total), (by_last_use, _) = saved_by_value(one), saved_by_last_use(one)
            shares.append((by_value / by_last_use, by_last_use / total, by_value / total))
        times, before, after = min(shares)
        missed += times < kind.goal
        print(
            f"| {kind.name} | {before:.1%} | {after:.1%} | {times:.2f} "
            f"| {kind.goal}{'' if times >= kind.goal else ' **MISSED**'} |",
            flush=True,
        )
    one = trace(KINDS[0], script_requests)
    with tempfile.TemporaryDirectory() as folder:
        server = Valkey(Path(folder))
        server.start()
        try:
            cluster = Cluster(server.client)
            cluster.worker()
            saved, total, commands, beyond = saved_by_scripts(one, cluster)
        finally:
            server.stop()
    by_model = saved_by_value(one)
    print(f"\nthe scripts, {script_requests:,} requests of the first trace: {saved:,} of {total:,} tokens saved")
    print(f"the model: {by_model[0]:,} of {by_model[1]:,} (goal: the same)")
    print(f"commands in the script of a hit: {commands}")
    print(f"bytes that the server holds for each that is counted: {beyond:.2f} (goal: at most {MOST_BEYOND})")
    return int(missed > 0 or by_model != (saved, total) or beyond > MOST_BEYOND)


if __name__ == "__main__":
    said_so = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said_so.add_argument("--requests", type=int, default=40_000)
    said_so.add_argument("--script-requests", type=int, default=6_000)
    said_so.add_argument("--seeds", type=int, default=3)
    given = said_so.parse_args()
    sys.exit(main(given.requests, given.script_requests, given.seeds))
