"""How exactly does a budget of money hold? 64 callers on one dollar, against a provider that bills.

    python benchmarks/budget.py [--callers 64] [--usd 1] [--seed 1]

Twice as many calls as the money pays for wait in a lane with this daily budget. Their costs differ, and some of them
fail and are charged nevertheless. When no call is sent any more, the provider's own bill is compared with the budget.
Goals: at least the whole budget is spent (no call waits while money is left), and beyond it at most the cost of one
call for each caller; the budget's own count equals the bill. Then the budget is removed, and every call must get its
answer. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from celery import Celery  # noqa: E402

from ratelimit_worker.app import make_app  # noqa: E402
from ratelimit_worker.calls import LaneLimits  # noqa: E402
from ratelimit_worker.contracts.budget import NANO  # noqa: E402
from ratelimit_worker.flow.lane.limit import Change, set_limits  # noqa: E402
from ratelimit_worker.policy.budget import Period  # noqa: E402
from ratelimit_worker.simulate import Entry, Fault, Scenario, Simulator  # noqa: E402
from ratelimit_worker.stores.live import LaneNow, Live  # noqa: E402
from ratelimit_worker.wiring import services  # noqa: E402
from tests.conftest import wait_for  # noqa: E402
from tests.fleet import Fleet, Worker, fleet  # noqa: E402

MODEL, INPUT_USD, OUTPUT_USD = "gpt-simulated", 2.5, 10.0
LANE = "bill"
PATIENCE_S = 600.0
WORDS, MOST_OUTPUT = (50, 400), (100, 400)
USUAL_USD = 0.0031  #: about the cost of a call; used only to choose how many are sent


@dataclass(frozen=True, slots=True)
class Edge:
    """The result; amounts in dollars."""

    calls: int
    billed_usd: float  #: the provider's bill when no call was sent any more
    counted_usd: float  #: what the budget had counted at that time
    most_usd: float  #: the most that one call may cost
    waiting: int  #: calls that waited at that time
    requests: int  #: at the end, when no call was left
    seconds: float  #: until no call was sent any more


def scenario(seed: int) -> Scenario:
    """The provider."""
    return Scenario(
        input_usd=INPUT_USD,
        output_usd=OUTPUT_USD,
        charges_failures=True,
        latency="0.2±0.1",
        seed=seed,
        timeline=(Entry(fault=Fault.SERVER_ERROR, share=0.02),),
    )


def settings(base_url: str, usd: float) -> dict[str, str]:
    """Environment variables of the workers."""
    return {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "none",
        "MAISD_PRICES": json.dumps({MODEL: {"input": INPUT_USD, "output": OUTPUT_USD}}),
        "MAISD_LANES": json.dumps({LANE: {"unlimited": True, "usd_per_day": usd}}),
        "MAISD_ENABLE_AUTO_ESCALATION": "false",
    }


def send(app: Celery, calls: int, seed: int) -> None:
    """Send all calls, of different lengths."""
    from ratelimit_worker.builtin import chat_completion  # it belongs to whichever app is there when it is imported

    task = app.tasks[chat_completion.name]
    drawn = random.Random(seed)
    for number in range(calls):
        messages = [{"role": "user", "content": f"{number} " + "word " * drawn.randint(*WORDS)}]
        task.apply_async(
            kwargs={"model": MODEL, "messages": messages, "max_tokens": drawn.randint(*MOST_OUTPUT)},
            lane=LANE,
            cache=False,
            ignore_result=True,
        )


def standing(made: Fleet) -> tuple[LaneNow, Period] | None:
    """The lane and its budget; None: neither is there yet."""
    now = Live(made.valkey.client).now([LANE])
    if not now.lanes or not now.budgets:
        return None
    return now.lanes[0], now.budgets[0].periods[0]


def stands_still(made: Fleet) -> bool:
    """Whether the money is spent, and no call is out."""
    found = standing(made)
    return found is not None and found[1].is_spent and found[0].ready + found[0].running == 0


def is_empty(made: Fleet) -> bool:
    """Whether no call is left."""
    (lane,) = Live(made.valkey.client).now([LANE]).lanes
    return lane.waiting + lane.due_later + lane.ready + lane.running == 0


def play(callers: int, usd: float, seed: int, workers: int = 2) -> Edge:
    """Run the whole scenario."""
    calls = round(2 * usd / USUAL_USD) + callers
    with Simulator(scenario(seed)) as provider, fleet(**settings(provider.base_url, usd)) as made:
        for number in range(workers):
            arguments = ("-P", "threads", "-c", str(callers // workers))
            worker = Worker(f"w{number}", made.folder, made.env, arguments, "ratelimit_worker.app")
            made.workers.append(worker)
            worker.wait_ready()
        began = time.monotonic()
        send(make_app(), calls, seed)
        wait_for(lambda: stands_still(made), PATIENCE_S, "the money is spent")
        billed = provider.stats().billed_nanousd
        found = standing(made)
        assert found is not None
        took_s = time.monotonic() - began
        set_limits(services().control, LANE, Change(usd_per_day=0), LaneLimits())
        wait_for(lambda: is_empty(made), PATIENCE_S, "all have gone")
        return Edge(
            calls=calls,
            billed_usd=billed / NANO,
            counted_usd=found[1].spent_usd,
            most_usd=((WORDS[1] + 50) * 2 * INPUT_USD + MOST_OUTPUT[1] * OUTPUT_USD) / 1e6,
            waiting=found[0].waiting + found[0].due_later,
            requests=provider.stats().requests,
            seconds=took_s,
        )


def is_met(edge: Edge, callers: int, usd: float) -> bool:
    """Whether the goals are met."""
    over = edge.billed_usd - usd
    counts = abs(edge.counted_usd - edge.billed_usd) <= 0.001 * edge.billed_usd
    return 0 <= over <= callers * edge.most_usd and counts and edge.requests >= edge.calls


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--usd", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    edge = play(chosen.callers, chosen.usd, chosen.seed)
    met = is_met(edge, chosen.callers, chosen.usd)
    print(f"{edge.calls:,} calls, {chosen.callers} at once, {edge.seconds:.0f} s until nothing went any more")
    print(f"budget  ${chosen.usd:.4f}")
    print(f"bill    ${edge.billed_usd:.4f}   {edge.waiting:,} calls wait for the next day")
    print(f"counted ${edge.counted_usd:.4f}   goal: the bill ± 0.1 %")
    print(
        f"beyond  ${edge.billed_usd - chosen.usd:.4f}   goal: 0 to ${chosen.callers * edge.most_usd:.2f}, one call for "
        f"each caller"
    )
    print(f"requests when the budget is gone and no call waits: {edge.requests:,} for {edge.calls:,} calls")
    print(f"{'met' if met else 'MISSED'}   load {os.getloadavg()[0]:.1f}")
    sys.exit(not met)


if __name__ == "__main__":
    main()
