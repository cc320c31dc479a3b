"""Celery settings that the promises depend on, each with its reason; `install` applies them."""

from __future__ import annotations

from typing import Any

#: For callers: a broker that is away must cause an error within 2 s and not a hang (stock: 6 to 19 s).
PUBLISH_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}

#: Settings that a worker must have, whatever the app says. All else that calls need is set for calls only, by their
#: class (`CallTask`), message or connection, so that other tasks of the app are not changed.
REQUIRED: dict[str, Any] = {
    # Room is counted in slots; a prefetched message would be released and not begin.
    "worker_prefetch_multiplier": 1,
    # The plan of a call is a header, and protocol 1 has none.
    "task_protocol": 2,
}

#: Defaults, unless the app sets them.
DEFAULTS: dict[str, Any] = {
    "task_publish_retry_policy": PUBLISH_RETRY,
    "broker_pool_limit": 64,
    "redis_socket_keepalive": True,
    "redis_backend_health_check_interval": 10,
    # Stock: 120 s for an answer, and no limit for connecting.
    "redis_socket_timeout": 5.0,
    "redis_socket_connect_timeout": 2.0,
    "worker_soft_shutdown_timeout": 10.0,
    # A worker goes on after restarts of its broker, and after OOM and READONLY answers (these are channel errors).
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_channel_error_retry": True,
    # In a threads pool, a result that cannot be stored would take its slot for ever.
    "result_backend_always_retry": True,
    "result_backend_max_retries": 3_600,
    # … with at most this pause (ms; stock: 10 s), so that slots are free a second after Redis is back.
    "result_backend_max_sleep_between_retries_ms": 1_000,
}

#: For our own app and its commands: the output of tasks is not redirected, and results are kept for a day.
OWN_APP: dict[str, Any] = {"worker_redirect_stdouts": False, "result_expires": 86_400}

BROKER_OPTIONS: dict[str, Any] = {
    **PUBLISH_RETRY,
    "socket_timeout": 5.0,
    "socket_connect_timeout": 2.0,
    "socket_keepalive": True,
    "health_check_interval": 10,
}

BACKEND_OPTIONS: dict[str, Any] = {
    # A full or read-only Redis answers with ResponseError; this is waited for like a lost connection.
    "additional_connection_errors": ["redis.exceptions.ResponseError"],
    "retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1},
}
