"""`ratelimit-worker run`: a Batch file in, Batch answers out."""

from __future__ import annotations

from pathlib import Path

import click

from ratelimit_worker.batchfile import allowed_path
from ratelimit_worker.cli.progress import Progress
from ratelimit_worker.errors import BadInput
from ratelimit_worker.number_options import Amount, Whole

MOST_WORKERS = 1_000  #: processes that one command starts


@click.command()
@click.argument(
    "source", metavar="IN.jsonl", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option(
    "-o",
    "--output",
    "target",
    metavar="OUT.jsonl",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Answers, one line each; what is in it already is not sent again. -: stdout, which cannot be resumed.",
)
@click.option(
    "--base-url",
    metavar="URL",
    help="The provider's. Default: OPENAI_BASE_URL, ANTHROPIC_BASE_URL, GOOGLE_GEMINI_BASE_URL.",
)
@click.option("--lane", metavar="L", help="One lane for all lines. Default: provider and model of each line.")
@click.option("--rpm", type=Amount(above=0), help="Requests a minute, never exceeded.")
@click.option("--tpm", type=Amount(above=0), help="Tokens a minute, never exceeded.")
@click.option("--concurrency", type=Whole(min=1), help="Calls at once in each worker. Default: 64.")
@click.option(
    "--workers",
    type=Whole(min=1, max=MOST_WORKERS),
    help="Workers of this run. Default: 1, with a broker the cluster's.",
)
@click.option(
    "--on-auth",
    type=click.Choice(["wait", "fail"]),
    default="wait",
    show_default=True,
    help="A key that is not accepted, or a used-up quota: wait until it is mended, or end with exit code 1.",
)
@click.option(
    "--allow-path",
    "allow_paths",
    metavar="PATH",
    multiple=True,
    help="A url that lines may have beside the known endpoints, letter by letter; may be given again.",
)
@click.option("--dedup", "once", is_flag=True, help="Ask once what identical lines ask; each gets the answer.")
@click.option(
    "--state-dir",
    metavar="D",
    type=click.Path(file_okay=False, path_type=Path),
    help="State of the embedded Redis. Default: MAISD_STATE_DIR.",
)
@click.pass_context
def run(
    ctx: click.Context,
    source: Path,
    target: Path,
    base_url: str | None,
    lane: str | None,
    rpm: float | None,
    tpm: float | None,
    concurrency: int | None,
    workers: int | None,
    on_auth: str,
    allow_paths: tuple[str, ...],
    once: bool,
    state_dir: Path | None,
) -> None:
    """Send the lines of an OpenAI Batch file through their lanes, and write the answers as Batch output.

    IN may be - for stdin, a pipe, or packed with gzip or zstd. The same command resumes after Ctrl-C or a crash, and
    pays for nothing twice. Without MAISD_REDIS_URL or CELERY_BROKER_URL it brings its own Redis and workers and ends
    them. Exit code 1: some lines failed, or all were refused in the same way.
    """
    from ratelimit_worker.cli.run.conduct import Request, run_file

    try:
        allowed = frozenset(allowed_path(path) for path in allow_paths)
    except BadInput as error:
        raise click.BadParameter(str(error), param_hint="--allow-path") from error
    request = Request(
        source=source,
        target=target,
        base_url=base_url,
        lane=lane,
        rpm=rpm,
        tpm=tpm,
        concurrency=concurrency,
        workers=workers,
        on_auth=on_auth,
        once=once,
        state_dir=state_dir,
        allowed_paths=allowed,
    )
    try:
        with Progress() as progress:
            summary = run_file(request, progress)
    except BadInput as error:
        raise click.UsageError(str(error)) from error
    progress.note(str(summary))
    on = "resume with the same command" if summary.keeps else "what is not done is lost; -o FILE can be resumed"
    if summary.refused_alike:
        progress.note(summary.refused_alike)
    if summary.ended_by:
        progress.note(summary.ended_by if summary.tally.lines == summary.total else f"{summary.ended_by}; {on}")
    if summary.signal is not None:
        progress.note(f"stopped; {on}")
    ctx.exit(summary.exit_code)
