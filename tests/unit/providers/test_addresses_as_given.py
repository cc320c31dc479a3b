"""Base URLs and keys as people write them down: where a request goes, and as whom."""

from __future__ import annotations

import pytest

from ratelimit_worker.cli.run.address import Addresses
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.providers import google, openai

LINE = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        # A version of its own stands in for the one that a Batch line names
        ("https://g.example/v1beta/openai/", "https://g.example/v1beta/openai/chat/completions"),
        ("https://ark.example/api/v3", "https://ark.example/api/v3/chat/completions"),
        ("https://z.example/api/paas/v4/", "https://z.example/api/paas/v4/chat/completions"),
        ("https://r.example/openai/deployments/d", "https://r.example/openai/deployments/d/chat/completions"),
        (
            "https://c.example/client/v4/accounts/a/ai/v1",
            "https://c.example/client/v4/accounts/a/ai/v1/chat/completions",
        ),
        ("https://x.example/V1", "https://x.example/V1/chat/completions"),
        # ... and where there is none, the line's stays
        ("https://x.example", "https://x.example/v1/chat/completions"),
        ("https://x.example/openai", "https://x.example/openai/v1/chat/completions"),
        ("https://x.example/vllm", "https://x.example/vllm/v1/chat/completions"),
        # Docker's env files keep the quotes
        ('"https://x.example/v1"', "https://x.example/v1/chat/completions"),
        (" 'https://x.example/v1/' \n", "https://x.example/v1/chat/completions"),
    ],
)
def test_a_line_is_sent_below_the_base_url(base_url: str, url: str) -> None:
    """As any SDK would send it that was given this base URL; a line may say the whole URL, too."""
    environment = {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "sk-x"}
    assert openai.endpoint(environment).url(LINE) == url
    assert openai.endpoint(environment).url("/chat/completions").endswith("/chat/completions")
    told = Addresses(environment).below(url)
    assert told is not None
    assert openai.endpoint(environment).url(told) == url


def test_a_request_keeps_the_version_that_it_was_written_for() -> None:
    """Google's paths name one of several."""
    to = google.endpoint({"GOOGLE_GEMINI_BASE_URL": "https://g.example/v1", "GOOGLE_API_KEY": "k"})
    assert to.url("/v1beta/models/m:generateContent") == "https://g.example/v1beta/models/m:generateContent"
    assert to.url("/models/m:generateContent") == "https://g.example/v1/models/m:generateContent"


@pytest.mark.parametrize(
    "base_url", ["https://x.example:99999/v1", "https://x.example\\v1", "https:/x.example/v1", "None"]
)
def test_what_is_no_address(base_url: str) -> None:
    """It is said when a run starts, and is no call's failure."""
    with pytest.raises(ConfigurationError, match="no plain http"):
        openai.endpoint({"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "sk-x"})


@pytest.mark.parametrize("key", ["sk-x", " sk-x\n", "'sk-x'", '"sk-x"', "Bearer sk-x", "'Bearer sk-x'", "bearer  sk-x"])
def test_a_key_as_it_was_pasted(key: str) -> None:
    """With its quotes, or with the header's own word before it."""
    assert openai.endpoint({"OPENAI_API_KEY": key}).headers["authorization"] == "Bearer sk-x"


@pytest.mark.parametrize("key", ["${OPENAI_API_KEY}", "$OPENAI_API_KEY", "<your-api-key>", "'<key>'"])
def test_the_place_of_a_key_is_none(key: str) -> None:
    """A template that nobody filled in: no request has to find that out."""
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY holds the place of a key"):
        openai.endpoint({"OPENAI_API_KEY": key})


def test_what_a_chat_of_cohere_costs() -> None:
    """Its one message is text, and it has an answer, documents or not; the schema of an answer counts as well."""
    words = "word " * 2_000
    assert openai.size({"model": "command", "message": words, "documents": [{"a": "b"}]}) == Size(
        2501, None, 1, "command"
    )
    schema = {"type": "json_schema", "json_schema": {"schema": {"description": words}}}
    assert openai.size({"messages": [], "response_format": schema}).input_tokens > 2_500
