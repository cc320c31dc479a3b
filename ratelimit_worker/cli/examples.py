"""An example of each command, which `--help` prints below its options."""

from __future__ import annotations

import click

_NAME = "ratelimit-worker"

#: Command, with its group → an example, without `ratelimit-worker`.
EXAMPLES = {
    "alerts": "alerts --json",
    "alerts ack": "alerts ack 4f1c9a",
    "alerts list": "alerts list --all --since 24h",
    "alerts silence": "alerts silence latency --lane openai:gpt-4o --for 2h",
    "analytics": "analytics --since 7d -o report.html",
    "auto": "auto --lane openai:gpt-4o",
    "budgets": "budgets --format json",
    "budgets set": "budgets set tenant:team-a --usd-per-day 20",
    "cache": "cache stats --format json",
    "cache clear": "cache clear --context titles",
    "cache stats": "cache stats --format json",
    "calls": "calls list --state failed --error timeout --since 6h",
    "calls cancel": "calls cancel --lane openai:gpt-4o --tenant team-a",
    "calls list": "calls list --state failed --error timeout --since 6h",
    "calls retry": "calls retry --lane openai:gpt-4o --error rate_limited",
    "calls show": "calls show 0c9ad3c4-2f0e-4c4b-9a3e-0f5f2a6f3a11",
    "classify": 'classify --status 429 --header "Retry-After: 20"',
    "cleanup": "cleanup --older-than 30d",
    "doctor": "doctor -A mytasks",
    "emergency": 'emergency --for 15m --reason "the provider told us"',
    "explain": "explain 0c9ad3c4-2f0e-4c4b-9a3e-0f5f2a6f3a11",
    "flower": "flower -A mytasks --port 5555 --basic-auth me:secret",
    "halt": "halt --lane openai:gpt-4o --for 1h",
    "health": "health --worker celery@web-1",
    "lanes": "lanes --lane openai:gpt-4o",
    "limits": "limits set openai:gpt-4o --rpm 500 --tpm 30000",
    "limits set": "limits set openai:gpt-4o --rpm 500 --tpm 30000",
    "metrics": "metrics -A mytasks --port 9464",
    "mode": "mode history --lane openai:gpt-4o --limit 50",
    "mode history": "mode history --lane openai:gpt-4o --limit 50",
    "normal": "normal --for 10m",
    "reduced": "reduced --lane openai:gpt-4o --for 30m",
    "resume": "resume --lane openai:gpt-4o",
    "run": "run questions.jsonl -o answers.jsonl",
    "simulate": "simulate --rpm 600 --port 8099",
    "stats": "stats --window 1h",
    "status": "status --lane openai:gpt-4o",
    "watch": "watch openai:gpt-4o",
    "up": "up -A mytasks",
    "demo": "demo --seed 7",
}


def with_example(command: click.Command, path: str, name: str = _NAME) -> click.Command:
    """Add examples to a command and its subcommands.

    Args:
        path: The command as it is typed, with its group.
        name: The program before it on the command line.
    """
    if path in EXAMPLES:
        command.epilog = f"\b\nExample:\n  {name} {EXAMPLES[path]}"  # \b: click leaves its lines as they are
    for below, inner in getattr(command, "commands", {}).items():
        with_example(inner, f"{path} {below}", name)
    return command
