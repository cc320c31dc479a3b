"""`ratelimit-worker doctor`: every setting, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say

if TYPE_CHECKING:
    from ratelimit_worker.cli.sources import Opened
    from ratelimit_worker.policy.timeout import Latencies
    from ratelimit_worker.reports.doctor import Finding


@click.command()
@of_app
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def doctor(ctx: click.Context, form: str) -> None:
    """Print every setting with where it came from, then check Redis, the database, workers and outcomes.

    Exit code 0: nothing is wrong. 1: something is. 69: Redis or the database cannot be reached. 78: a setting is wrong.
    """
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.config import environment, read_settings
    from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
    from ratelimit_worker.reports.doctor import (
        Code,
        Finding,
        Grade,
        exit_code,
        findings_text,
        judge_network,
        report,
        settings_in_force,
        settings_text,
    )
    from ratelimit_worker.reports.words import as_json

    settings = read_settings()  # raises all that is wrong at once, in a sentence each
    findings: list[Finding] = [judge_network()]
    with ExitStack() as open_:
        opened: Opened | None = None
        for named in (True, False):  # if the app cannot be loaded, the rest is checked without it
            try:
                found_here = open_.enter_context(open_sources(named=named))
                found_here.sources.queries  # noqa: B018 - raises what is wrong with the database's address
                opened = found_here
                break
            except ConfigurationError as error:
                finding = Finding("app" if named else "settings", Grade.WRONG, str(error), Code.CONFIGURATION)
                findings += [] if any(one.says == finding.says for one in findings) else [finding]
            except StoreUnavailable as error:
                findings.append(Finding("database", Grade.WRONG, str(error), Code.UNREACHABLE))
                break
        found = settings_in_force(settings if opened is None else opened.settings, environment())
        if form == "table":
            say(settings_text(found) + "\n")
        if opened is not None:
            findings += _examined(opened)
    say(as_json(report(found, findings)) if form == "json" else findings_text(findings))
    ctx.exit(exit_code(findings))


def _examined(opened: Opened) -> Iterator[Finding]:
    from ratelimit_worker.reports.doctor import examine

    services = opened.services

    def latencies() -> Mapping[str, Latencies]:  # called after Redis has answered
        return services.latencies.everything()

    def own_rules() -> Mapping[str, str]:
        return services.own_rules.read()

    outbox = services.outbox if opened.sources.live is not None else None
    return examine(opened.settings, opened.sources, outbox, latencies=latencies, own_rules=own_rules)
