"""Whose servers answer at a host? The same model may have another price at another provider. Pure."""

from __future__ import annotations

from functools import lru_cache

from ratelimit_worker.policy.pattern import lazy

#: Ends of host names, by provider. A name that is not here (a gateway, a server of one's own) says nothing.
_ENDS = {
    "openai": ("api.openai.com",),
    "anthropic": ("api.anthropic.com",),
    "google": ("googleapis.com",),
    "azure": (
        *("openai.azure.com", "azure-api.net", "cognitiveservices.azure.com", "services.ai.azure.com"),
        "models.ai.azure.com",
    ),
    "mistral": ("api.mistral.ai", "codestral.mistral.ai"),
    "groq": ("api.groq.com",),
    "cohere": ("api.cohere.com", "api.cohere.ai"),
    "openrouter": ("openrouter.ai",),
    "deepseek": ("api.deepseek.com",),
    "xai": ("api.x.ai",),
    "perplexity": ("api.perplexity.ai",),
    "together": ("api.together.xyz", "api.together.ai"),
    "fireworks": ("api.fireworks.ai",),
    "cerebras": ("api.cerebras.ai",),
    "sambanova": ("api.sambanova.ai",),
    "deepinfra": ("api.deepinfra.com",),
    "nvidia": ("integrate.api.nvidia.com",),
    "databricks": ("cloud.databricks.com", "azuredatabricks.net", "gcp.databricks.com"),
    "cloudflare": ("api.cloudflare.com",),
    "github-copilot": ("api.githubcopilot.com",),
    "baseten": ("inference.baseten.co",),
    "novita": ("api.novita.ai",),
    "moonshotai": ("api.moonshot.ai", "api.moonshot.cn"),
    "minimax": ("api.minimax.io", "api.minimax.com", "api.minimaxi.com"),
    "zai": ("api.z.ai",),
    "zhipuai": ("open.bigmodel.cn",),
    "voyageai": ("api.voyageai.com",),
    "ovhcloud": ("endpoints.kepler.ai.cloud.ovh.net",),
}
_BY_END = {end: provider for provider, ends in _ENDS.items() for end in ends}
_BEDROCK = lazy(r"bedrock-(?:runtime|mantle)(?:-fips)?\.[a-z0-9-]+\.(?:amazonaws\.com(?:\.cn)?|api\.aws)")
_HUGGING_FACE = "router.huggingface.co"  #: its path begins with whoever runs the model, and sets the price
_BEHIND = lazy(r"/([a-z0-9-]{1,40})/(?:v\d|models/)")


@lru_cache(maxsize=1024)
def provider_at(host: str, path: str = "") -> str | None:
    """The provider that answers requests to a host, and bills them; None: the host is nobody's that is known.

    Args:
        host: Without a port.
        path: Of the request.
    """
    name = host.lower().rstrip(".")
    if name == _HUGGING_FACE:
        behind = _BEHIND.match(path)
        return f"huggingface_{behind[1]}" if behind else "huggingface"
    if _BEDROCK.fullmatch(name):
        return "bedrock"
    labels = name.split(".")
    ends = (".".join(labels[start:]) for start in range(len(labels) - 1))
    return next((_BY_END[end] for end in ends if end in _BY_END), None)
