"""Celery's side of the house: transport, task, result, presence and duties, in Celery's own words."""
