"""How many lines of IN ended in which way? The counts for the summary of a run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from msgspec import Struct, field

from ratelimit_worker.batchfile import End, Kind

_MOST_SHOWN = 5  #: most frequent ways that are named in a message


class Tally(Struct):
    """Counts of lines that are done, and of the tokens of their answers."""

    lines: int = 0  #: all that are done
    ends: Counter[End] = field(default_factory=Counter)
    ways: dict[End, Counter[str]] = field(default_factory=lambda: {End.REFUSED: Counter(), End.FAILED: Counter()})
    input_tokens: int = 0
    output_tokens: int = 0

    def count(self, kind: Kind, many: int = 1) -> None:
        """Add `many` lines that ended in this way."""
        self.lines += many
        self.ends[kind.end] += many
        if kind.way:
            self.ways[kind.end][kind.way] += many

    def took(self, input_tokens: int, output_tokens: int) -> None:
        """Add the tokens of an answer; negative numbers take them back."""
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    def copy(self) -> Tally:
        """An independent copy."""
        ways = {end: Counter(of) for end, of in self.ways.items()}
        return Tally(self.lines, Counter(self.ends), ways, self.input_tokens, self.output_tokens)

    @property
    def all_refused_as(self) -> str:
        """The way in which every line was refused, if it is the same for all; "" otherwise."""
        ways = self.ways[End.REFUSED]
        same = len(ways) == 1 and self.ends[End.REFUSED] == self.lines > 0
        return next(iter(ways)) if same else ""

    def as_json(self) -> dict[str, Any]:
        """The counts for `OUT.summary.json`."""
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
        """Texts such as "failed: 3 invalid_line, 1 conflict"; empty if no line was refused or failed."""
        return [f"{end.value}: {_most(ways)}" for end, ways in self.ways.items() if ways]


def _most(ways: Counter[str]) -> str:
    shown = [f"{many:,} {way}" for way, many in ways.most_common(_MOST_SHOWN)]
    if len(ways) > len(shown):
        shown.append(f"{len(ways) - len(shown):,} other ways")
    return ", ".join(shown)
