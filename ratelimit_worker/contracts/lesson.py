"""A lesson: what one attempt taught. One value, made once when the attempt has ended, and its encoding for the scripts.

`settle` and `back` (stores/lua) take it in parts, each for one reader: the verdict, for the lane's gate and mode; the
observation, for the tuner; the tokens really used, for the buckets; and the failure, for the record of the call's
function. The encodings stay readable by the version before and after this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from ratelimit_worker.calls import DIMENSIONS, Failure, Snapshot, Usage
from ratelimit_worker.contracts.kept import Keep

#: See the glossary. "plain": answered, and without headers that say more (from a function or an SDK). "quota": used
#: up until somebody pays; "barred": the key was not accepted.
Verdict = Literal["good", "plain", "refused", "sick", "quota", "barred", "other"]

#: What an answer means for the calls that follow this one. "value": they get it too, and it is kept. "short" (not
#: whole) and "error": they get it, and it is not kept. "passed": there is no answer yet, or will never be. "alone":
#: each of them asks for itself.
AnswerKind = Literal["value", "short", "error", "passed", "alone"]


class Witness(NamedTuple):
    """Whose attempt was answered, or failed. Digests, since the names themselves never leave their processes."""

    call: int
    task: int
    process: int
    again: bool = False  #: the call's attempt before this one was sick too
    #: ... and others were answered since, so it does not count against the provider; of a used-up quota: others are
    #: answered, so it may be the call's own
    discounted: bool = False
    task_sent: float = 0.0  #: when the last answered request of this task left this process; 0: none yet
    process_sent: float = 0.0  #: the same, of any task of the process


class Ticket(Struct, frozen=True, kw_only=True):
    """A call's place in the order of sending, noted when it was released."""

    seq: int
    sent_at: float  #: seconds, Redis clock
    sent: tuple[float, float, float, float]  #: units sent in all, this call and refused ones included, by dimension

    @classmethod
    def decode(cls, packed: bytes) -> Ticket:
        """The ticket that `begin` handed out.

        Raises:
            msgspec.MsgspecError: it cannot be decoded.
        """
        seq, sent_us, *sent = _decode_ticket(packed)
        return cls(seq=int(seq), sent_at=sent_us / 1e6, sent=(sent[0], sent[1], sent[2], sent[3]))


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider's answer says of its budget, from headers and error body."""

    snapshots: Mapping[str, Snapshot] = {}  #: limit and remaining units, by dimension
    refused_in: str | None = None  #: the dimension that a refusal names; None: it names none, or it is not a refusal
    crowded: bool = False  #: refused for too many calls at once, and not for the rate
    stated: Mapping[str, float] = {}  #: the rate that a refusal states in words, units/s by dimension


