"""The former command line: `python -m advanced_rate_limiting.utilities emergency|stats|analytics …`, or by file path.

The commands are those of `ratelimit-worker`, with the same options and exit codes.
"""

from __future__ import annotations


def main() -> None:
    """Run the command that the arguments name."""
    from ratelimit_worker.cli import main as command_line

    command_line(prog_name="advanced_rate_limiting.utilities")


if __name__ == "__main__":
    main()
