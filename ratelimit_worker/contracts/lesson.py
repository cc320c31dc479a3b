"""What did one attempt teach? One value, made once when the attempt has ended, and its encoding for the scripts.

`settle` and `back` (stores/lua) take it in parts, each of which only one reader needs: a word for the lane's gate and
mode, an observation that the tuner reads, what the call has really taken, and the failure for the record of its
function. The encodings stay readable by the version before and after this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from ratelimit_worker.calls import DIMENSIONS, Failure, Snapshot, Usage
from ratelimit_worker.contracts.kept import Keep

#: "plain": answered, and nothing beside the answer tells how the provider is (a function, an SDK).
#: "quota": nothing is left until somebody pays; "barred": the key was not accepted.
Verdict = Literal["good", "plain", "refused", "sick", "quota", "barred", "other"]

#: What an answer is to the calls that wait for the same one. "value": theirs too, and kept; "short" and "error":
#: theirs, and kept for nobody; "passed": the call asks again or never will; "alone": each of them asks for itself.
AnswerKind = Literal["value", "short", "error", "passed", "alone"]


class Witness(NamedTuple):
    """Who had an answer. Digests of names, for names stay in their processes."""

    call: int
    task: int
    process: int
    again: bool = False  #: the call's attempt before was sick too
    discounted: bool = False  #: ... and others were answered since: it is no witness of how its provider is
    task_sent: float = 0.0  #: when the last request left that this process was answered for this task; 0: none yet
    process_sent: float = 0.0  #: ... for any task


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a call took along when it was released: its place in the order of sending."""

    seq: int
    sent_at: float  #: seconds, Redis clock
    sent: tuple[float, float, float, float]  #: units sent in all, this call and refused ones included, by dimension

    @classmethod
    def decode(cls, packed: bytes) -> Ticket:
        """The ticket that `begin` handed out.

        Raises:
            msgspec.MsgspecError: it is none.
        """
        seq, sent_us, *sent = _decode_ticket(packed)
        return cls(seq=int(seq), sent_at=sent_us / 1e6, sent=(sent[0], sent[1], sent[2], sent[3]))


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer of the provider says of its budget: headers and error body, read once."""

    snapshots: Mapping[str, Snapshot] = {}  #: limit and what is left of it, by dimension
    refused_in: str | None = None  #: the dimension that a refusal names; None: it names none, or this is no refusal
    crowded: bool = False  #: it was refused for too many calls at once, not for a rate
    stated: Mapping[str, float] = {}  #: units/s that a refusal names in words, by dimension


NOTHING_READ = Reading()


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt taught its lane, and the record of its function. Times are seconds, Redis clock."""

    verdict: Verdict = "other"
    at_s: float = 0.0  #: when the answer came
    ticket: bytes = b""  #: as `begin` handed it out
    failure: Failure | None = None  #: None: the attempt was answered, or its failure says nothing of the provider
    reading: Reading = NOTHING_READ
    cost: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)  #: taken when the call was released, by dimension
    older: int = 0  #: calls still out that were sent before this one; told of sick and refused ones
    witness: Witness | None = None  #: who asked; None: not told
    usage: Usage | None = None  #: what an answered call has really taken; None: nothing is to be made good
    #: Whether the provider gives back what was reserved and not used; None: nobody has told.
    reconcile: bool | None = None
    failed_task: str = ""  #: the function whose failure cost a try; "": none did
    answered: Mapping[str, int] = {}  #: answers that its process had since it last told of any, by function

    @property
    def gate_s(self) -> float:
        """So long the provider asks to be left alone; 0: it does not."""
        return (self.failure.retry_after_s or 0.0) if self.failure is not None else 0.0

    def word(self) -> str:
        """The verdict as the scripts take it.

        A refusal says in which dimension, by its number from 1, and `.0` where it was for calls at once. A sick answer
        to a call that is no witness of how its provider is (`Witness.discounted`) is `sick.1`.
        """
        if self.verdict == "sick":
            return "sick.1" if self.witness is not None and self.witness.discounted else "sick"
        if self.verdict == "refused" and self.reading.crowded:
            return "refused.0"
        if self.verdict == "refused" and self.reading.refused_in is not None:
            return f"refused.{DIMENSIONS.index(self.reading.refused_in) + 1}"
        return self.verdict

    def observation(self) -> bytes:
        """An entry of the lane's list, for the tuner; empty where it would teach the tuner nothing."""
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
        """What an answered call has really taken, as settle.lua reads it; empty where nothing is to be made good.

        [as told (1) or until a refusal says otherwise (0), tokens, input, output]; -1: not known, or headers tell what
        is left in that dimension, and they alone count.
        """
        usage = self.usage
        if usage is None or self.reconcile is False:
            return b""
        input_tokens, output_tokens = usage.budget_input_tokens, usage.output_tokens
        # Embeddings have no output, and say nothing of it.
        total = None if input_tokens is None else input_tokens + (output_tokens or 0)
        told = (("tokens", total), ("input_tokens", input_tokens), ("output_tokens", output_tokens))
        units = [-1 if count is None or name in self.reading.snapshots else count for name, count in told]
        return b"" if max(units) < 0 else _encode_list([int(self.reconcile is True), *units])

    def tried(self) -> bytes:
        """A failure that cost a try, and answers beside it, for the record of functions; empty where none did."""
        return _encode_list([self.failed_task, self.answered]) if self.failed_task else b""


class Observed(msgspec.Struct, array_like=True):
    """An observation as it lies in the lane's list. Fields are added at the end, each with a default."""

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
            msgspec.MsgspecError: it is none (another version's).
        """
        return _decode(raw)


_encode = msgspec.msgpack.Encoder().encode
_encode_list = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Observed).decode
_decode_ticket = msgspec.msgpack.Decoder(tuple[float, float, float, float, float, float]).decode


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """What makes the outcome of a call safe."""

    tag: str
    lane: str
    answer: bytes  #: empty: there is none to keep
    lesson: Lesson
    kind: AnswerKind = "value"  #: what the answer is to the calls that wait for it
    outbox: bytes = b""  #: the attempt, as the outbox holds it; empty: it has no row
    keep: Keep | None = None  #: how its answer is kept, if its claim says that it is; None: nothing is known of it


class Stored(NamedTuple):
    """The result of a call, as Celery looks for it."""

    name: str | bytes  #: of its key, and of the channel on which it is told
    value: bytes
    expires_s: int = 0  #: 0: it is kept for good
