"""How is a text shown that somebody else has written? So that a terminal or a log shows it, and does nothing else.

Names of lanes and models, ids, file names and what providers say come from outside. A control character in one moves
the cursor, rewrites lines that were printed before or sets the clipboard; a bidi control shows another text than there
is.
"""

from __future__ import annotations

import re

#: Controls (C0 but for tab and newline, DEL, C1), line separators, bidi marks, embeddings, overrides and isolates, and
#: halves of surrogate pairs, which no stream can encode.
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""The text with each such character as `\uXXXX`: what it means is the same where the text is JSON."""
    return _ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """The same with newlines and tabs escaped too: for a name in a line or a cell, which it must not end."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")
