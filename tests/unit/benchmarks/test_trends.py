"""What the benchmark of trends says when a goal is missed: `make bench` looks for that word."""

from __future__ import annotations

import pytest

from benchmarks import trends


@pytest.mark.parametrize(
    ("false", "found", "word"),
    [
        pytest.param(0, 4, False, id="all goals are met"),
        pytest.param(1, 4, True, id="3 % of false alarms"),
        pytest.param(0, 5, True, id="found a minute late"),
        pytest.param(0, None, True, id="not found"),
    ],
)
def test_a_missed_goal_is_named(
    false: int, found: int | None, word: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trends, "quiet_and_doubled", lambda kind, per_min, seed: (seed < false, found))
    trends.values(33, trends.KINDS[:1], [20])
    assert ("MISSED" in capsys.readouterr().out) is word


def test_false_alarms_about_errors_count_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for false, missed in ((0, 0), (1, 4)):
        monkeypatch.setattr(trends, "errors", lambda per_min, share, seed, false=false: seed < false)
        trends.shares(33, [5])
        assert capsys.readouterr().out.count("MISSED") == missed
