"""Escapes text from outside, so that a terminal or a log shows it and does nothing else.

Names of lanes and models, ids, file names and messages of providers come from outside. A control character in one can
move the cursor, overwrite printed lines or set the clipboard; a bidi control can make a text look like another.
"""

from __future__ import annotations

import re

#: Controls (C0 but for tab and newline, DEL, C1), line separators, bidi marks, embeddings, overrides and isolates, and
#: halves of surrogate pairs, which no stream can encode.
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""The text with each such character escaped as `\uXXXX`, which in JSON means the same character."""
    return _ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """The same with newlines and tabs escaped too: for text within a line or a cell."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")
