"""A Redis server of our own if none is configured: a bundled Valkey, workers beside it, and their clean end.

    with EmbeddedRedis(settings.state_path) as redis, Children(redis.watcher) as children:
        children.start([sys.executable, "-m", "celery", ...], environment, log_path)
        ...  # redis.url for redis-py, redis.broker_url for Celery

Three promises: the server listens only on a private unix socket; a state folder has at most one server; and no
process outlives its owner, in whatever way that ends (see `embedded_watch.py`). Each process started here has a session
of its own, so that Ctrl-C reaches only the owner, and the owner decides in which order the others end.
"""

from ratelimit_worker.embedded.binary import find_server
from ratelimit_worker.embedded.children import Children, Exited
from ratelimit_worker.embedded.folder import running_url
from ratelimit_worker.embedded.server import EmbeddedRedis
from ratelimit_worker.embedded.watcher import Watcher

__all__ = ["Children", "EmbeddedRedis", "Exited", "Watcher", "find_server", "running_url"]
