"""The duty that samples lanes, on a real server: what it keeps is how the lane stands."""

from __future__ import annotations

from pathlib import Path

from ratelimit_worker.calls import Mode
from ratelimit_worker.config import read_settings
from ratelimit_worker.flow.duty import sample
from ratelimit_worker.stores import keys
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.duties import Sample
from tests.builders import entry
from tests.lua.cluster import Cluster


def test_a_lane_with_calls_is_kept_as_it_stands(cluster: Cluster, tmp_path: Path) -> None:
    """Its pace and mode, what waits and what is out; one worker at a time has the duty."""
    cluster.lanes.set_points("gpt", {"p1": 0.5, "d1": 2, "mode": Mode.REDUCED.value})
    for number in range(5):
        cluster.lanes.enqueue(entry(f"c{number}"))
    url = cluster.client.connection_pool.connection_kwargs["path"]
    settings = read_settings(
        {"MAISD_REDIS_URL": f"unix://{url}", "MAISD_DATABASE_URL": f"sqlite:///{tmp_path}/tracking.db"}
    )
    services = Services(settings)
    duty = Sample(services, "w1")
    duty.sampler.step(600.0)
    duty.sampler.step(660.0)
    (kept,) = services.queries.lane_samples(0.0, 1_000.0)
    assert (kept.lane, kept.at_s, kept.allowed_per_min, kept.mode) == ("gpt", 600, 30.0, Mode.REDUCED)
    assert kept.waiting + kept.running == 5
    assert kept.running == 2
    assert duty.lease.hold(sample.NAME, "w1", sample.LEASE_S)
    assert not duty.lease.hold(sample.NAME, "w2", sample.LEASE_S)
    cluster.client.delete(keys.duty(sample.NAME))
