"""One request by each client, as its user would write it, with the client's own retries off.

`OFF` says how a client's retries are switched off, as docs/failures.md tells it; without it, as the client comes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import cache
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would go to the network for a price list
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import aiohttp
import anthropic
import boto3
import cohere
import groq
import httpx
import httpx2
import litellm
import openai
import requests
import urllib3
from botocore.config import Config
from google import genai
from google.genai.types import HttpOptions, HttpRetryOptions
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from mistralai.client import Mistral
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

KEY = "sk-canary-0123456789"
PROMPT = "the canary sings at midnight"
ASKED: Any = [{"role": "user", "content": PROMPT}]
#: Seconds until a client gives an answer up; the tests shorten it where none comes.
PATIENCE_S = 10.0

#: A client's function: base URL, and the arguments that switch its retries off (or none).
Ask = Callable[..., Any]

litellm.suppress_debug_info = True


def openai_chat(url: str, **off: Any) -> Any:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=PATIENCE_S, **off)
    return client.chat.completions.create(model="gpt-4o", messages=ASKED)


def openai_async(url: str, **off: Any) -> Any:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=PATIENCE_S, **off) as client:
            return await client.chat.completions.create(model="gpt-4o", messages=ASKED)

    return asyncio.run(ask())


def openai_stream(url: str, **off: Any) -> Any:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=PATIENCE_S, **off)
    return list(client.chat.completions.create(model="gpt-4o", messages=ASKED, stream=True))


def openai_responses(url: str, **off: Any) -> Any:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=PATIENCE_S, **off)
    return client.responses.create(model="gpt-4o", input=PROMPT)


def groq_chat(url: str, **off: Any) -> Any:
    client = groq.Groq(base_url=url, api_key=KEY, timeout=PATIENCE_S, **off)
    return client.chat.completions.create(model="llama-3.3-70b-versatile", messages=ASKED)


def anthropic_message(url: str, **off: Any) -> Any:
    client = anthropic.Anthropic(base_url=url, api_key=KEY, timeout=PATIENCE_S, **off)
    return client.messages.create(model="claude-sonnet-5", max_tokens=16, messages=ASKED)


def anthropic_stream(url: str, **off: Any) -> Any:
    client = anthropic.Anthropic(base_url=url, api_key=KEY, timeout=PATIENCE_S, **off)
    with client.messages.stream(model="claude-sonnet-5", max_tokens=16, messages=ASKED) as stream:
        return stream.get_final_message()


def google_content(url: str, **off: Any) -> Any:
    options = HttpOptions(base_url=url, timeout=int(PATIENCE_S * 1_000), **off)
    client = genai.Client(api_key=KEY, http_options=options)
    return client.models.generate_content(model="gemini-2.5-flash", contents=PROMPT)


def google_stream(url: str, **off: Any) -> Any:
    options = HttpOptions(base_url=url, timeout=int(PATIENCE_S * 1_000), **off)
    client = genai.Client(api_key=KEY, http_options=options)
    return list(client.models.generate_content_stream(model="gemini-2.5-flash", contents=PROMPT))


def mistral_chat(url: str, **off: Any) -> Any:
    client = Mistral(server_url=url, api_key=KEY, timeout_ms=int(PATIENCE_S * 1_000), **off)
    return client.chat.complete(model="mistral-small-latest", messages=ASKED)


def cohere_chat(url: str, **off: Any) -> Any:
    client = cohere.ClientV2(base_url=url, api_key=KEY, timeout=PATIENCE_S, **off)
    return client.chat(model="command-a-03-2025", messages=ASKED)


def bedrock_converse(url: str, **off: Any) -> Any:
    config = Config(connect_timeout=PATIENCE_S, read_timeout=PATIENCE_S, **off)
    client = _aws().client("bedrock-runtime", endpoint_url=url, config=config)
    return client.converse(modelId="anthropic.claude", messages=[{"role": "user", "content": [{"text": PROMPT}]}])


@cache
def _aws() -> Any:
    return boto3.session.Session("AKIACANARY", KEY, region_name="us-east-1")


def litellm_openai(url: str, **off: Any) -> Any:
    return litellm.completion("openai/gpt-4o", ASKED, api_base=f"{url}/v1", api_key=KEY, timeout=PATIENCE_S, **off)


def litellm_anthropic(url: str, **off: Any) -> Any:
    name = "anthropic/claude-sonnet-5"
    return litellm.completion(name, ASKED, api_base=url, api_key=KEY, timeout=PATIENCE_S, max_tokens=16, **off)


def langchain_openai_chat(url: str, **off: Any) -> Any:
    chat: Any = ChatOpenAI(model="gpt-4o", base_url=f"{url}/v1", api_key=KEY, timeout=PATIENCE_S, **off)
    return chat.invoke(PROMPT)


def langchain_anthropic_chat(url: str, **off: Any) -> Any:
    chat: Any = ChatAnthropic(
        model="claude-sonnet-5", base_url=url, api_key=KEY, timeout=PATIENCE_S, max_tokens=16, **off
    )
    return chat.invoke(PROMPT)


def _pydantic_openai(url: str, **off: Any) -> Any:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=PATIENCE_S, **off)
    return OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client))


def _pydantic_anthropic(url: str, **off: Any) -> Any:
    client = anthropic.AsyncAnthropic(base_url=url, api_key=KEY, timeout=PATIENCE_S, **off)
    return AnthropicModel("claude-sonnet-5", provider=AnthropicProvider(anthropic_client=client))


def pydantic_openai(url: str, **off: Any) -> Any:
    return Agent(_pydantic_openai(url, **off)).run_sync(PROMPT)


def pydantic_anthropic(url: str, **off: Any) -> Any:
    return Agent(_pydantic_anthropic(url, **off)).run_sync(PROMPT)


def pydantic_fallback(url: str, **off: Any) -> Any:
    return Agent(FallbackModel(_pydantic_openai(url, **off), _pydantic_openai(url, **off))).run_sync(PROMPT)


def httpx_post(url: str) -> Any:
    return httpx.post(url, json=ASKED, timeout=PATIENCE_S).raise_for_status().json()


def httpx2_post(url: str) -> Any:
    return httpx2.post(url, json=ASKED, timeout=PATIENCE_S).raise_for_status().json()


def requests_post(url: str) -> Any:
    answer = requests.post(url, json=ASKED, timeout=PATIENCE_S)
    answer.raise_for_status()
    return answer.json()


def urllib3_post(url: str, **off: Any) -> Any:
    return urllib3.PoolManager().request("POST", url, json=ASKED, timeout=PATIENCE_S, **off).json()


def urllib_open(url: str) -> Any:
    import json
    import urllib.request

    with urllib.request.urlopen(url, data=json.dumps(ASKED).encode(), timeout=PATIENCE_S) as answer:
        return json.load(answer)


def aiohttp_post(url: str) -> Any:
    async def ask() -> Any:
        patience = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with (
            aiohttp.ClientSession(timeout=patience, raise_for_status=True) as session,
            session.post(url, json=ASKED) as answer,
        ):
            return await answer.json()

    return asyncio.run(ask())


#: How each client's own retries are switched off. HTTP clients that have none are not here.
OFF: dict[Ask, dict[str, Any]] = {
    openai_chat: {"max_retries": 0},
    openai_async: {"max_retries": 0},
    openai_stream: {"max_retries": 0},
    openai_responses: {"max_retries": 0},
    groq_chat: {"max_retries": 0},
    anthropic_message: {"max_retries": 0},
    anthropic_stream: {"max_retries": 0},
    cohere_chat: {"max_retries": 0},
    litellm_openai: {"max_retries": 0},
    litellm_anthropic: {"max_retries": 0},
    langchain_openai_chat: {"max_retries": 0},
    langchain_anthropic_chat: {"max_retries": 0},
    pydantic_openai: {"max_retries": 0},
    pydantic_anthropic: {"max_retries": 0},
    pydantic_fallback: {"max_retries": 0},
    google_content: {"retry_options": HttpRetryOptions(attempts=1)},
    google_stream: {"retry_options": HttpRetryOptions(attempts=1)},
    mistral_chat: {"retry_config": None},
    bedrock_converse: {"retries": {"total_max_attempts": 1}},
    urllib3_post: {"retries": False},
}
