"""What is in a prompt and is no text: base64 wherever it stands, pictures by their pixels, and text in documents."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_worker.policy.attachments import (
    ATTACHMENT_TOKENS,
    is_encoded,
    picture_size,
    picture_tokens,
    rule_of,
)
from ratelimit_worker.policy.estimate import (
    DEFAULT_OUTPUT_TOKENS,
    MOST_TOKENS,
    embeds,
    size_of,
    text_tokens,
    texts_of,
)
from ratelimit_worker.providers import anthropic, openai


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


FILM = b64(random.Random(3).randbytes(1_500_000))
LINED = "\n".join(FILM[at : at + 76] for at in range(0, len(FILM), 76))
WORDS = "word " * 80_000


def png(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + zlib.crc32(head).to_bytes(4, "big")


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x00" * 8


def jpeg(width: int, height: int) -> bytes:
    thumbnail = b"\xff\xe1" + struct.pack(">H", 20_002) + b"\x00" * 20_000
    return b"\xff\xd8" + thumbnail + b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\x00" * 9


def webp(width: int, height: int, kind: bytes) -> bytes:
    body = {
        b"VP8 ": b"\x00" * 10 + struct.pack("<HH", width, height),
        b"VP8L": b"\x00" * 4 + b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\x00" * 9,
        b"VP8X": b"\x00" * 8 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
    }[kind]
    return b"RIFF\x00\x00\x00\x00WEBP" + kind + body + b"\x00" * 20


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{FILM}"}},
        {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{FILM}"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{FILM}"}},
        {"type": "document_url", "document_url": f"data:application/pdf;base64,{FILM}"},
        {"type": "input_audio", "input_audio": {"data": FILM, "format": "wav"}},
        {"type": "input_video", "data": FILM},
        {"type": "input_file", "file_data": f"data:application/pdf;base64,{FILM}", "filename": "x.pdf"},
        {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": FILM}},
        {"type": "image_generation_call", "result": FILM},
        {"type": "reasoning", "encrypted_content": FILM},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": FILM}},
        {"role": "user", "content": "hi", "images": [FILM]},
        {"role": "tool", "content": f"here it is: ![x](data:image/png;base64,{FILM}) done"},
        {"role": "tool", "content": f"data:image/png;base64,{FILM}"},
        {"inline_data": {"mime_type": "video/mp4", "data": FILM}},
        {"inlineData": {"mimeType": "video/mp4", "data": FILM}},
        {"anything": {"of": [{"a": {"kind": FILM}}]}},
        {"wrapped": "\n".join(FILM[at : at + 76] for at in range(0, len(FILM), 76))},
        {"role": "tool", "content": json.dumps({"screenshot": FILM, "title": "x"})},
        {"role": "tool", "content": json.dumps([{"type": "image", "data": LINED}])},
        {"type": "text", "text": f"Here is the file:\n{FILM}\nPlease say what it is."},
        {"type": "text", "text": f"Here is the file:\r\n{LINED}\r\nPlease say what it is."},
        {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
        {"type": "file", "file": {"file_id": "file-123"}},
    ],
    ids=lambda part: json.dumps(part)[:60],
)
def test_data_is_no_text(part: dict[str, Any]) -> None:
    """About 1,000 tokens a piece, whatever it is part of and whichever way the call is made."""
    for tokens in (
        openai.size({"messages": [part]}).input_tokens,
        openai.size({"input": [part]}).input_tokens,
        anthropic.size({"messages": [{"role": "user", "content": [part]}]}).input_tokens,
        size_of(([part],), {}).input_tokens,
    ):
        assert ATTACHMENT_TOKENS <= tokens <= ATTACHMENT_TOKENS + 40
    assert texts_of([part], 10**7) is None, "a tokenizer is not asked either"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": WORDS}, "title": "T"},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": WORDS}]}},
        {"type": "document", "document": {"id": "1", "data": {"text": WORDS}}},
        {"type": "text", "text": WORDS},
        {"type": "input_text", "text": WORDS},
        {"type": "input_file", "file_data": f"data:text/plain;base64,{b64(WORDS.encode())}"},
        {"inline_data": {"mime_type": "text/plain", "data": b64(WORDS.encode())}},
    ],
    ids=lambda part: json.dumps(part)[:60],
)
def test_text_in_a_document_counts(part: dict[str, Any]) -> None:
    """By its bytes, encoded or not."""
    for tokens in (
        anthropic.size({"messages": [{"role": "user", "content": [part]}]}).input_tokens,
        openai.size({"input": [part]}).input_tokens,
    ):
        assert tokens == pytest.approx(100_000, rel=0.01)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "word " * 20_000,
        "def f(x):\n    return x + 1\n" * 5_000,
        "这是一个没有空格的长文本" * 5_000,
        json.dumps({"key": [1, 2, 3]}, separators=(",", ":")) * 5_000,
        "https://example.com/a/b?c=d&" * 5_000,
        "ACGT" * 30_000,
        "Aa1" + "x" * 100_000,
        "getUserById2 " * 5_000,
        " ".join(f"{number:0128x}" for number in range(2_000)),
        "https://example.com/" + "/".join(f"Page{number}.html" for number in range(9_000)),
        "A1b2C3/" * 500 + " and " + "A1b2C3/" * 500,
        "",
    ],
)
def test_text_is_text(text: str) -> None:
    """However odd: a genome, minified code, one letter, a script without spaces."""
    assert not is_encoded(text)
    assert text_tokens(text) == -(-len(text.encode()) // 4)


@given(st.binary(min_size=800, max_size=5_000), st.integers(0, 3))
def test_random_bytes_are_data(raw: bytes, kind: int) -> None:
    """What is random enough to be a file; and nothing ever costs more than it would as text."""
    text = [b64(raw), base64.urlsafe_b64encode(raw).decode(), raw.hex(), raw.decode("latin-1")][kind]
    assert 0 <= text_tokens(text) <= -(-len(text.encode()) // 4) + 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from([FILM[:2_000], FILM[:2_000] + "="]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["type", "source", "data", "url", "image_url", "inline_data", "signature", "detail"])
                | st.text(max_size=5),
                inner | st.sampled_from(["image_url", "document", "text", "base64"]),
                max_size=5,
            )
        ),
        max_leaves=20,
    )
)
def test_nothing_raises(value: Any) -> None:
    """Arguments are strangers' values."""
    assert 0 <= size_of((value,), {}).input_tokens <= MOST_TOKENS
    assert 0 <= anthropic.size({"messages": value}).input_tokens <= MOST_TOKENS
    assert openai.size({"input": value, "model": value}).input_tokens <= MOST_TOKENS
    assert anthropic.size({"messages": "x", "thinking": value, "max_tokens": value}).input_tokens == 1
    texts_of([value], 1_000)


