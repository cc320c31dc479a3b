"""Do recorded costs equal the provider's bill? 10,000 calls with failures, aborts, retries and killed workers.

    python benchmarks/ledger.py [--calls 10000] [--kills 3] [--slots 32] [--seed 1]

The simulated provider discounts cached input and charges for everything that it has admitted: answers, answers that
nobody received (the client timed out, or the worker was killed), broken answers, connections that it reset, and 5xx
(whose body has their usage). Of two workers one at a time is killed by SIGKILL, and another starts. The sum of the
tracking database is compared with the provider's own sum. Goal: they differ by at most 0.1 %. Exit code 1: missed.

The cost of some 40 attempts has to be estimated, so the difference is random: its standard deviation is about 0.03 %
for 10,000 calls.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ratelimit_worker.config import read_settings  # noqa: E402
from ratelimit_worker.reports.money import Money, dollars, spend_sentence  # noqa: E402
from ratelimit_worker.reports.stats import Sources, Stats, stats  # noqa: E402
from ratelimit_worker.simulate import Entry, Fault, Scenario, Simulator  # noqa: E402
from ratelimit_worker.stores.database import engine_for  # noqa: E402
from ratelimit_worker.stores.queries import Queries  # noqa: E402
from tests.conftest import wait_for  # noqa: E402
from tests.fleet import Fleet, Worker, fleet  # noqa: E402

GOAL = 0.001  #: largest difference, as a share of the bill
MODEL, INPUT_USD, CACHED_USD, OUTPUT_USD = "gpt-simulated", 2.5, 1.25, 10.0
TIMEOUT_S = 3.0
PATIENCE_S = 3600.0
#: Share of requests for each fault: whose body has the usage, and whose cost has to be estimated.
TOLD, LOST = 0.01, 0.001
WINDOW_S = 86_400.0  # longer than the benchmark takes
FAULTS = (
    *((fault, TOLD) for fault in (Fault.SERVER_ERROR, Fault.OVERLOADED)),
    *((fault, LOST) for fault in (Fault.RESET, Fault.HANG, Fault.TRUNCATED, Fault.MALFORMED)),
)


def scenario(seed: int) -> Scenario:
    """The provider."""
    return Scenario(
        input_usd=INPUT_USD,
        cached_input_usd=CACHED_USD,
        output_usd=OUTPUT_USD,
        cached_share=0.4,
        charges_failures=True,
        latency="0.2±0.1",
        seed=seed,
        timeline=tuple(Entry(fault=fault, share=share) for fault, share in FAULTS),
    )


def settings(base_url: str) -> dict[str, str]:
    """Environment variables of the workers, with the provider's prices."""
    prices = {MODEL: {"input": INPUT_USD, "cached_input": CACHED_USD, "output": OUTPUT_USD}}
    return {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "none",
        "MAISD_PRICES": json.dumps(prices),
        "MAISD_TIMEOUT_SECONDS": str(TIMEOUT_S),
        "MAISD_LANES": json.dumps({"bill": {"unlimited": True}}),
        "MAISD_ENABLE_AUTO_ESCALATION": "false",
    }


def send(calls: int, seed: int) -> None:
    """Send all calls, of different lengths."""
    from ratelimit_worker.builtin import chat_completion

    drawn = random.Random(seed)
    for number in range(calls):
        text = f"{number} " + "word " * drawn.randint(50, 500)
        messages = [{"role": "user", "content": text}]
        chat_completion.apply_async(
            kwargs={"model": MODEL, "messages": messages, "max_tokens": drawn.randint(100, 400)},
            lane="bill",
            cache=False,
            ignore_result=True,
        )


def start(made: Fleet, number: int, slots: int) -> Worker:
    """Start one more worker."""
    arguments = ("-P", "threads", "-c", str(slots))
    worker = Worker(f"w{number}", made.folder, made.env, arguments, "ratelimit_worker.app")
    made.workers.append(worker)
    worker.wait_ready()
    return worker


def has_answered(provider: Simulator, least: int) -> bool:
    """Whether the provider has answered so many requests."""
    return provider.stats().answered >= least


def recorded() -> Stats:
    """The figures of this benchmark from the tracking database."""
    engine = engine_for(read_settings().database_url)
    try:
        return stats(Sources.of(Queries(engine), None), WINDOW_S, time.time() + 60.0)
    finally:
        engine.dispose()


def ended() -> int:
    """The number of calls whose end is recorded."""
    return recorded().total.calls


def ledger() -> Money:
    """The costs from the tracking database."""
    return recorded().money


def play(calls: int, kills: int, slots: int, seed: int) -> float:
    """Run the whole scenario; returns the difference of recorded costs and bill, as a share of the bill."""
    with Simulator(scenario(seed)) as provider, fleet(**settings(provider.base_url)) as made:
        workers = [start(made, number, slots) for number in range(2)]
        began = time.monotonic()
        send(calls, seed)
        for kill in range(kills):
            wait_for(partial(has_answered, provider, calls * (kill + 1) // (kills + 1)), PATIENCE_S, "so many answers")
            workers.pop(0).kill()
            workers.append(start(made, kill + 2, slots))
        wait_for(lambda: ended() == calls, PATIENCE_S, "all calls have ended")
        wait_for(lambda: made.valkey.client.xlen("rlw:outbox") == 0, 60.0, "all is recorded")
        found, bill, stats = ledger(), provider.stats().billed_nanousd, provider.stats()
        off = (found.total.cost_nanousd - bill) / bill
        print(f"{calls:,} calls, {stats.requests:,} requests, {kills} workers killed, {time.monotonic() - began:.0f} s")
        print(f"faults: {stats.by_fault}; lost with workers: {found.total.lost_attempts}")
        print(f"ledger  {dollars(found.total.cost_nanousd)} ({spend_sentence(found.total)})")
        print(f"bill    {dollars(bill)}")
        word = "met" if abs(off) <= GOAL else "MISSED"
        print(f"off by  {off * 100:+.3f} %   goal ± {GOAL * 100:.1f} %  {word}   load {os.getloadavg()[0]:.1f}")
        return off


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    sys.exit(abs(play(chosen.calls, chosen.kills, chosen.slots, chosen.seed)) > GOAL)


if __name__ == "__main__":
    main()
