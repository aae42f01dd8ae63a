"""Every attribute name that spans carry, in one list: they still change, and then here alone.

Those of HTTP are stable. Those of generative AI are "in development": here they are as OpenTelemetry's GenAI
conventions have them since they moved to a repository of their own in 2026. Libraries that still know older ones
(`gen_ai.system`, `gen_ai.usage.prompt_tokens`, ...) write these when OTEL_SEMCONV_STABILITY_OPT_IN says
`gen_ai_latest_experimental`. This gateway never wrote those, so it asks for no opt-in: the newest names are the only
ones. `gkt.*` are the gateway's own, and stay as they are.
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
"""What `gen_ai.operation.name` may say here."""

GATEWAY = "gkt"
"""The gateway as a provider, towards its callers."""

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
# As OpenAI has them, and engines of their own.
_FINISHES = frozenset(
    {"stop", "length", "tool_calls", "content_filter", "function_call", "eos_token", "stop_sequence", "abort", "error"}
)


def finishes(reasons: Iterable[str | None]) -> list[str]:
    """Why answers ended. What is no known word is left out: it could be anything that an engine wrote."""
    return [reason for reason in reasons if reason in _FINISHES and reason is not None]


def provider_of(protocol: str, model: str, host: str | None) -> str:
    """Who serves a model, in the words of the conventions where they have one.

    An OpenAI-compatible server of one's own counts as `openai`: the conventions want the format that is spoken.
    """
    if protocol == "litellm":
        name = model.partition("/")[0]
        return _PROVIDERS.get(name, name)
    if protocol == "openai":
        return _HOSTS.get(host or "", "openai")
    return protocol
