"""Examples of calls, as a team would write them: functions that call a provider, decorated with `@llm_task`."""

from __future__ import annotations

from ratelimit_worker import llm_task
from ratelimit_worker.builtin import chat_completion

SUMMARY_MODEL = "gpt-4o-mini"


@llm_task(lane=f"openai:{SUMMARY_MODEL}", context="summary", tags=["agents"])
def summarize(text: str, sentences: int = 3) -> str:
    """A summary of `text`, in about this many sentences."""
    answer = chat_completion.run(
        model=SUMMARY_MODEL,
        max_tokens=60 * sentences,
        messages=[{"role": "user", "content": f"Summarize in {sentences} sentences:\n\n{text}"}],
    )
    return str(answer["choices"][0]["message"]["content"])


@llm_task(lane=f"openai:{SUMMARY_MODEL}", context="reduce", tags=["agents"])
def combine(parts: list[str]) -> str:
    """One text out of several: the body of a chord over `summarize`."""
    answer = chat_completion.run(
        model=SUMMARY_MODEL,
        max_tokens=400,
        messages=[{"role": "user", "content": "Combine into one paragraph:\n\n" + "\n\n".join(parts)}],
    )
    return str(answer["choices"][0]["message"]["content"])
