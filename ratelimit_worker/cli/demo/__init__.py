"""`ratelimit-worker demo`: what ratelimit-worker does, shown in a minute."""

from __future__ import annotations

import random
from pathlib import Path

import click

from ratelimit_worker.cli.terminal import say
from ratelimit_worker.number_options import Amount, Whole


@click.command()
@click.option("--seed", type=Whole(min=0), help="Of the provider's limit and faults. Default: random, and printed.")
@click.option(
    "--state-dir",
    metavar="D",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the report goes. Default: MAISD_STATE_DIR.",
)
@click.option("--calls", type=Whole(min=1), default=600, hidden=True)
@click.option("--outage-s", type=Amount(min=0.5), default=10.0, hidden=True)
@click.pass_context
def demo(ctx: click.Context, seed: int | None, state_dir: Path | None, calls: int, outage_s: float) -> None:
    """Make 600 calls to a simulated provider with a hidden limit, which is lowered on the way, and an outage.

    Takes less than a minute and needs no server. Exit code 1: a call was lost.
    """
    from ratelimit_worker.cli.demo.play import Play, play
    from ratelimit_worker.cli.progress import Progress

    chosen = Play(seed=random.randrange(10_000) if seed is None else seed, calls=calls, outage_s=outage_s)
    with Progress(every_s=2.0) as progress:
        story = play(chosen, state_dir, progress)
    say(story.summary())
    ctx.exit(0 if story.whole else 1)
