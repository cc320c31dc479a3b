"""`ratelimit-worker flower`: Flower for an app, with pages that show lanes and set their modes."""

from __future__ import annotations

from importlib.util import find_spec

import click

from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.number_options import Whole


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "-A",
    "--app",
    "app_name",
    metavar="MODULE",
    help="The deployment's app, such as tasks. Default: CELERY_APP, else ours.",
)
@click.option("--address", help="Listen here. Default: FLOWER_ADDRESS, else 127.0.0.1.")
@click.option("--port", type=Whole(1, 65_535), help="Default: FLOWER_PORT, else 5555.")
@click.option(
    "--basic-auth",
    "logins",
    multiple=True,
    metavar="USER:PASSWORD",
    help="Who may log in; may be given more than once. Others can read this line in `ps`: better FLOWER_BASIC_AUTH.",
)
@click.option(
    "--make-login", is_flag=True, help="Where no login is set, make one and print it, for as long as this runs."
)
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[--FLOWER_OPTION=VALUE]...")
def flower(
    app_name: str | None,
    address: str | None,
    port: int | None,
    logins: tuple[str, ...],
    make_login: bool,
    more: tuple[str, ...],
) -> None:
    """Run Flower with the page "Rate limit": how every lane stands, and buttons for its mode.

    The buttons need a login (--basic-auth, FLOWER_BASIC_AUTH or Flower's OAuth options), as Flower's own API does.
    Flower's other options go to it as they are.
    """
    if find_spec("flower") is None:
        raise ConfigurationError("Flower is not installed: pip install 'ratelimit-worker[flower]'")
    if wrong := [login for login in logins if not all(login.partition(":"))]:
        raise click.BadParameter(f"{len(wrong)} of {len(logins)}: write USER:PASSWORD", param_hint="--basic-auth")
    from ratelimit_worker.app import find_app
    from ratelimit_worker.flower.serve import serve

    serve(find_app(app_name), address=address, port=port, logins=logins, more=more, makes_login=make_login)
