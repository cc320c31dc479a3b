"""The deployment's Celery settings, which you may change.

ratelimit_worker/worker/settings.py has REQUIRED settings, which override those here, and DEFAULTS for settings that are
not made here, each with its reason. The broker comes from MAISD_REDIS_URL or CELERY_BROKER_URL.
"""

#: Modules whose tasks the workers of this deployment know.
imports = ("ratelimit_worker.builtin", "tasks.llm", "tasks.maintenance")

#: Results are kept for a day (seconds).
result_expires = 86_400

#: How long running calls may still finish when a worker stops (seconds); after that they go back to their lanes.
worker_soft_shutdown_timeout = 30.0