@pytest.mark.parametrize(
    "raw",
    [png(800, 600), gif(800, 600), jpeg(800, 600), *(webp(800, 600, kind) for kind in (b"VP8 ", b"VP8L", b"VP8X"))],
)
def test_the_size_of_a_picture(raw: bytes) -> None:
    """In the formats that providers take, in either alphabet of base64; a cut one says nothing."""
    assert picture_size(b64(raw)) == (800, 600)
    assert picture_size(base64.urlsafe_b64encode(raw).decode()) == (800, 600)
    assert picture_size(b64(raw[:8])) is None
    assert picture_size("!" * 100) is None


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        ("openai", (512, 512), 255),
        ("openai", (1024, 1024), 765),  # the example of its documentation
        ("openai", (2048, 4096), 1105),  # and the next one
        ("anthropic", (200, 200), 53),
        ("anthropic", (1000, 1000), 1333),
        ("anthropic", (4000, 2000), 1639),
        ("google", (300, 300), 258),
        ("google", (1000, 500), 516),
        ("", (4000, 4000), ATTACHMENT_TOKENS),
        ("openai", (0, 0), 255),
    ],
)
def test_pictures_by_the_rule_of_a_provider(rule: str, size: tuple[int, int], expected: int) -> None:
    """As their documentation counts them."""
    assert picture_tokens(*size, rule) == expected


def test_a_prompt_with_a_picture() -> None:
    """The model says whose rule; `detail: low` is one tile."""
    url = f"data:image/png;base64,{b64(png(1024, 1024))}"

    def asked(**more: Any) -> dict[str, Any]:
        return {"messages": [{"content": [{"type": "image_url", "image_url": {"url": url, **more}}]}]}

    assert openai.size({**asked(), "model": "gpt-4o"}).input_tokens == 765
    assert openai.size({**asked(detail="low"), "model": "gpt-4o"}).input_tokens == 85
    assert openai.size({**asked(), "model": "google/gemini-2.5-flash"}).input_tokens == 4 * 258
    assert openai.size({**asked(), "model": "my-own"}).input_tokens == ATTACHMENT_TOKENS
    source = {"type": "base64", "media_type": "image/png", "data": b64(png(1000, 1000))}
    assert anthropic.size({"messages": [{"content": [{"type": "image", "source": source}]}]}).input_tokens == 1333


def test_whose_rule() -> None:
    """By the name of a model, behind a gateway's prefix too."""
    known = {"gpt-4o": "openai", "o3-mini": "openai", "claude-sonnet-5": "anthropic", "gemini-2.5-pro": "google"}
    known |= {"anthropic/claude-3": "anthropic", "us.anthropic.claude-3.5": "anthropic", "llama-3": "", "": ""}
    assert {name: rule_of(name) for name in known} == known
    assert rule_of(None) == rule_of(7) == ""


@pytest.mark.parametrize("name", ["inputs", "input", "prompt", "documents", "texts", "query"])
def test_every_name_of_a_prompt(name: str) -> None:
    """Voyage, Cohere and rerankers too."""
    assert openai.size({"model": "m", name: ["word " * 800]}).input_tokens == 1_000


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"inputs": [{"content": [{"type": "text", "text": "x"}]}]}, True),
        ({"texts": ["x"]}, True),
        ({"query": "x", "documents": ["x"]}, True),
        ({"documents": ["x"], "messages": []}, False),
        ({"query": "x"}, False),
    ],
)
def test_what_has_no_output(body: dict[str, Any], expected: bool) -> None:
    """Embeddings and rankings of other shapes."""
    assert embeds(body) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_tokens": 5000, "thinking": {"type": "enabled", "budget_tokens": 2000}}, 5000),
        ({"max_tokens": 1000, "thinking": {"type": "enabled", "budget_tokens": 8000}}, 8000),
        ({"reasoning": {"max_tokens": 2000}}, 2000 + DEFAULT_OUTPUT_TOKENS),
        ({"reasoning": {"effort": "high"}}, None),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": 500}}}, 500 + DEFAULT_OUTPUT_TOKENS),
        ({"config": {"thinking_config": {"thinking_budget": 500}, "max_output_tokens": 900}}, 900),
        ({"thinking": {"budget_tokens": -1}}, None),
        ({"thinking": {"budget_tokens": 0}}, None),
    ],
)
def test_what_a_model_may_think(body: dict[str, Any], expected: int | None) -> None:
    """A budget for thoughts is output that may come, above the maximum or within it."""
    assert size_of((), body).output_tokens == expected
