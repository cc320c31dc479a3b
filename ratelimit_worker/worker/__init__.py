"""The part that speaks to Celery: transport, task, result, presence and duties."""
