"""The course of the demo: its own provider, Redis and two workers; agents call `.delay()`, and all is counted."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from ratelimit_worker.batchfile import first_line
from ratelimit_worker.cli.cluster import Cluster, open_cluster
from ratelimit_worker.cli.demo.display import Display, Scene
from ratelimit_worker.cli.demo.story import Call, Story
from ratelimit_worker.cli.figures import lane_figures
from ratelimit_worker.cli.progress import Progress
from ratelimit_worker.cli.results import Results
from ratelimit_worker.config import environment, read_settings
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError
from ratelimit_worker.private_files import make_folder, open_file
from ratelimit_worker.simulate import Entry, Fault, HeaderStyle, Scenario, Simulator, Stats
from ratelimit_worker.stores.live import Live

MODEL = "gpt-4o-mini"
LANE = f"openai:{MODEL}"
AGENTS, WORKERS, CONCURRENCY = 8, 2, 16
RPM_LEAST, RPM_MOST = 1_500, 3_000
LATENCY = "lognormal(0.25, 0.4)"
GIVE_UP_S = 120.0  #: calls without an answer by then count as lost
POLL_S = 0.1

_QUESTIONS = (
    "Which of these two contracts is cheaper over three years?",
    "Summarize yesterday's incident for the customer.",
    "Does this function do what its name says?",
    "Which requirement contradicts which?",
    "Translate the error message into plain words.",
    "What should the next test be?",
)


class Play(Struct, frozen=True, kw_only=True):
    """The options of the demo."""

    seed: int
    calls: int = 600
    outage_s: float = 10.0

    def scenario(self) -> Scenario:
        """The provider for this seed: its limit, a cut by a third, then an outage, all while calls wait."""
        draw = random.Random(self.seed)
        rpm = float(draw.randrange(RPM_LEAST, RPM_MOST + 1))
        whole_s = self.calls / rpm * 60  # how long the calls would take at the full limit
        cut_at_s = draw.uniform(0.45, 0.55) * whole_s
        away_at_s = cut_at_s + draw.uniform(0.12, 0.2) * whole_s
        return Scenario(
            rpm=rpm,
            latency=LATENCY,
            headers=HeaderStyle.OPENAI,
            seed=self.seed,
            timeline=(
                Entry(at_s=round(cut_at_s, 1), rpm=round(rpm * 2 / 3)),
                Entry(at_s=round(away_at_s, 1), for_s=self.outage_s, fault=Fault.OUTAGE),
            ),
        )


def play(what: Play, state_dir: Path | None, progress: Progress) -> Story:
    """Run the demo; the report is written when this returns.

    Raises:
        ConfigurationError: a setting is wrong, or the state folder cannot be written.
        StoreUnavailable: the embedded Redis does not run.
        RateLimitWorkerError: the provider or the workers do not run.
    """
    began_s = time.monotonic()
    home = (state_dir or read_settings(environment()).state_path).expanduser() / "demo"
    scenario, folder = what.scenario(), _folder(home)
    with Simulator(scenario, log_path=folder / "arrivals.jsonl") as provider:
        progress.note(f"A provider with a limit that nobody is told (seed {what.seed}); the lane finds out.")
        with open_cluster(folder, alone=True, extra=_addresses(provider.url)) as cluster:
            cluster.start_workers(WORKERS, CONCURRENCY, str(cluster.app.conf.task_default_queue))
            with Display(progress) as display:
                calls = _Stage(what, cluster, provider, progress, display).play()
            cluster.stop_workers(5.0)
        provider.stop()
        story = Story(
            seed=what.seed,
            scenario=scenario,
            calls=calls,
            arrivals=provider.arrivals(),
            agents=AGENTS,
            workers=WORKERS,
            seconds=time.monotonic() - began_s,
            report_path=home / f"report-{time.strftime('%Y%m%d-%H%M%S')}-seed{what.seed}.txt",
        )
    with open(story.report_path, "w", encoding="utf-8", opener=open_file) as file:
        file.write(story.report())
    if story.whole:  # otherwise it is kept for an investigation, as after an error
        shutil.rmtree(folder, ignore_errors=True)
    return story


class _Stage(Struct):
    """The agents, and the code that waits for their answers."""

    what: Play
    cluster: Cluster
    provider: Simulator
    progress: Progress
    display: Display
    _calls: dict[str, Call] = field(default_factory=dict)  #: call id → call
    _open: set[str] = field(default_factory=set)
    _problems: list[RateLimitWorkerError] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def play(self) -> list[Call]:
        results = Results(self.cluster.app)
        began_s = time.monotonic()
        agents = [
            threading.Thread(target=self._agent, args=(number,), name=f"agent-{number}") for number in range(AGENTS)
        ]
        for agent in agents:
            agent.start()
        while any(agent.is_alive() for agent in agents) or self._open:
            with self._lock:
                waiting = list(self._open)
            for settled in results.settled(waiting):
                why = None if settled.error is None else first_line(str(settled.error))
                with self._lock:
                    call = self._calls[settled.call_id]
                    self._calls[settled.call_id] = replace(call, over_at_s=time.monotonic(), error=why)
                    self._open.discard(settled.call_id)
            for exited in self.cluster.check_workers():
                self.progress.note(f"a worker ended and was started anew: {exited}")
            self.display.tick(lambda: self._scene(time.monotonic() - began_s))
            if time.monotonic() - began_s > GIVE_UP_S:
                self.progress.note(f"given up after {GIVE_UP_S:.0f} s")
                break
            time.sleep(POLL_S)
        for agent in agents:
            agent.join()
        if self._problems:
            raise self._problems[0]
        return list(self._calls.values())

    def _agent(self, number: int) -> None:
        """One agent among others: it makes its share of the calls, and leaves the pace to the lane."""
        from ratelimit_worker.builtin import chat_completion

        for name in range(number, self.what.calls, AGENTS):
            sent_at_s = time.monotonic()
            try:
                result: Any = chat_completion.delay(
                    model=MODEL,
                    max_tokens=60,
                    messages=[{"role": "user", "content": f"{_QUESTIONS[name % len(_QUESTIONS)]} ({name})"}],
                    metadata={"custom_id": f"call-{name}"},
                )
            except RateLimitWorkerError as error:
                self._problems.append(error)
                return
            with self._lock:
                self._calls[result.id] = Call(name=f"call-{name}", sent_at_s=sent_at_s)
                self._open.add(result.id)

    def _scene(self, second: float) -> Scene:
        stats: Stats = self.provider.stats()
        lane = lane_figures(Live(self.cluster.services.redis), [LANE])
        return Scene(
            second=second,
            calls=self.what.calls,
            answered=len(self._calls) - len(self._open),
            waiting=len(self._open),
            pace=lane.pace_per_min,
            limit=stats.limits.get("requests", 0.0),
            mode=lane.mode,
            requests=stats.requests,
            refused=stats.by_status.get("429", 0),
        )


def _addresses(url: str) -> dict[str, str]:
    # The environment's proxy must not be used for a provider on loopback.
    beside = environment().get("NO_PROXY") or environment().get("no_proxy") or ""
    direct = ",".join(part for part in (beside, "127.0.0.1") if part)
    return {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "demo", "NO_PROXY": direct, "no_proxy": direct}


def _folder(home: Path) -> Path:
    """A folder for the state of one demo."""
    try:
        make_folder(home)
        return Path(tempfile.mkdtemp(prefix="state-", dir=home))
    except OSError as error:
        raise ConfigurationError(f"{home}: {error.strerror}; choose another folder with --state-dir") from error
