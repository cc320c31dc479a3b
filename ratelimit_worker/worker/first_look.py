"""A worker that can never work ends at once, with one line: a wrong setting or address, or a server that cannot hold
lanes.

Celery would show a traceback, or try for ever. A server that is only away is waited for, as Celery does.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from celery import signals
from redis import RedisError

from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.outage import cause_of
from ratelimit_worker.plain_text import shown
from ratelimit_worker.worker.installed import installation_of

log = logging.getLogger(__name__)

EX_CONFIG = 78


@signals.celeryd_init.connect(weak=False)
def look(instance: Any = None, **_: Any) -> None:
    """Called before a worker of an app with lanes is set up.

    Raises:
        SystemExit: it can never work.
    """
    installation = installation_of(instance.app)
    if installation is None:
        return
    try:
        installation.services().redis.ping()
    except ConfigurationError as error:
        _end(error)
    except (RedisError, OSError, StoreUnavailable) as error:
        log.info("redis.away %s", cause_of(error))


@contextmanager
def one_line_to_celery() -> Iterator[None]:
    """Around code that `celery -A` imports: Celery would print a whole traceback above our one line.

    Raises:
        SystemExit: in that command, in place of ConfigurationError.
    """
    try:
        yield
    except ConfigurationError as error:
        context = click.get_current_context(silent=True)
        of = context.find_root().command.callback if context is not None else None
        if getattr(of, "__module__", "") != "celery.bin.celery":
            raise
        _end(error)


def _end(error: ConfigurationError) -> None:
    for line in str(error).splitlines():
        print(f"Error: {shown(line)}", file=sys.stderr)
    raise SystemExit(EX_CONFIG) from None
