"""What does an attempt teach the lane? The observation that settle leaves and the tuner reads, and its wire form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from ratelimit_worker.calls import DIMENSIONS, Category, Failure, Response, Snapshot, Usage
from ratelimit_worker.policy import headers as rate_limit_headers
from ratelimit_worker.policy.fault import Witness
from ratelimit_worker.policy.pace import Observation, Ticket
from ratelimit_worker.ports import Health

#: "plain": answered, and nothing beside the answer tells how the provider is (a function, an SDK).
#: "quota": nothing is left until somebody pays; "barred": the key was not accepted.
Verdict = Literal["good", "plain", "refused", "sick", "quota", "barred", "other"]


class _Wire(msgspec.Struct, array_like=True):
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


_encode = msgspec.msgpack.Encoder().encode
_encode_used = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Wire).decode
_decode_ticket = msgspec.msgpack.Decoder(tuple[float, float, float, float, float, float]).decode


def verdict_of(failure: Failure | None) -> Verdict:
    """What the lane learns from an outcome at once; None: the provider answered."""
    if failure is None:
        return "good"
    match failure.category:
        case Category.RATE_LIMITED:
            return "refused"
        case Category.QUOTA_EXHAUSTED:
            return "quota"
        case Category.AUTH:
            return "barred"
        case _:
            return "sick" if failure.sick else "other"


def word(verdict: Verdict, response: Response | None, *, suspect: bool = False) -> str:
    """The verdict as the scripts take it: a refusal says in which dimension, if it is known, by its number from 1.

    Args:
        suspect: The call is no witness of how its provider is (`fault.Witness`).
    """
    if verdict == "sick":
        return "sick.1" if suspect else "sick"
    if verdict == "refused" and _crowded(response):
        return f"{verdict}.0"  # in none: it was for calls at once
    dimension = _refused_in(response) if verdict == "refused" else None
    return verdict if dimension is None else f"{verdict}.{DIMENSIONS.index(dimension) + 1}"


def older(ticket: bytes, health: Health) -> int:
    """Calls that are still out and were sent before the one that drew the ticket; at least so many.

    All that were sent after it are taken to be still out, which costs no look-up: failures that come back faster than
    answers have few of them.
    """
    seq = int(_decode_ticket(ticket)[0])
    return max(0, health.out - 1 - (health.seq - seq))


def sent_s(ticket: bytes) -> float:
    """When the request of this ticket left, seconds, Redis clock."""
    return _decode_ticket(ticket)[1] / 1e6


def _refused_in(response: Response | None) -> str | None:
    return rate_limit_headers.refused_dimension(response.headers, response.body) if response is not None else None


def _crowded(response: Response | None) -> bool:
    return response is not None and rate_limit_headers.about_concurrency(response.body)


def encode(
    at: float,
    ticket: bytes,
    verdict: Verdict,
    response: Response | None,
    failure: Failure | None,
    cost: Sequence[float] = (1.0, 0.0, 0.0, 0.0),
    older: int = 0,
    witness: Witness | None = None,
) -> bytes:
    """An observation as the lane's list holds it; empty where it would teach the tuner nothing.

    Args:
        at: When the answer came, seconds, Redis clock.
        ticket: As the lane gave it out.
        cost: Of the call, by dimension.
        older: Calls still out that were sent before this one.
        witness: Who asked.
    """
    snapshots = rate_limit_headers.snapshots(response.headers, now_s=at) if response is not None else {}
    if not snapshots and verdict == "other":
        return b""
    dimension = _refused_in(response) if verdict == "refused" else None
    return _encode(
        _Wire(
            at,
            ticket,
            "good" if verdict == "plain" else verdict,
            {name: (s.limit, s.window_s, s.remaining, s.reset_s) for name, s in snapshots.items()},
            failure.retry_after_s if failure is not None else None,
            dimension,
            (cost[0], cost[1], cost[2], cost[3]),
            older,
            _stated(response) if verdict == "refused" else {},
            witness,
            verdict == "refused" and _crowded(response),
        )
    )


def _stated(response: Response | None) -> dict[str, float]:
    """Rates that a refusal states in words, units/s; quotas of a day are none."""
    stated = rate_limit_headers.stated_limit(response.body) if response is not None else {}
    return {name: one.limit / one.window_s for name, one in stated.items() if one.window_s <= 3600}


def used(response: Response | None, usage: Usage | None, reconcile: bool | None) -> bytes:
    """What an answered call has really taken, as settle.lua reads it; empty where nothing is to be made good.

    [as told (1) or until a refusal says otherwise (0), tokens, input, output]; -1: not known, or headers tell what is
    left in that dimension, and they alone are heeded.

    Args:
        reconcile: Whether the provider gives back what was reserved and not used; None: nobody has told.
    """
    if usage is None or reconcile is False:
        return b""
    governed = rate_limit_headers.told_dimensions(response.headers) if response is not None else frozenset()
    input_tokens, output_tokens = usage.input_tokens, usage.output_tokens
    # Embeddings have no output, and say nothing of it.
    total = None if input_tokens is None else input_tokens + (output_tokens or 0)
    told = (("tokens", total), ("input_tokens", input_tokens), ("output_tokens", output_tokens))
    units = [-1 if count is None or name in governed else count for name, count in told]
    return b"" if max(units) < 0 else _encode_used([int(reconcile is True), *units])


def decode(raw: bytes) -> Observation:
    """The observation of a list entry.

    Raises:
        msgspec.MsgspecError: it is none (another version's).
    """
    wire = _decode(raw)
    seq, sent_us, *sent = _decode_ticket(wire.ticket)
    return Observation(
        at=wire.at,
        ticket=Ticket(seq=int(seq), sent_at=sent_us / 1e6, sent=(sent[0], sent[1], sent[2], sent[3])),
        refused=wire.verdict == "refused",
        sick=wire.verdict == "sick",
        good=wire.verdict == "good",
        quota=wire.verdict == "quota",
        barred=wire.verdict == "barred",
        snapshots={
            name: Snapshot(limit=limit, window_s=window, remaining=remaining, reset_s=reset)
            for name, (limit, window, remaining, reset) in wire.snapshots.items()
        },
        retry_after_s=wire.retry_after_s,
        refused_dimension=wire.dimension,
        cost=wire.cost,
        older=wire.older,
        stated=wire.stated,
        witness=wire.witness,
        crowded=wire.crowded,
    )
