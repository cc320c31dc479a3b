"""The command `simulate`: a provider with a real limit, from the command line.

It is defined here and not in `ratelimit_worker.cli`, which may import this package but not the reverse, because
`python -m ratelimit_worker.simulate` is the same command.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.number_options import Amount, Whole
from ratelimit_worker.private_files import make_file
from ratelimit_worker.simulate.counters import Stats
from ratelimit_worker.simulate.scenario import HeaderStyle, Limiter, Scenario, read_scenario

_PARENT_LOOK_S = 1.0


@click.command()
@click.option("--rpm", type=Amount(), help="Requests a minute. Default: no limit.")
@click.option("--tpm", type=Amount(), help="Tokens a minute, input and output. Default: no limit.")
@click.option("--itpm", type=Amount(), help="Input tokens a minute. Default: no limit.")
@click.option("--otpm", type=Amount(), help="Output tokens a minute. Default: no limit.")
@click.option("--burst-s", type=Amount(), help="Depth of each bucket in seconds of its rate. Default: 1.")
@click.option("--limiter", type=click.Choice([str(kind) for kind in Limiter]), help="Default: bucket.")
@click.option("--window-s", type=Amount(), help="Length of each window of --limiter sliding. Default: 60.")
@click.option("--per-key/--one-for-all", default=None, help="A budget for each key. Default: one for all.")
@click.option("--in-flight", type=Whole(), help="Requests in flight at once; the next gets a 429. Default: no bound.")
@click.option("--in-flight-told/--in-flight-untold", default=None, help="Whether that 429 says why. Default: it does.")
@click.option("--knee", type=Whole(), help="With more requests in flight each takes longer. Default: none.")
@click.option("--knee-power", type=Amount(), help="Longer by (in flight / knee) to this power. Default: 1.")
@click.option("--reconcile/--no-reconcile", default=None, help="Give unused output tokens back with the answer.")
@click.option("--latency", metavar="S", help='"0.05" (default), "0.05±0.02" or "lognormal(0.05, 0.5)", seconds.')
@click.option("--headers", type=click.Choice([str(style) for style in HeaderStyle]), help="Default: auto, by path.")
@click.option("--header-lag-s", type=Amount(), help="Headers tell the state of so many seconds ago. Default: 0.")
@click.option("--header-round", type=Amount(), help="Round what is left down to this share of the most. Default: 0.")
@click.option("--retry-after/--no-retry-after", default=None, help="Whether refusals say when to come back.")
@click.option("--retry-after-ms/--no-retry-after-ms", default=None, help="Whether it is told in milliseconds too.")
@click.option("--words/--no-words", default=None, help="Whether refusals name limit and dimension.")
@click.option("--seed", type=Whole(), help="Of answers, latencies and faults. Default: 0.")
@click.option(
    "--scenario", "scenario_path", type=click.Path(path_type=Path), help="TOML or JSON file; options win over it."
)
@click.option("--log", "log_path", type=click.Path(path_type=Path), help="Append arrivals to it as JSON lines.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=Whole(0, 65_535), default=0, help="Default: any free one.")
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="End when stdin or the parent does.")
def simulate(
    scenario_path: Path | None,
    log_path: Path | None,
    host: str,
    port: int,
    until_stdin_closes: bool,
    **options: Any,
) -> None:
    """Run a simulated LLM provider with a true rate limit and scripted faults.

    Prints its base URL; notes go to stderr. GET /_stats and /_log tell what it saw, POST /_control changes it.
    """
    try:
        scenario = Scenario() if scenario_path is None else read_scenario(scenario_path)
        given = {name: value for name, value in options.items() if value is not None}
        if "headers" in given:
            given["headers"] = HeaderStyle(given["headers"])
        if "limiter" in given:
            given["limiter"] = Limiter(given["limiter"])
        scenario = replace(scenario, **given)
    except ConfigurationError as error:
        raise _BadInput(str(error)) from error
    if log_path is not None:
        try:
            make_file(log_path)
        except OSError as error:
            raise _BadInput(f"--log {log_path}: {error.strerror}; give a file that can be written") from error
    try:
        stats = asyncio.run(_run(scenario, host, port, log_path, until_stdin_closes))
    except OSError as error:
        raise click.ClickException(f"{error}; try another --port or --log") from error
    click.echo(_summary(stats), err=True)


async def _run(scenario: Scenario, host: str, port: int, log_path: Path | None, until_stdin_closes: bool) -> Stats:
    from ratelimit_worker.simulate.server import serve

    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    async with await serve(scenario, host, port, log_path) as server:
        if until_stdin_closes:
            _watch_parent(loop, over)  # before the address is printed: the parent may die right after that
        click.echo(server.base_url)
        sys.stdout.flush()
        click.echo(f"limits a minute: {_limits(scenario)}; Anthropic's base URL: {server.url}; Ctrl-C ends", err=True)
        loop.set_exception_handler(server.broken)
        waiting = loop.create_task(over.wait())
        ends: set[asyncio.Future[Any]] = {waiting, server.failed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if server.failed.done():
            server.failed.result()
        return server.stats()


def _watch_parent(loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
    """Set `over` when stdin closes or the parent dies.

    Both are watched, since a fork of the parent (a pool's worker) keeps the pipe open after the parent's death.
    """
    parent = os.getppid()

    def read() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            over.set()

    def look() -> None:
        if os.getppid() != parent:
            over.set()
        loop.call_later(_PARENT_LOOK_S, look)

    loop.add_reader(0, read)
    look()


class _BadInput(click.ClickException):
    """A wrong option or file; the message is one line with the value and the fix."""

    exit_code = 2


def _limits(scenario: Scenario) -> str:
    limits = scenario.limits()
    return ", ".join(f"{limit:g} {name.replace('_', ' ')}" for name, limit in limits.items()) or "none"


def _summary(stats: Stats) -> str:
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(stats.by_status.items()))
    return (
        f"{stats.requests} requests in {stats.uptime_s:.1f} s ({statuses or 'none'}), {stats.admitted} admitted, "
        f"at most {stats.most_in_1s} ({stats.most_admitted_in_1s} admitted) in any second, "
        f"{stats.input_tokens} tokens in, {stats.output_tokens} out"
    )
