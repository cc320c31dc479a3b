"""`ratelimit-worker doctor`: what is in force, and what is wrong?"""

from __future__ import annotations

import click

from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say


@click.command()
@of_app
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def doctor(ctx: click.Context, form: str) -> None:
    """Print every setting with where it came from, then check Redis, the database, workers and outcomes.

    Exit code 0: nothing is wrong. 1: something is. 69: Redis or the database cannot be reached. 78: a setting is wrong.
    """
    from ratelimit_worker.cli import sources
    from ratelimit_worker.config import environment, read_settings
    from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
    from ratelimit_worker.reports.doctor import (
        Code,
        Finding,
        Level,
        examine,
        exit_code,
        findings_text,
        judge_network,
        report,
        settings_in_force,
        settings_text,
    )
    from ratelimit_worker.reports.words import as_json

    settings, wrong = read_settings(), None  # all that is wrong at once, as a sentence each
    try:
        settings = sources.settings_in_force()
    except ConfigurationError as error:  # of the app that was named
        wrong = Finding("app", Level.WRONG, str(error), Code.CONFIGURATION)
    found = settings_in_force(settings, environment())
    if form == "table":
        say(settings_text(found) + "\n")
    findings: list[Finding] = [judge_network(), *([wrong] if wrong else [])]
    try:
        with sources.open_sources(settings) as opened:
            findings += examine(
                settings,
                opened.sources,
                opened.services.outbox,
                latencies=opened.services.latencies.everything,
                own_rules=opened.services.own_rules.read,
            )
    except ConfigurationError as error:
        findings.append(Finding("settings", Level.WRONG, str(error), Code.CONFIGURATION))
    except StoreUnavailable as error:
        findings.append(Finding("database", Level.WRONG, str(error), Code.UNREACHABLE))
    say(as_json(report(found, findings)) if form == "json" else findings_text(findings))
    ctx.exit(exit_code(findings))
