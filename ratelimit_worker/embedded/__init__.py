"""How does everything run where no server does? A bundled Valkey, workers beside it, and their clean end.

    with EmbeddedRedis(settings.state_path) as redis, Children(redis.watcher) as children:
        children.start([sys.executable, "-m", "celery", ...], environment, log_path)
        ...  # redis.url for redis-py, redis.broker_url for Celery

Three promises: the server listens on a private unix socket and nowhere else; one state folder has one server; and no
process outlives its owner, who may end in any way (see `embedded_watch.py`). Everything started here leads a session
of its own, so that Ctrl-C reaches the owner alone and the owner decides in which order the rest ends.
"""

from ratelimit_worker.embedded.binary import find_server
from ratelimit_worker.embedded.children import Children, Exited
from ratelimit_worker.embedded.folder import running_url
from ratelimit_worker.embedded.server import EmbeddedRedis
from ratelimit_worker.embedded.watcher import Watcher

__all__ = ["Children", "EmbeddedRedis", "Exited", "Watcher", "find_server", "running_url"]
