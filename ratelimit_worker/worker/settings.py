"""Which Celery settings do the promises rest on? Each with its reason; `install` applies them."""

from __future__ import annotations

from typing import Any

#: Short answers for callers: a broker that is away must be an error within 2 s, not a hang (stock: 6 to 19 s).
PUBLISH_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}

#: What a worker cannot do without, whatever the app says. All else that calls need is theirs alone: of their class
#: (`CallTask`), of their message, or of their connection; so other tasks of the app keep what they had.
REQUIRED: dict[str, Any] = {
    # Room is counted in slots; a prefetched message would sit released and unstarted.
    "worker_prefetch_multiplier": 1,
    # Protocol 1 has no headers, and the plan of a call is a header.
    "task_protocol": 2,
}

#: Where the app says nothing.
DEFAULTS: dict[str, Any] = {
    "task_publish_retry_policy": PUBLISH_RETRY,
    "broker_pool_limit": 64,
    "redis_socket_keepalive": True,
    "redis_backend_health_check_interval": 10,
    # Stock: 120 s for an answer, and for ever to connect.
    "redis_socket_timeout": 5.0,
    "redis_socket_connect_timeout": 2.0,
    "worker_soft_shutdown_timeout": 10.0,
    # A worker outlives its broker: restarts, OOM and READONLY answers (these are channel errors).
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_channel_error_retry": True,
    # In a threads pool a result that cannot be stored loses its slot for ever.
    "result_backend_always_retry": True,
    "result_backend_max_retries": 3_600,
    # … at most this far apart (ms; stock: 10 s), so that slots are back a second after Redis is.
    "result_backend_max_sleep_between_retries_ms": 1_000,
}

#: Of our own app and its commands: what tasks print is theirs, and their results are kept for a day.
OWN_APP: dict[str, Any] = {"worker_redirect_stdouts": False, "result_expires": 86_400}

BROKER_OPTIONS: dict[str, Any] = {
    **PUBLISH_RETRY,
    "socket_timeout": 5.0,
    "socket_connect_timeout": 2.0,
    "socket_keepalive": True,
    "health_check_interval": 10,
}

BACKEND_OPTIONS: dict[str, Any] = {
    # A full or read-only Redis answers with ResponseError: wait for it as for a lost connection.
    "additional_connection_errors": ["redis.exceptions.ResponseError"],
    "retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1},
}
