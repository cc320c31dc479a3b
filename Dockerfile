# One image for worker, flower and the command line.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE CHANGELOG.md ./
COPY ratelimit_worker ratelimit_worker
# What runs, in the versions of requirements.lock; not what tests need, nor a Redis, which is another container, nor pip.
RUN python -m venv /venv \
 && PIP_CONSTRAINT=/src/requirements.lock /venv/bin/pip install --no-cache-dir '.[flower,metrics,postgres,prices,socks]' \
 && /venv/bin/pip uninstall --yes pip

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 worker
COPY --from=build /venv /venv
COPY --chown=worker celeryconfig.py /app/
COPY --chown=worker tasks /app/tasks
# All that a process writes: its state, and temporary files. The rest of the file system may be read-only.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MAISD_STATE_DIR=/home/worker/state
RUN mkdir /home/worker/state && chown worker /home/worker/state
VOLUME ["/home/worker/state"]
USER worker
WORKDIR /app
# SIGTERM: running calls finish within worker_soft_shutdown_timeout; the rest goes back to its lanes
CMD ["celery", "-A", "tasks", "worker", "-P", "threads", "-c", "64", "-E"]
