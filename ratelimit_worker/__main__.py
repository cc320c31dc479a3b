"""`python -m ratelimit_worker` is `ratelimit-worker`."""

from ratelimit_worker.cli import main

main()
