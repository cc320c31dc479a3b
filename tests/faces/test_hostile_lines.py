"""Does `run` end well, whatever stands in its file? Lines of any kind: each has its line in OUT, once."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit_worker import builtin
from ratelimit_worker.batchfile import Ask, Bad, answer_line, asks, bad_line, read_out
from ratelimit_worker.errors import BadInput
from ratelimit_worker.simulate import Scenario, Simulator
from tests import hostile
from tests.faces.test_run import Runner
from tests.properties import share

RUN = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


def lines(seed: int, many: int) -> list[bytes]:
    rnd = random.Random(seed)
    return [hostile.batch_line(rnd, f"l-{seed}-{n}") + b"\n" for n in range(many)]


@settings(max_examples=share(0.5))
@given(seed=st.integers(0, 2**32))
def test_any_line_is_read(seed: int) -> None:
    """Fifty lines as values: each that is not blank is a call that can be planned, or is told what is wrong with it."""
    text = lines(seed, 50)
    found = list(asks(text, RUN))
    assert len(found) == sum(1 for one in text if one.strip())
    for one in found:
        if isinstance(one, Bad):
            assert read_out(bad_line(one)).response is None
            continue
        assert isinstance(one, Ask)
        try:
            builtin.batch_line.plan(
                (), {"url": one.url, "body": one.body}, lane=builtin.lane_of_line(one.url, one.body)
            )
        except BadInput:
            continue
        line, _ = answer_line(one.call_id, one.custom_id, {"status_code": 200, "request_id": None, "body": {}})
        assert read_out(line).custom_id == one.custom_id


def in_and_out(folder: Path, seed: int, many: int, timeout_s: float) -> None:
    """Run such a file to its end."""
    with Simulator(Scenario(rpm=600_000, latency="0.01")) as provider:
        run = Runner(folder, provider.base_url)
        text = lines(seed, many)
        run.source.write_bytes(b"".join(text))
        done = run("--workers", "1", timeout_s=timeout_s)
        said = done.stderr[-3000:]
        assert done.returncode in (0, 1), said
        assert "Traceback" not in done.stderr, said
        ids = Counter(line["id"] for line in run.answers())
        assert max(ids.values()) == 1
        assert sum(ids.values()) == sum(1 for line in text if line.strip()), said


@pytest.mark.server
@pytest.mark.worker
def test_no_line_stops_the_command(tmp_path: Path) -> None:
    """Two hundred lines: each has its line in OUT."""
    in_and_out(tmp_path, 1, 200, 300.0)
