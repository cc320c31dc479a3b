"""How many lines ended in which way? What the summary of a run counts, by the lines of IN."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ratelimit_worker.batchfile import End, Kind

_MOST_SHOWN = 5  #: ways in a line


@dataclass(slots=True)
class Tally:
    """Lines that are over, and what their answers took."""

    lines: int = 0
    ends: Counter[End] = field(default_factory=Counter)
    ways: dict[End, Counter[str]] = field(default_factory=lambda: {End.REFUSED: Counter(), End.FAILED: Counter()})
    input_tokens: int = 0
    output_tokens: int = 0

    def count(self, kind: Kind, many: int = 1) -> None:
        """So many more lines."""
        self.lines += many
        self.ends[kind.end] += many
        if kind.way:
            self.ways[kind.end][kind.way] += many

    def took(self, input_tokens: int, output_tokens: int) -> None:
        """What an answer took."""
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    def copy(self) -> Tally:
        """As it is now."""
        ways = {end: Counter(of) for end, of in self.ways.items()}
        return Tally(self.lines, Counter(self.ends), ways, self.input_tokens, self.output_tokens)

    @property
    def all_refused_as(self) -> str:
        """The way in which every line was refused, where it is one and the same; "" otherwise."""
        ways = self.ways[End.REFUSED]
        same = len(ways) == 1 and self.ends[End.REFUSED] == self.lines > 0
        return next(iter(ways)) if same else ""

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "lines": self.lines,
            **{end.value: self.ends[end] for end in End},
            "refused_by": dict(self.ways[End.REFUSED].most_common()),
            "failed_by": dict(self.ways[End.FAILED].most_common()),
            "tokens": {"input": self.input_tokens, "output": self.output_tokens},
        }

    def __str__(self) -> str:
        return ", ".join(f"{self.ends[end]:,} {end.value}" for end in End)

    @property
    def ways_in_words(self) -> list[str]:
        """Such as "failed: 3 invalid_line, 1 conflict"; none where nothing was refused or has failed."""
        return [f"{end.value}: {_most(ways)}" for end, ways in self.ways.items() if ways]


def _most(ways: Counter[str]) -> str:
    shown = [f"{many:,} {way}" for way, many in ways.most_common(_MOST_SHOWN)]
    if len(ways) > len(shown):
        shown.append(f"{len(ways) - len(shown):,} other ways")
    return ", ".join(shown)
