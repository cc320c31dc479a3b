"""The cluster's duties in a process that makes calls in process, while there is no Celery worker."""

from __future__ import annotations

from ratelimit_worker.flow.lane import budget, limit, pin
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.duties import Alert, Clean, Duty, Recording, Release, Rules, Tune


class StandIn:
    """The duties of the cluster, as long as no worker does them.

    Args:
        owner: This process's queue, under which it holds the duties' leases.
        lease_s: How long a released call belongs to its caller without a beat, seconds.
    """

    def __init__(self, live: Services, owner: str, lease_s: float) -> None:
        self._live, self._owner, self._lease_s = live, owner, lease_s
        self._duties: list[Duty] = []

    def take_on(self) -> None:
        """Begin, unless that was done.

        Raises:
            redis.RedisError, OSError: Redis is away.
        """
        if self._duties:
            return
        live, owner = self._live, self._owner
        pin.at_start(live.control, live.settings.emergency_mode)
        limit.at_start(live.control, live.settings)
        budget.at_start(live.budgets, live.settings.budgets, live.spent_before)
        self._duties = [
            Release(live.server, owner, self._lease_s),
            Tune(live, owner),
            Recording(live, owner),
            Clean(live, owner),
            Rules(live, owner),
        ]
        if live.settings.alert_webhook_url:
            self._duties.append(Alert(live, owner))
        for duty in self._duties:
            duty.start()

    def give_up(self) -> list[Duty]:
        """Ask the threads that were begun to end → those threads."""
        duties, self._duties = self._duties, []
        for duty in duties:
            duty.stop()
        return duties
