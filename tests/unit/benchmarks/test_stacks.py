"""Samples of stacks, as py-spy writes them, by package and by function."""

from __future__ import annotations

from benchmarks.stacks import counted

RAW = """\
process 7:"celery worker";MainThread;run (/v/python3.11/site-packages/celery/loops.py:9);read (redis/a.py:3) 4
thread;begin (/w/ratelimit_worker/worker/task.py:8);add (/w/ratelimit_worker/stores/lanes.py:12) 2
thread;begin (ratelimit_worker/worker/task.py:8);select (/usr/lib/python3.12/selectors.py:5) 1
thread;_worker (concurrent/futures/thread.py:81) 3
not a sample
"""


def test_samples_are_counted_by_package_and_function() -> None:
    """The innermost frame says the package; the innermost frame of ours says the function."""
    packages, functions = counted(RAW)
    assert packages == {"redis": 4, "concurrent": 3, "ratelimit_worker/stores": 2, "standard library": 1}
    assert functions == {"none of ours": 7, "stores/lanes.py add": 2, "worker/task.py begin": 1}
