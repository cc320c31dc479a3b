"""Which kept answers are evicted when the cache is full? Those that save least for their size.

The rule is GreedyDual-Size-Frequency (Cherkasova, 1998). An entry's score is

    floor + uses * cost of asking again / bytes that it takes

and the entry with the lowest score is evicted. The floor rises to the score of each evicted entry, so an answer that
was used much but long ago is evicted in time. There are two bounds, on bytes and on entries. An entry counts as taking
at least its even share of the bytes, so that small answers have no advantage while entries are the tighter bound.

`stores/lua/shared/kept.lua` does this in Redis. `Kept` is a model of it, with which a test compares the script.
"""

from __future__ import annotations

from msgspec import Struct, field

from ratelimit_worker.calls import Usage
from ratelimit_worker.contracts.kept import NANOUSD_PER_TOKEN, USUAL_NANOUSD, WORTH_SCALE


def again_nanousd(usage: Usage | None, reserved_tokens: int = 0, paid_nanousd: int | None = None) -> int:
    """Cost of asking again, in billionths of a dollar: what the answer cost, or else by its tokens; at least 1.

    Args:
        usage: The provider's count; None: unknown.
        reserved_tokens: The call's estimate; 0: unknown.
        paid_nanousd: What the answer cost; None: no price is known.
    """
    if paid_nanousd is not None:
        return max(1, paid_nanousd)
    used = (usage.input_tokens or 0) + (usage.output_tokens or 0) if usage is not None else 0
    return (used or reserved_tokens) * NANOUSD_PER_TOKEN or USUAL_NANOUSD


class Bounds(Struct, frozen=True, kw_only=True):
    """The bounds on all kept answers together."""

    entries: int
    bytes: int


def of_one_use(cost_nanousd: int, size: int, bounds: Bounds) -> float:
    """What one use of an entry adds to its score.

    Args:
        size: Bytes that it takes in all.
    """
    return WORTH_SCALE * cost_nanousd / max(size, bounds.bytes / bounds.entries)


class Entry(Struct):
    """One kept answer."""

    size: int
    worth: float  #: of one use
    uses: int
    score: float


class Kept(Struct):
    """All kept answers, by fingerprint: a model of what the scripts do, without a server.

    Expired entries are removed by the caller (`forget`).
    """

    floor: float = 0.0
    entries: dict[str, Entry] = field(default_factory=dict)
    bytes: int = 0

    def use(self, fingerprint: str) -> bool:
        """Use a kept answer -> False: there is none."""
        entry = self.entries.get(fingerprint)
        if entry is None:
            return False
        entry.uses += 1
        entry.score = self.floor + entry.uses * entry.worth
        return True

    def keep(self, fingerprint: str, size: int, cost_nanousd: int, bounds: Bounds) -> list[str]:
        """Keep an answer -> those that were evicted for it, in order. One that is larger than the bound is not kept.

        An answer that replaces an older one keeps that one's number of uses.
        """
        before = self.forget(fingerprint)
        if bounds.entries < 1 or size > bounds.bytes:
            return []
        evicted = []
        while self.entries and (len(self.entries) >= bounds.entries or self.bytes + size > bounds.bytes):
            least = min(self.entries, key=lambda one: (self.entries[one].score, one))
            gone = self.forget(least)
            assert gone is not None
            self.floor = max(self.floor, gone.score)
            evicted.append(least)
        uses = 1 + (before.uses if before is not None else 0)
        worth = of_one_use(cost_nanousd, size, bounds)
        self.entries[fingerprint] = Entry(size, worth, uses, self.floor + uses * worth)
        self.bytes += size
        return evicted

    def forget(self, fingerprint: str) -> Entry | None:
        """Remove an answer -> None: it was not kept."""
        entry = self.entries.pop(fingerprint, None)
        if entry is not None:
            self.bytes -= entry.size
        return entry
