"""The deployment's own tasks: a team puts its own here. `celery -A tasks worker` runs them.

Not in the wheel, which brings the built-in tasks (`ratelimit_worker.builtin`) only.
"""

from ratelimit_worker import make_app

app = make_app(config="celeryconfig")
