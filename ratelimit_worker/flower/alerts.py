"""Which alerts are open, and which were? `/rate-limit/alerts`: GET shows them, POST acknowledges or silences."""

from __future__ import annotations

from typing import Any

from tornado.web import url

from ratelimit_worker.contracts.alert import Kind
from ratelimit_worker.errors import BadInput
from ratelimit_worker.flower.page import ButtonPage
from ratelimit_worker.policy.alert_states import RULES
from ratelimit_worker.reports import alerts, words

#: For how long a kind may be silenced, by the value in the form; "end" ends a silence.
SILENCES_S: dict[str, float] = {"1h": 3_600.0, "4h": 14_400.0, "24h": 86_400.0, "end": 0.0}
TAB = "rate-limit-alerts"


class AlertsPage(ButtonPage):
    """Alerts, with a button for each that is open and a form that silences a kind."""

    async def _do(self) -> None:
        self.say(await self._done(), self.at(TAB))

    async def _done(self) -> str:
        if alert := self.get_body_argument("ack", ""):
            acked = await self.board.acknowledge(alert, self.who())
            return f"Alert {acked.id} is in hand: {acked.acked_by}."
        kind, for_ = self.get_body_argument("kind", ""), self.get_body_argument("for", "")
        lane = self.get_body_argument("lane", "", strip=False)
        if kind not in set(Kind):
            raise BadInput(f"kind={kind[:40]!r}: use {', '.join(Kind)}")
        if for_ not in SILENCES_S:
            raise BadInput(f"for={for_[:40]!r}: use {', '.join(SILENCES_S)}")
        made = await self.board.silence(Kind(kind), lane, SILENCES_S[for_], self.who())
        which = f"Alerts of kind {kind}{f' of {lane}' if lane else ''}"
        return f"{which} are told {f'again from {words.moment(made.until_s)} on' if made.until_s else 'again'}."

    async def _show(self, **more: str) -> None:
        self.show(
            "rate-limit-alerts.html",
            TAB,
            **more,
            found=await self.board.alerts(),
            alerts=alerts,
            rules=RULES,
            kinds=[kind.value for kind in Kind],
            durations=list(SILENCES_S),
        )


HANDLERS: tuple[Any, ...] = (url(r"/rate-limit/alerts", AlertsPage, name=TAB),)
