"""The faults that `make test` stages: the same harness as `make chaos`, with fewer calls, once each."""

from __future__ import annotations

import pytest

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.run import run

pytestmark = pytest.mark.worker


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.short], ids=lambda fault: fault.name)
def test_the_promise_is_kept(fault: Fault) -> None:
    """Nothing lost, stuck, answered twice or unrecorded, and every slot is there."""
    verdict = run(fault, scale=0.4)
    assert verdict.broken == (), verdict


def test_each_fault_has_a_name_of_its_own() -> None:
    """By which it is asked for, and found in the table."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
