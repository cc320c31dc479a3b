"""The release before `install(app)`: plain Celery, with a task of a name that is a call's in the next release."""

from __future__ import annotations

import os

from celery import Celery

url = os.environ.get("MAISD_REDIS_URL")
app = Celery("shop", broker=url, backend=url)
app.conf.update(task_default_queue="shop", worker_redirect_stdouts=False)


@app.task(shared=False, name="shop.translate")
def translate(prompt: str) -> str:
    """Writes what it was asked."""
    with open(os.path.join(os.environ["FLEET_FOLDER"], "stock"), "a") as file:
        file.write(f"0 {prompt}\n")
    return f"stock {prompt}"
