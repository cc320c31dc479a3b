"""Whose servers answer at a host, and what the same model costs there."""

from __future__ import annotations

import pytest
from genai_prices.data_snapshot import get_snapshot

from ratelimit_worker.calls import Sighting, Usage
from ratelimit_worker.policy.hosts import provider_at
from ratelimit_worker.policy.price import PriceTable, money_of, own_cards
from ratelimit_worker.providers.glimpse import Reading
from ratelimit_worker.providers.price_list import read_list

CHAT = "/v1/chat/completions"
AT_S = 1_796_040_000.0
#: What a request is sent to, and whose the published list says that is.
KNOWN = [
    ("api.openai.com", CHAT, "openai", "openai"),
    ("API.OpenAI.com.", CHAT, "openai", None),
    ("eu.api.openai.com", CHAT, "openai", None),
    ("api.anthropic.com", "/v1/messages", "anthropic", "anthropic"),
    ("generativelanguage.googleapis.com", "/v1beta/models/g:generateContent", "google", "google"),
    ("us-central1-aiplatform.googleapis.com", "/v1/projects/p:rawPredict", "google", "google"),
    ("my-team.openai.azure.com", "/openai/deployments/d/chat/completions", "azure", "azure"),
    ("my-team.services.ai.azure.com", "/openai/v1/chat/completions", "azure", "azure"),
    ("bedrock-runtime.eu-central-1.amazonaws.com", "/openai/v1/chat/completions", "bedrock", "aws"),
    ("bedrock-runtime-fips.us-east-1.amazonaws.com", "/model/m/converse", "bedrock", None),
    ("api.groq.com", "/openai/v1/chat/completions", "groq", "groq"),
    ("openrouter.ai", "/api/v1/chat/completions", "openrouter", "openrouter"),
    ("api.mistral.ai", CHAT, "mistral", "mistral"),
    ("api.cohere.com", "/v2/chat", "cohere", "cohere"),
    ("api.deepseek.com", CHAT, "deepseek", "deepseek"),
    ("api.x.ai", CHAT, "xai", "x-ai"),
    ("api.together.xyz", CHAT, "together", "together"),
    ("api.fireworks.ai", "/inference/v1/chat/completions", "fireworks", "fireworks"),
    ("api.perplexity.ai", "/chat/completions", "perplexity", "perplexity"),
    ("api.cerebras.ai", CHAT, "cerebras", "cerebras"),
    ("w.cloud.databricks.com", "/serving-endpoints/chat/completions", "databricks", "databricks"),
    ("router.huggingface.co", "/groq/v1/chat/completions", "huggingface_groq", "huggingface_groq"),
    ("router.huggingface.co", CHAT, "huggingface", None),
]


@pytest.mark.parametrize(("host", "path", "provider", "listed"), KNOWN)
def test_a_host_is_its_providers(host: str, path: str, provider: str, listed: str | None) -> None:
    """As in the published list, where that knows the address; and a watched client's request is told as its."""
    assert provider_at(host, path) == provider
    if listed is not None:
        assert get_snapshot().find_provider(None, None, f"https://{host}{path}").id == listed
    seen = Sighting()
    Reading(seen, host, path, b'{"model": "m"}')
    assert seen.provider == provider


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "::1", "llm.example.com", "litellm", "", "api.openai.com.evil.example", "xapi.x.ai"],
)
def test_a_gateway_or_a_server_of_ones_own_is_nobodys(host: str) -> None:
    """Its requests keep the name of the API that they speak."""
    assert provider_at(host, CHAT) is None


def test_the_same_model_costs_what_its_host_asks() -> None:
    """By the published list, and by a table of one's own that names a provider."""
    hosts = ("api.groq.com", "openrouter.ai", "bedrock-runtime.us-west-2.amazonaws.com", "api.openai.com")
    models = ("openai/gpt-oss-120b", "openai/gpt-oss-120b", "openai.gpt-oss-120b-1:0", "gpt-4o")
    pairs = [(provider_at(host), model) for host, model in zip(hosts, models, strict=True)]
    usage = Usage(1_000_000, 1_000_000)
    listed = [money_of(usage, card, AT_S) for card in read_list([*pairs, ("azure", "gpt-4o")], AT_S)]
    assert all(listed), listed
    assert len({money.nanousd for money in listed[:3] if money}) > 1
    assert [card.standard for card in read_list([("openai", "llama-3.3-70b-versatile")], AT_S)] == [()]

    table = PriceTable(own_cards({"gpt-4o": {"input": 2}, "azure:gpt-4o": {"input": 3}, "azure:*": {"input": 4}}))
    asked = [
        (provider_at(host), model) for host, model in (("t.openai.azure.com", "gpt-4o"), ("api.openai.com", "gpt-4o"))
    ]
    paid = [money_of(usage, card, AT_S) for one in asked if (card := table.card(*one)) is not None]
    assert [money.nanousd for money in paid if money] == [3_000_000_000, 2_000_000_000]
