"""A large answer is packed, and comes out as it was."""

from __future__ import annotations

import json
import os

import pytest

from ratelimit_worker.contracts.kept import PACKED_FROM_BYTES, packed, unpacked
from ratelimit_worker.errors import StoreUnavailable

TEXT = json.dumps({"value": "the same again, " * 1000}).encode()


def test_a_large_answer_is_packed() -> None:
    """Whole, in less room; a small one, and one that would not get smaller, stay as they are."""
    assert len(packed(TEXT)) < len(TEXT) / 10
    assert unpacked(packed(TEXT)) == TEXT
    assert packed(TEXT[: PACKED_FROM_BYTES - 1]) == b""
    assert packed(os.urandom(PACKED_FROM_BYTES)) == b""


def test_what_was_not_packed_comes_out_too() -> None:
    """JSON begins otherwise than a frame."""
    assert unpacked(b'{"value": 1}') == b'{"value": 1}'
    assert unpacked(b"") == b""


def test_damage_is_an_error_of_the_store() -> None:
    """Half a frame is no answer."""
    with pytest.raises(StoreUnavailable, match="cannot be unpacked"):
        unpacked(packed(TEXT)[:-3])
