"""Callers that wait for results, of one call or of a set, in a thread or an event loop."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from celery.result import AsyncResult, ResultSet

log = logging.getLogger(__name__)


def results_of(result: Any) -> Iterator[AsyncResult]:
    """The results of the single tasks in a result, a group, or nested groups."""
    if isinstance(result, ResultSet):
        for one in result.results:
            yield from results_of(one)
    else:
        yield result


def results_before(result: Any) -> Iterator[AsyncResult]:
    """The results of the earlier steps of its canvas, the nearest first: if one fails, the result never comes."""
    if isinstance(result, AsyncResult):
        for step in result._parents():
            yield from results_of(step)


def raise_for_failed(results: Iterable[AsyncResult]) -> None:
    """Raise the error of one of these that has failed, as far as is known without asking Redis."""
    for one in results:
        if one._cache:
            one.maybe_throw()


class Waiter:
    """One waiting caller.

    Args:
        results: The results that it waits for.
        before: Results of earlier steps, whose failure ends the wait.
        wake: Called by the listening thread whenever one of them has its answer.
        keep_messages: Whether every message is kept, whatever its state.
    """

    def __init__(
        self,
        results: Iterable[AsyncResult],
        before: Iterable[AsyncResult],
        wake: Callable[[], object],
        keep_messages: bool = False,
    ) -> None:
        self._wake, self._keep_messages = wake, keep_messages
        self.messages: deque[Mapping[str, Any]] = deque()
        self.by_id: dict[str, list[AsyncResult]] = {}
        self._left = {id(one): one for one in results if not one._cache}
        self._error: Exception | None = None
        for one in (*self._left.values(), *(one for one in before if not one._cache)):
            self.by_id.setdefault(one.id, []).append(one)

    def hear(self, meta: Mapping[str, Any]) -> None:
        """Take in what was stored for one of the results."""
        if self._keep_messages:
            self.messages.append(meta)
        for one in self.by_id.get(meta["task_id"], ()):
            try:
                if not one._cache:
                    one._maybe_set_cache(dict(meta))  # a copy, since Celery decodes it in place
            except Exception as error:
                if one._cache:  # it has its answer, so a callback has failed
                    log.exception("results.callback_failed")
                else:
                    self._error = error
            if one._cache:
                self._left.pop(id(one), None)
        self._wake()

    def fail(self, error: Exception) -> None:
        """Note that a stored result cannot be read."""
        self._error = error
        self._wake()

    def look(self) -> None:
        """Take in what another waiter has received for the same results."""
        for one in list(self._left.values()):
            if one._cache:
                self._left.pop(id(one), None)

    def is_over(self) -> bool:
        """Whether all results have come.

        Raises:
            Exception: a stored result cannot be read.
        """
        if self._error is not None:
            raise self._error
        return not self._left
