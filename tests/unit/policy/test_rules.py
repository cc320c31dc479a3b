"""Rules of tasks and packages: asked before ours, and never able to break an attempt."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ratelimit_worker import plugins
from ratelimit_worker.calls import Category, Failure
from ratelimit_worker.errors import StoreUnavailable, Throttled
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.policy.rules import Rule

C = Category
SECRET = "the canary sings"
WAIT_S = 120


def always(answer: Any) -> Rule:
    return lambda error: answer


def fails(error: BaseException) -> Category:
    raise RuntimeError(SECRET)


def test_a_rule_decides_before_ours_and_keeps_what_we_found() -> None:
    """A category replaces ours; status, Retry-After and request id stay. A word of the enum will do."""
    error = Throttled("HTTP 429", 429, "req_1")
    for said in (C.QUOTA_EXHAUSTED, "quota_exhausted"):
        failure = classify_exception(error, rules=[always(said)])
        assert failure is not None
        assert (failure.category, failure.status, failure.request_id) == (C.QUOTA_EXHAUSTED, 429, "req_1")
    ours = classify_exception(LookupError(SECRET), rules=[always(C.TIMEOUT)])
    assert ours == Failure(category=C.TIMEOUT, cause="LookupError")


def test_a_failure_is_the_whole_verdict_made_fit() -> None:
    """One line of cause, and no wait that makes no sense."""
    given = Failure(category=C.OVERLOADED, cause="gateway says busy\nmore", status=503, retry_after_s=1e9)
    failure = classify_exception(LookupError("x"), rules=[always(given)])
    assert failure == Failure(category=C.OVERLOADED, cause="gateway says busy", status=503, retry_after_s=86_400.0)
    for wait_s in (math.nan, math.inf, -1.0):
        given = Failure(category=C.OVERLOADED, cause="", retry_after_s=wait_s)
        failure = classify_exception(LookupError("x"), rules=[always(given)])
        assert failure is not None
        assert failure.retry_after_s is None


def test_the_first_opinion_counts() -> None:
    """Rules without one pass the error on, at last to ours."""
    rules = [always(None), always(C.CONFLICT), always(C.AUTH)]
    first = classify_exception(TimeoutError(), rules=rules)
    assert first is not None
    assert first.category is C.CONFLICT
    last = classify_exception(TimeoutError(), rules=[always(None)])
    assert last is not None
    assert last.category is C.TIMEOUT
    assert classify_exception(LookupError("x"), rules=[always(None)]) is None


@pytest.mark.parametrize("rule", [fails, always("nonsense"), always(429), always(C)])
def test_a_rule_that_fails_has_no_opinion(rule: Rule, caplog: pytest.LogCaptureFixture) -> None:
    """The log names rule and class; neither its message nor its answer, which may quote the prompt."""
    with caplog.at_level(logging.WARNING, "ratelimit_worker.classify"):
        failure = classify_exception(TimeoutError(SECRET), rules=[rule, always(None)])
    assert failure is not None
    assert failure.category is C.TIMEOUT
    (line,) = caplog.messages
    assert line.startswith("classify.rule_failed rule=tests.unit.policy.test_rules.")
    assert SECRET not in line
    assert "nonsense" not in line


def test_rules_are_not_asked_about_our_own_house() -> None:
    """Redis away stays nobody's failure, whatever a careless rule says of every exception."""
    assert classify_exception(StoreUnavailable("away"), rules=[always(C.SERVER_ERROR)]) is None


# ── entry points ─────────────────────────────────────────────────────────────────────────────────────────────────────


def install(folder: Path, package: str, points: str, code: str) -> None:
    """A package with entry points, as pip leaves it."""
    meta = folder / f"{package}-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{points}\n")
    (folder / f"{package}.py").write_text(code)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    plugins.installed_rules.cache_clear()
    yield tmp_path
    plugins.installed_rules.cache_clear()
    for name in ("gateway_rules", "broken_rules"):
        sys.modules.pop(name, None)


GATEWAY = """
asked = []

def first(error):
    asked.append(error)
    return "conflict" if isinstance(error, LookupError) else None

def second(error):
    return "auth"

number = 7
"""


def test_rules_of_installed_packages_are_found(packages: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By name of their entry points, imported at the first failure and once; those that cannot be are logged."""
    points = "b = gateway_rules:second\na = gateway_rules:first\nc = gateway_rules:number\nd = gateway_rules:nothing"
    install(packages, "gateway_rules", points, GATEWAY)
    install(packages, "broken_rules", "a = broken_rules:x", f"raise RuntimeError({SECRET!r})")
    decide = plugins.classifier()
    assert "gateway_rules" not in sys.modules
    with caplog.at_level(logging.WARNING, "ratelimit_worker.classify"):
        found = [decide(error) for error in (LookupError("x"), TimeoutError())]
    assert [failure and failure.category for failure in found] == [C.CONFLICT, C.AUTH]
    assert len(sys.modules["gateway_rules"].asked) == 2
    assert sorted(caplog.messages) == [
        "classify.rule_not_loaded rule=broken_rules:x cause=RuntimeError",
        "classify.rule_not_loaded rule=gateway_rules:nothing cause=AttributeError",
        "classify.rule_not_loaded rule=gateway_rules:number cause=not_callable",
    ]


def test_a_tasks_own_rule_comes_first(packages: Path) -> None:
    """Then those of packages, then ours."""
    install(packages, "gateway_rules", "a = gateway_rules:first", GATEWAY)
    own = plugins.classifier(lambda error: C.OVERLOADED if str(error) == "mine" else None)
    found = [own(error) for error in (LookupError("mine"), LookupError("x"), TimeoutError())]
    assert [failure and failure.category for failure in found] == [C.OVERLOADED, C.CONFLICT, C.TIMEOUT]
