"""`make bench` runs what has a goal, and says whether all goals are met."""

from __future__ import annotations

import sys

from benchmarks.__main__ import ALL, BY_HAND, PAUSE_S, RESULTS, ROOT, Benchmark, Outcome, report, run, settle, written


def ran(code: str) -> tuple[Outcome, str]:
    """What came of a benchmark that runs this."""
    shown = list[str]()
    outcome = run(Benchmark("one"), shown.append, [sys.executable, "-c", code])
    return outcome, "".join(shown)


def test_a_goal_is_missed_by_word_or_by_exit_code() -> None:
    """A benchmark that breaks has met none of its goals."""
    outcome, shown = ran("print('a: 3 ms (goal: at most 5 ms)')")
    assert (outcome.missed, outcome.text, shown) == (False, shown.rstrip("\n"), "a: 3 ms (goal: at most 5 ms)\n")
    assert ran("print('a: 7 ms (goal: at most 5 ms) MISSED')")[0].missed
    assert ran("raise SystemExit(1)")[0].missed
    assert ran("raise ValueError('no server')")[0].missed


def test_what_people_wrote_below_stays() -> None:
    """All above it is written anew, with machine and commit."""
    outcome = Outcome(Benchmark("one", ("--calls", "5")), 0, "a: 3 ms", 12.0, (0.1, 0.9))
    told = report([outcome, outcome._replace(code=1)], "2 cores, commit abc")
    assert "2 cores, commit abc" in told
    assert "| one | met | 12 | 0.1 to 0.9 |\n| one | **missed** |" in told
    assert "python -m benchmarks.one --calls 5" in told
    assert "Not run" not in told
    assert "\n\nNot run: two, three --postgres.\n\n" in report(
        [outcome], "2 cores", [Benchmark("two"), Benchmark("three", ("--postgres",))]
    )
    prose = f"{BY_HAND}: what was tried -->\n\nWords.\n"
    once = written(f"# Results\n\nold\n\n{prose}", told)
    assert once == f"{told}\n{prose}"
    assert written(once, told) == once


def test_it_waits_for_a_quiet_machine_but_not_for_ever() -> None:
    """A load that falls, and one that stays."""
    loads, slept = iter([9.0, 5.0, 0.1, 0.1]), list[float]()
    assert settle(lambda: next(loads), slept.append) == 0.1
    assert len(slept) == 2
    slept.clear()
    assert settle(lambda: 9.0, slept.append) == 9.0
    assert sum(slept) == PAUSE_S


def test_each_is_there_and_results_have_a_part_by_hand() -> None:
    """A name that is wrong would be found after an hour."""
    for benchmark in ALL:
        assert (ROOT / "benchmarks" / f"{benchmark.name}.py").is_file()
        assert "goal" in (ROOT / "benchmarks" / f"{benchmark.name}.py").read_text("utf-8").lower(), benchmark.name
    assert RESULTS.read_text("utf-8").count(BY_HAND) == 1
