"""The command line `ratelimit-worker`: the table of its commands, each of which is imported when it is used.

`--help` prints this table and imports neither celery nor redis nor any command. Exit codes: 0, 1 failed, 2 usage,
69 Redis or the database cannot be reached, 78 a setting is wrong.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import Any

import click
from click_didyoumean import DYMGroup

import ratelimit_worker
from ratelimit_worker.cli.examples import with_example
from ratelimit_worker.cli.lane_name import hint as lane_hint
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError, StoreUnavailable
from ratelimit_worker.plain_text import shown

#: Command → what it does. Its function has the same name, and is in the module of that name in this folder, or in the
#: module that `HOMES` gives (a name in this folder, or a full name).
COMMANDS = {
    "alerts": "What is wrong now, and what was.",
    "analytics": "A report of the last hours or days: JSON, CSV or HTML.",
    "budgets": "What may be spent in dollars, and what was; set it.",
    "cache": "Show how many answers are kept; delete some or all.",
    "calls": "Search calls; cancel waiting ones, run failed ones again.",
    "classify": "What happens to a call that gets this answer or exception.",
    "cleanup": "Delete old rows of the tracking database.",
    "doctor": "Show every setting and its source, and what is wrong.",
    "explain": "Where a call is, and what it waits for.",
    "flower": "Flower on this app, with a page for the lanes and their modes.",
    "health": "Whether the worker of this machine beats, for health checks.",
    "lanes": "Limits of each lane: configured and learned.",
    "limits": "Set the limits of a lane.",
    "metrics": "Serve metrics for Prometheus.",
    "stats": "Calls, errors, retries, latency and tokens of a window.",
    "status": "The state of every lane now.",
    "auto": "Give lanes that were pinned back to the law.",
    "emergency": "Pin EMERGENCY: at most 10 calls a minute and lane.",
    "halt": "Pin HALT: nothing is sent; calls wait.",
    "mode": "Changes of modes in the past.",
    "normal": "Pin NORMAL: the law's pace, without escalation.",
    "reduced": "Pin REDUCED: half the pace.",
    "resume": "The same as auto.",
    "watch": "A live screen of all lanes, or of one.",
    "demo": "600 calls against a provider with a hidden limit, in a minute.",
    "run": "Send the requests of a Batch file; resumable.",
    "simulate": "A simulated LLM provider with a true rate limit and scripted faults.",
    "up": "Redis, a worker and Flower for development, in one terminal.",
}

HOMES = {
    **dict.fromkeys(("auto", "emergency", "halt", "mode", "normal", "reduced", "resume"), "modes"),
    "flower": "ratelimit_worker.flower.command",
}


class Sentence(click.ClickException):
    """One of our errors, printed without a traceback, with a line for each problem."""

    def show(self, file: Any = None) -> None:
        """Print it to stderr."""
        for line in self.message.splitlines():
            # The end of another program's log has the word already.
            say(f"Error: {line.removeprefix('Error: ')}", file=file, err=file is None)


class Unavailable(Sentence):
    """Redis or the database cannot be reached."""

    exit_code = 69


class Misconfigured(Sentence):
    """A setting is wrong."""

    exit_code = 78


def sentence(error: RateLimitWorkerError) -> Sentence:
    """The message and exit code for one of our errors."""
    words = str(error) or type(error).__name__
    match error:
        case StoreUnavailable():
            return Unavailable(words)
        case ConfigurationError():
            return Misconfigured(words)
        case _:
            return Sentence(words)


_INTERRUPTED = 130  #: exit code after Ctrl-C, as in a shell


class Commands(DYMGroup):  # type: ignore[misc] # untyped
    """The commands of the table, loaded by name; for a misspelt name a similar one is suggested."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None: there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        home = HOMES.get(cmd_name, cmd_name)
        command: click.Command = getattr(import_module(home if "." in home else f"{__name__}.{home}"), cmd_name)
        return with_example(command, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the table, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; our errors become messages, and control characters in click's messages are escaped."""
        try:
            return super().invoke(ctx)
        except RateLimitWorkerError as error:
            raise sentence(error) from error
        except KeyboardInterrupt:  # click itself would exit with 1, as for a command that failed
            say("", err=True)
            ctx.exit(_INTERRUPTED)
        except click.ClickException as error:
            told = shown(error.format_message() + lane_hint(error))
            error.format_message = lambda: told  # type: ignore[method-assign]
            raise


def _open_standard_streams() -> None:
    """Open closed standard streams (`2>&-`) on /dev/null.

    Otherwise the next file that is opened gets that number, and output of libraries and child processes goes into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, which is this one


def _version(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked:  # click's own option does not know the version of a checkout that is not installed
        say(f"ratelimit-worker, version {ratelimit_worker.__version__}")
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  ratelimit-worker status --find gpt",
)
@of_app
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Every LLM call a Celery task, released at one cluster-wide rate per provider budget."""
    begin()


def begin() -> None:
    """Set up what every command needs, on every command line."""
    _open_standard_streams()
    # Commands report themselves; without this handler, logging would print warnings to stderr, without fields.
    logging.getLogger("ratelimit_worker").addHandler(logging.NullHandler())
