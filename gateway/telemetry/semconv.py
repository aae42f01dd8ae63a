"""The names of all span attributes. The conventions still change, so the names are only here.

The HTTP names are stable. The generative AI names follow OpenTelemetry's GenAI conventions of 2026, which are "in
development". The `gkt.*` names are the gateway's own and stable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ERROR_TYPE = "error.type"
HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
URL_SCHEME = "url.scheme"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
REQUEST_CHOICES = "gen_ai.request.choice.count"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
RESPONSE_FIRST_CHUNK_S = "gen_ai.response.time_to_first_chunk"
USAGE_INPUT = "gen_ai.usage.input_tokens"
USAGE_OUTPUT = "gen_ai.usage.output_tokens"
USAGE_CACHED = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_WRITE = "gen_ai.usage.cache_creation.input_tokens"

REQUEST_ID = "gkt.request.id"
TENANT = "gkt.tenant"
KEY = "gkt.key"
MODE = "gkt.mode"
UNGUIDED = "gkt.unguided"
SHARED = "gkt.shared"
GUIDANCE_TOKENS = "gkt.guidance.tokens"
BATCH_ID = "gkt.batch.id"
BATCH_SIZE = "gkt.batch.size"
COST_USD = "gkt.cost_usd"
BASELINE_USD = "gkt.baseline_usd"
SAVINGS_USD = "gkt.savings_usd"
SAVINGS_CLASS = "gkt.savings_class"
FAILED_ATTEMPTS = "gkt.failed_attempts"
SHADOW_OF = "gkt.shadow_of"
ENGINE = "gkt.engine"
CALL = "gkt.call"
ENDED_EARLY = "gkt.ended_early"

CHAT, TEXT, EMBEDDINGS = "chat", "text_completion", "embeddings"
"""Values of `gen_ai.operation.name`."""

GATEWAY = "gkt"
"""The provider name of the gateway for its callers."""

_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "codestral": "mistral_ai",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
_HOSTS = {
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.openai.com": "openai",
}
# Finish reasons of OpenAI and of other engines.
_FINISHES = frozenset(
    {"stop", "length", "tool_calls", "content_filter", "function_call", "eos_token", "stop_sequence", "abort", "error"}
)


def finishes(reasons: Iterable[str | None]) -> list[str]:
    """Return the known finish reasons. Unknown ones are omitted, since an engine may write any text."""
    return [reason for reason in reasons if reason in _FINISHES and reason is not None]


def provider_of(protocol: str, model: str, host: str | None) -> str:
    """Return the provider of a model, with the name from the conventions where they have one.

    A self-hosted OpenAI-compatible server counts as `openai`: the conventions name the API format.
    """
    if protocol == "litellm":
        name = model.partition("/")[0]
        return _PROVIDERS.get(name, name)
    if protocol == "openai":
        return _HOSTS.get(host or "", "openai")
    return protocol
