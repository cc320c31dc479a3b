"""The deployment's Celery settings: yours to change, but for those that the product's promises rest on.

Those stand in ratelimit_worker/worker/settings.py, each with its reason, and hold whatever is said here; the others
there are for what is not said. The broker comes from MAISD_REDIS_URL or CELERY_BROKER_URL.
"""

#: Modules whose tasks the workers of this deployment know.
imports = ("ratelimit_worker.builtin", "tasks.llm", "tasks.maintenance")

#: Results are kept for a day (seconds).
result_expires = 86_400

#: How long a worker that is asked to stop lets running calls finish (seconds); the rest goes back to its lanes.
worker_soft_shutdown_timeout = 30.0
