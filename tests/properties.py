"""Which examples do the property tests try? Fixed ones, so that a commit has one verdict; or fresh ones, to explore.

A property test is one with `@given`, or one that runs a state machine; both get the marker `fuzz` by themselves. Two
profiles say how they run:

- `fixed`, unless told otherwise: the examples follow from the test's own source. `make test` and CI use it.
- `fuzz` (`--hypothesis-profile=fuzz --hypothesis-seed=N`): more examples, from a seed. `make fuzz` uses it.

No clock decides: neither profile has a deadline or a health check, both of which fail on a busy machine.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from hypothesis.statistics import collector, describe_statistics

UNTIL = "FUZZ_UNTIL"  #: environment variable: the Unix time after which no further test begins
SUMMARY = re.compile(r"^(\d+) examples of (\d+) property tests$", re.MULTILINE)
_TRIED = re.compile(r"- (\d+) passing, (\d+) failing")
_EXAMPLES = "examples"  #: property of a test's report


def register() -> None:
    """Make the profiles known, and `fixed` the one that holds."""
    # Hypothesis also draws the constants of all modules of this folder that happen to be imported: then the same test
    # has other examples when it runs alone, or after other files, and a seed does not find its failure again.
    vars(providers)["is_local_module_file"] = lambda _: False
    settings.register_profile(
        "fixed",
        max_examples=100,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    fixed = settings.get_profile("fixed")
    settings.register_profile("fuzz", parent=fixed, derandomize=False, max_examples=400, print_blob=True)
    settings.load_profile("fixed")


def share(part: float) -> int:
    """So many examples, of those that the profile gives a test: for one whose examples are long."""
    default = settings.default
    assert default is not None, "`register` has loaded a profile"
    return max(1, round(default.max_examples * part))


def is_property(item: pytest.Item) -> bool:
    """Whether Hypothesis chooses what this test tries."""
    test = getattr(item, "obj", None)
    code = getattr(test, "__code__", None)
    runs_a_machine = code is not None and "run_state_machine_as_test" in code.co_names
    return bool(getattr(test, "is_hypothesis_test", False)) or runs_a_machine


def shuffle(items: list[pytest.Item], seed: int) -> None:
    """Another order each round: where time ends a round, it is not always the same tests that were left out."""
    random.Random(seed).shuffle(items)


def time_is_over() -> bool:
    """Whether `make fuzz` wants no further test to begin."""
    return time.time() >= float(os.environ.get(UNTIL, "inf"))


@contextmanager
def counted(item: pytest.Item) -> Iterator[None]:
    """Note in the test's report how many examples it tried."""
    heard: list[str] = []
    # A test with `@given` has its figures noted by Hypothesis' own plugin; a state machine tells them here.
    listeners: Any = collector  # typed as one whose value is always None

    def hear(stats: Any) -> None:
        heard.append(describe_statistics(stats | {"nodeid": item.nodeid}))

    with listeners.with_value(hear):
        yield
    told = _TRIED.findall(getattr(item, "hypothesis_statistics", "") or "".join(heard))
    item.user_properties.append((_EXAMPLES, sum(int(passing) + int(failing) for passing, failing in told)))


def summary(reports: Iterable[pytest.TestReport]) -> str:
    """How much was tried; see `SUMMARY`."""
    tried = [int(str(value)) for report in reports for name, value in report.user_properties if name == _EXAMPLES]
    return f"{sum(tried)} examples of {len(tried)} property tests"
