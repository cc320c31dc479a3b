"""The options of a call in process."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ratelimit_worker.calls import Cost
from ratelimit_worker.flow.call import enqueue
from ratelimit_worker.inprocess.sharing import By, CacheKey, check_key
from ratelimit_worker.policy import choices
from ratelimit_worker.policy.rules import Rule


class Options(Struct, frozen=True, kw_only=True):
    """Options of a call.

    Args:
        lane: None: `<provider>:<model>` if the arguments show them, else "default".
        cache_enabled: Whether answers are shared: it may get a kept answer, or that of a call on its way.
        cache_incomplete: Whether an answer that was truncated, refused or filtered is kept, too.
        stale_ttl: Seconds for which an answer is kept beyond its time, for use while the lane is in EMERGENCY or HALT.
        stale_while_revalidate: Seconds beyond its time in which an answer is given at once, while one call in the whole
            cluster renews it in the background: in a thread, or in the loop of an async function.
        shed_below: A call of a class below this one raises `LaneShedding` while its lane is in EMERGENCY or HALT.
        over_budget: If a budget of money is spent: "wait" until there is money again, or "fail" with `BudgetSpent`.
        timeout_s: Seconds that one attempt may take: built-in providers obey, and the function may ask
            `ratelimit_worker.timeout_s()`; None: as lane and settings say, or by what is learned.
        classify: Called with what the function raised, as for a task → `Category`, `Failure`, or None: built-in rules.
        cache_key: Calls with the same one share, whatever function, `self` and arguments are: plain data, or a function
            of the call's arguments (`self` first) that returns it; None from it: this call shares nothing.
        cache_ttl: Seconds for which its answer is kept; None: as settings say.
        refresh: It asks even if an answer is kept, and its own answer replaces that.
        no_store: A kept answer will do, and its own is not kept.
        namespace: Calls of one namespace share answers, whatever their tenant; None: of one tenant.
        version: Of the function or its prompt: answers of another version are not found.
        ignore: Names of arguments that change no answer.
    """

    context: str = "general"
    context_tags: Sequence[str] = ()
    cache_enabled: bool = True
    cache_incomplete: bool = False
    lane: str | None = None
    tenant: str = ""
    priority: str | int = "normal"
    deadline_s: float | None = None
    cost: Cost | None = None
    stale_ttl: float = 0.0
    stale_while_revalidate: float = 0.0
    shed_below: str | None = None
    over_budget: str = "wait"
    timeout_s: float | None = None
    classify: Rule | None = None
    cache_key: CacheKey = None
    cache_ttl: float | None = None
    refresh: bool = False
    no_store: bool = False
    namespace: str | None = None
    version: str = ""
    ignore: Sequence[str] = ()

    def check(self) -> None:
        """Check the options before there is a call; making a call's plan checks them again.

        Raises:
            BadInput: an option is invalid.
        """
        enqueue.check(self.said)
        choices.names("ignore", self.ignore)
        choices.name("version", self.version, empty=True)
        check_key(self.cache_key)

    @property
    def by(self) -> By:
        """What the options say about which parts identify the call."""
        return By(self.cache_key, tuple(self.ignore))

    @property
    def said(self) -> enqueue.Said:
        """The options that calls on queues have too, for the plan."""
        return enqueue.Said(
            lane=self.lane,
            tenant=self.tenant,
            context=self.context,
            tags=self.context_tags,
            priority=self.priority,
            deadline_s=self.deadline_s,
            cost=self.cost,
            cache=self.cache_enabled,
            cache_incomplete=self.cache_incomplete,
            stale_ttl=self.stale_ttl,
            stale_while_revalidate=self.stale_while_revalidate,
            shed_below=self.shed_below,
            over_budget=self.over_budget,
            timeout_s=self.timeout_s,
            cache_ttl=self.cache_ttl,
            refresh=self.refresh,
            no_store=self.no_store,
            namespace=self.namespace,
        )