NOTHING_READ = Reading()


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt taught its lane and the record of its function. Times are seconds of Redis' clock."""

    verdict: Verdict = "other"
    at_s: float = 0.0  #: when the answer came
    ticket: bytes = b""  #: the `Ticket`, packed, as begin.lua returned it
    failure: Failure | None = None  #: None: the attempt was answered, or its failure says nothing about the provider
    reading: Reading = NOTHING_READ
    cost: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)  #: taken when the call was released, by dimension
    older: int = 0  #: calls still out that were sent before this one; set for sick and refused attempts only
    witness: Witness | None = None  #: who asked; None: unknown
    usage: Usage | None = None  #: tokens that an answered call really used; None: the estimate stays as it is
    #: Whether the provider gives back tokens that were reserved and not used; None: unknown.
    reconcile: bool | None = None
    failed_task: str = ""  #: the function, if its failure cost a try; "": it did not
    cost_nanousd: int = 0  #: of the attempt, billionths of a dollar; 0: nothing, or unknown
    answered: Mapping[str, int] = {}  #: answers that its process had since it last reported them, by function

    @property
    def gate_s(self) -> float:
        """How long the provider asks to be left alone (Retry-After), seconds; 0: it does not."""
        return (self.failure.retry_after_s or 0.0) if self.failure is not None else 0.0

    def word(self) -> str:
        """The verdict in the form that the scripts take.

        A refusal has the number of its dimension, from 1, behind a dot; `.0` where it was for too many calls at once. A
        sick answer that does not count against the provider (`Witness.discounted`) is `sick.1`, and a used-up quota
        beside others that are answered is `quota.1`.
        """
        if self.verdict in {"sick", "quota"}:
            return f"{self.verdict}.1" if self.witness is not None and self.witness.discounted else self.verdict
        if self.verdict == "refused" and self.reading.crowded:
            return "refused.0"
        if self.verdict == "refused" and self.reading.refused_in is not None:
            return f"refused.{DIMENSIONS.index(self.reading.refused_in) + 1}"
        return self.verdict

    def observation(self) -> bytes:
        """The observation for the tuner, packed; empty where there is nothing to learn from it."""
        reading = self.reading
        if not reading.snapshots and self.verdict == "other":
            return b""
        told = reading.snapshots.items()
        return _encode(
            Observed(
                at=self.at_s,
                ticket=self.ticket,
                verdict="good" if self.verdict == "plain" else self.verdict,
                snapshots={name: (one.limit, one.window_s, one.remaining, one.reset_s) for name, one in told},
                retry_after_s=self.failure.retry_after_s if self.failure is not None else None,
                dimension=reading.refused_in,
                cost=self.cost,
                older=self.older,
                stated=dict(reading.stated),
                witness=self.witness,
                crowded=reading.crowded,
            )
        )

    def used(self) -> bytes:
        """The tokens that an answered call really used, as settle.lua reads them; empty where the estimate stays.

        [1: the provider is known to give back what was not used; 0: it is assumed to until a refusal shows otherwise,
        tokens, input, output]; -1 in a dimension where the usage is unknown, or where headers say what is left.
        """
        usage = self.usage
        if usage is None or self.reconcile is False:
            return b""
        input_tokens, output_tokens = usage.budget_input_tokens, usage.output_tokens
        # Embeddings have no output, so their usage has no count of it.
        total = None if input_tokens is None else input_tokens + (output_tokens or 0)
        told = (("tokens", total), ("input_tokens", input_tokens), ("output_tokens", output_tokens))
        units = [-1 if count is None or name in self.reading.snapshots else count for name, count in told]
        return b"" if max(units) < 0 else _encode_list([int(self.reconcile is True), *units])

    def tried(self) -> bytes:
        """The failure and the answers since the last report, for the record of functions; empty: it cost no try."""
        return _encode_list([self.failed_task, self.answered]) if self.failed_task else b""


class Observed(msgspec.Struct, array_like=True):
    """An observation in the lane's list. New fields go to the end, each with a default."""

    at: float
    ticket: bytes
    verdict: str
    snapshots: dict[str, tuple[float, float, float, float | None]]
    retry_after_s: float | None
    dimension: str | None
    cost: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    older: int = 0
    stated: dict[str, float] = {}
    witness: Witness | None = None
    crowded: bool = False

    @classmethod
    def decode(cls, raw: bytes) -> Observed:
        """One entry of the list.

        Raises:
            msgspec.MsgspecError: it cannot be decoded (another version wrote it).
        """
        return _decode(raw)


_encode = msgspec.msgpack.Encoder().encode
_encode_list = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Observed).decode
_decode_ticket = msgspec.msgpack.Decoder(tuple[float, float, float, float, float, float]).decode


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a call, as settle.lua makes it safe."""

    tag: str
    lane: str
    answer: bytes  #: empty: there is none
    lesson: Lesson
    kind: AnswerKind = "value"  #: what the answer means for calls that follow this one
    outbox: bytes = b""  #: the attempt's row for the tracking database, packed; empty: it gets none
    keep: Keep | None = None  #: how its answer is kept, if its claim says so; None: as it is, at an assumed cost


class Stored(NamedTuple):
    """The result of a call where Celery looks for it."""

    name: str | bytes  #: of its key, and of the channel on which it is published
    value: bytes
    expires_s: int = 0  #: seconds; 0: it is kept for ever
