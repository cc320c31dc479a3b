"""Numbers and what they count, as a reader says them."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from ratelimit_worker.plural import calls_wait, many
from ratelimit_worker.ports import Bar, BarKind
from ratelimit_worker.reports.bars import sentences
from ratelimit_worker.reports.doctor import judge_counters, judge_outbox


@pytest.mark.parametrize(("number", "says"), [(0, "0 misses"), (1, "1 miss"), (2, "2 misses"), (1_000, "1,000 misses")])
def test_a_number_and_its_noun(number: int, says: str) -> None:
    """One is one."""
    assert many(number, "miss", "misses") == says
    assert many(number, "hit") == says.replace("misses", "hits").replace("miss", "hit")
    assert calls_wait(number) == says.replace("misses", "calls wait").replace("miss", "call waits")


def test_no_sentence_says_one_calls() -> None:
    """Of every kind of bar, the counters and the outbox, each with the number 1."""

    def of_one(kind: BarKind) -> Bar:
        return Bar(kind=kind, number=1)

    bars = [bar for kind in BarKind for bar in (of_one(kind), Bar(kind=BarKind.PARENT, parent=of_one(kind)))]
    one_each = Counter(malformed=1, refused_full=1, refused_lanes=1, shed=1, unrecorded=1, leaks=1)
    findings = [*judge_counters(one_each), *judge_outbox(1, full=True, bad=1), *judge_outbox(1, full=False, bad=0)]
    said = [
        *(words for bar in bars for words in sentences([bar], 0.0, paces={}, parents={}, tried=False)),
        *(found.says for found in findings),
    ]
    counted = [words for words in said if re.search(r"\b1 [a-z]", words)]
    assert len(counted) >= 12
    assert not [words for words in counted if re.search(r"\b1 (calls|messages|outcomes|slots)\b", words)]
