"""The pages of calls: a search with buttons to cancel calls or run them again, and the page of one call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import urlencode

from ratelimit_worker.contracts.search import REPEATABLE, CallState, Wanted
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.flower.page import ButtonPage
from ratelimit_worker.reports.calls import error_of, timeline
from ratelimit_worker.reports.explain import Where, cost_in_all
from ratelimit_worker.worker.again import Done

TAB = "rate-limit-calls"
MOST_TEXT = 300  #: characters of a search condition
MOST_AT_ONCE = 500  #: calls that one press of a button may concern, and calls on a page
SINCE_S = {"1h": 3_600.0, "24h": 86_400.0, "7d": 7 * 86_400.0}
_CONDITIONS = ("id", "lane", "tenant", "task", "state", "error", "since", "most")
_DONE = {"cancel": "cancelled", "again": "on their way again"}
_MOST_TOLD = 5  #: calls for which the message says why the button did nothing


class _CallsBase(ButtonPage):
    """What both pages do when a button is pressed."""

    async def act(self, action: str, call_ids: Sequence[str], back: str) -> None:
        """Do what a button says, then show the page again.

        Raises:
            BadInput: no call is chosen, or too many, or there is no such button.
            StoreUnavailable: Redis is away.
        """
        if action not in _DONE:
            raise BadInput(f"action={action[:40]!r}: use {', '.join(_DONE)}")
        if not call_ids or len(call_ids) > MOST_AT_ONCE:
            raise BadInput(f"choose 1 to {MOST_AT_ONCE} calls")
        done = await (self.board.cancel(call_ids) if action == "cancel" else self.board.run_again(call_ids))
        self.say(_told(done, _DONE[action]), back)


def _told(done: Sequence[Done], what: str) -> str:
    refused = [one for one in done if one.why_not]
    told = "; ".join(f"{one.call_id}: {one.why_not}" for one in refused[:_MOST_TOLD])
    more = f"; {len(refused) - _MOST_TOLD} more" if len(refused) > _MOST_TOLD else ""
    return f"{len(done) - len(refused):,} of {len(done):,} calls {what}.{f' Not: {told}{more}.' if refused else ''}"


class CallsPage(_CallsBase):
    """Calls that wait, run or have ended."""

    async def _do(self) -> None:
        query = {name: self._asked(name) for name in _CONDITIONS}
        back = f"{self.reverse_url(TAB)}?{urlencode({name: text for name, text in query.items() if text})}"
        await self.act(self.get_body_argument("action"), self.get_body_arguments("call"), back)

    def _asked(self, name: str) -> str:
        return str(self.get_query_argument(name, ""))[:MOST_TEXT]

    def _wanted(self, now_s: float) -> Wanted:
        state, most = self._asked("state"), self._asked("most")
        return Wanted(
            call_id=self._asked("id"),
            lane=self._asked("lane"),
            tenant=self._asked("tenant"),
            task=self._asked("task"),
            state=CallState(state) if state in set(CallState) else None,
            error=self._asked("error"),
            since_s=now_s - SINCE_S.get(self._asked("since"), SINCE_S["24h"]),
            most=min(int(most), MOST_AT_ONCE) if most.isascii() and most.isdigit() and int(most) else 50,
        )

    async def _show(self, **more: str) -> None:
        now_s = time.time()
        wanted = self._wanted(now_s)
        self.show(
            "rate-limit-calls.html",
            TAB,
            **more,
            found=await self.board.calls(wanted),
            wanted=wanted,
            asked={name: self._asked(name) for name in _CONDITIONS},
            states=list(CallState),
            since=list(SINCE_S),
            now_s=now_s,
            error_of=error_of,
            repeatable=REPEATABLE,
        )


class CallPage(_CallsBase):
    """One call, from its acceptance to now or to its end."""

    async def _do(self) -> None:
        call_id = self._call_id()
        await self.act(self.get_body_argument("action"), [call_id], self.at("rate-limit-call", id=call_id))

    def _call_id(self) -> str:
        return str(self.get_query_argument("id", ""))[:MOST_TEXT]

    async def _show(self, **more: str) -> None:
        try:
            explained = await self.board.explain(self._call_id())
        except StoreUnavailable as error:
            self.set_status(503)
            self.show("rate-limit-call.html", TAB, **{**more, "problem": str(error)}, explained=None)
            return
        now_s = time.time()
        steps = timeline(explained.found, now_s)
        first_s = min((step.at_s for step in steps), default=now_s)
        length_s = max(1e-3, max((step.at_s + step.for_s for step in steps), default=now_s) - first_s)
        waits = {Where.WAITING, Where.DUE_LATER, Where.FOLLOWING}
        self.show(
            "rate-limit-call.html",
            TAB,
            **more,
            explained=explained,
            steps=steps,
            share=lambda at_s: f"{100 * (at_s - first_s) / length_s:.3f}%",
            wide=lambda for_s: f"{100 * for_s / length_s:.3f}%",
            waits=explained.found.where in waits,
            in_all=cost_in_all(explained.found.attempts),
        )
