"""Random numbers for request n: the same for the same seed, in every run and on every machine."""

from __future__ import annotations

import re
from enum import StrEnum
from hashlib import blake2b
from math import exp
from statistics import NormalDist

from msgspec import Struct

from ratelimit_worker.errors import ConfigurationError

_STANDARD_NORMAL = NormalDist()
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_FIXED = re.compile(rf"\s*{_NUMBER}\s*")
_NORMAL = re.compile(rf"\s*{_NUMBER}\s*(?:±|\+/?-)\s*{_NUMBER}\s*")
_LOGNORMAL = re.compile(rf"\s*lognormal\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)\s*")


def uniform(seed: int, number: int, purpose: str) -> float:
    """A float in [0, 1) that depends only on its three arguments."""
    digest = blake2b(f"{seed}:{number}:{purpose}".encode(), digest_size=7).digest()
    return (int.from_bytes(digest) >> 3) / 2**53


class Law(StrEnum):
    """The form of a latency's distribution."""

    FIXED = "fixed"
    NORMAL = "normal"  #: cut off at zero
    LOGNORMAL = "lognormal"


class Latency(Struct, frozen=True):
    """Distribution of the provider's latency: fixed, normal or lognormal."""

    law: Law
    middle_s: float  #: mean; the median of a lognormal
    spread: float = 0.0  #: standard deviation in seconds; of the logarithm for a lognormal

    @classmethod
    def parse(cls, text: str) -> Latency:
        """Read "0.05", "0.05±0.02" (also "+-", "+/-") or "lognormal(0.05, 0.5)".

        Raises:
            ConfigurationError: `text` is none of these.
        """
        if match := _FIXED.fullmatch(text):
            return cls(Law.FIXED, float(match[1]))
        if match := _NORMAL.fullmatch(text):
            return cls(Law.NORMAL, float(match[1]), float(match[2]))
        if match := _LOGNORMAL.fullmatch(text):
            return cls(Law.LOGNORMAL, float(match[1]), float(match[2]))
        raise ConfigurationError(
            f"latency {text!r} is not understood: use seconds such as 0.05, 0.05±0.02 or lognormal(0.05, 0.5)"
        )

    @property
    def mean_s(self) -> float:
        """The mean in seconds; of a normal distribution, without regard to the cut at zero."""
        return self.middle_s * exp(self.spread**2 / 2) if self.law is Law.LOGNORMAL else self.middle_s

    def draw_s(self, seed: int, number: int) -> float:
        """Latency of request `number`, in seconds, never negative."""
        if self.law is Law.FIXED:
            return self.middle_s
        deviations = _STANDARD_NORMAL.inv_cdf(max(uniform(seed, number, "latency"), 1e-12)) * self.spread
        return self.middle_s * exp(deviations) if self.law is Law.LOGNORMAL else max(0.0, self.middle_s + deviations)
