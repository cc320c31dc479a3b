"""A deployment's own tasks: a team puts theirs here. `celery -A tasks worker` runs them.

This folder is not in the wheel, which has only the built-in tasks (`ratelimit_worker.builtin`).
"""

from ratelimit_worker import make_app

app = make_app(config="celeryconfig")
