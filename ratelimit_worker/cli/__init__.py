"""Which commands are there? `ratelimit-worker`: each is imported when it is used.

`--help` shows this table and imports neither celery nor redis nor any command. Exit codes: 0, 1 failed, 2 usage,
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
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError, StoreUnavailable
from ratelimit_worker.plain_text import shown

#: Command → what it does; its function has its name and stands in the module of its name, or in the one of `HOMES`:
#: a module of this folder, or one with its whole name where the command belongs to the face that it opens.
COMMANDS = {
    "analytics": "A report of the last hours or days: JSON, CSV or HTML.",
    "cache": "How many answers are kept; forget some or all.",
    "classify": "What becomes of a call that meets this answer or exception.",
    "cleanup": "Delete old rows of the tracking database.",
    "doctor": "What is in force and where it came from, and what is wrong.",
    "explain": "Where a call is, and what it waits for.",
    "flower": "Flower on this app, with a page for the lanes and their modes.",
    "health": "Whether the worker of this machine beats, for health checks.",
    "lanes": "What each lane was told, and what it has learned.",
    "limits": "Set what a lane may do at most.",
    "metrics": "What Prometheus scrapes, on a port of its own.",
    "stats": "Calls, errors, retries, latency and tokens of a window.",
    "status": "How every lane stands now.",
    "auto": "Give lanes that were pinned back to the law.",
    "emergency": "Pin EMERGENCY: at most 10 calls a minute and lane.",
    "halt": "Pin HALT: nothing is sent; calls wait.",
    "mode": "How the modes of lanes have changed.",
    "normal": "Pin NORMAL: the law's pace, without escalation.",
    "reduced": "Pin REDUCED: half the pace.",
    "resume": "The same as auto.",
    "demo": "600 calls against a provider with a hidden limit, in a minute.",
    "run": "Send a Batch file through a lane; answers to another, resumable.",
    "simulate": "A simulated LLM provider with a true rate limit and scripted faults.",
    "up": "Redis, a worker and Flower for development, in one terminal.",
}

HOMES = {
    **dict.fromkeys(("auto", "emergency", "halt", "mode", "normal", "reduced", "resume"), "modes"),
    "flower": "ratelimit_worker.flower.command",
}


class Sentence(click.ClickException):
    """An error of ours as one line a problem, without a traceback."""

    def show(self, file: Any = None) -> None:
        """Print it to stderr."""
        for line in self.message.splitlines():
            say(f"Error: {line}", file=file, err=file is None)


class Unavailable(Sentence):
    """Redis or the database cannot be reached."""

    exit_code = 69


class Misconfigured(Sentence):
    """A setting is wrong."""

    exit_code = 78


def sentence(error: RateLimitWorkerError) -> Sentence:
    """The sentence, and with it the exit code, for an error of ours."""
    words = str(error) or type(error).__name__
    match error:
        case StoreUnavailable():
            return Unavailable(words)
        case ConfigurationError():
            return Misconfigured(words)
        case _:
            return Sentence(words)


class Commands(DYMGroup):  # type: ignore[misc] # untyped
    """The commands of the table, loaded by name; a name that is nearly one is told what it is near to."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one; None: there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        home = HOMES.get(cmd_name, cmd_name)
        command: click.Command = getattr(import_module(home if "." in home else f"{__name__}.{home}"), cmd_name)
        return with_example(command, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, without importing what is in it."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises of ours becomes a sentence, and click's own sentences are made harmless."""
        try:
            return super().invoke(ctx)
        except RateLimitWorkerError as error:
            raise sentence(error) from error
        except click.ClickException as error:
            told = shown(error.format_message())
            error.format_message = lambda: told  # type: ignore[method-assign]
            raise


def _open_standard_streams() -> None:
    """Give a number of which nobody made use (`2>&-`) to nobody: else a file that is opened next would have it, and
    what others write there, a library or a child, would stand in that file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one


def _version(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked:  # click's own option cannot tell the version of a checkout that is not installed
        say(f"ratelimit-worker, version {ratelimit_worker.__version__}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
    """What stands before every command, whoever's command line it came from."""
    _open_standard_streams()
    # What a command does it says itself; without a handler of ours logging prints warnings to stderr, without fields.
    logging.getLogger("ratelimit_worker").addHandler(logging.NullHandler())
