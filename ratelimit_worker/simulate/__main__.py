"""`python -m ratelimit_worker.simulate` is the command `ratelimit-worker simulate`."""

from ratelimit_worker.simulate.command import simulate

simulate(prog_name="python -m ratelimit_worker.simulate")
