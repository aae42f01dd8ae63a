"""Detect fields that set the destination or the credentials of a call. Only the configuration may set those."""

from __future__ import annotations

from typing import Any

# Fields from which other gateways and servers read a call's destination, credentials or a predefined answer.
FORBIDDEN_FIELDS = frozenset(
    {
        *(
            "api_base",
            "base_url",
            "api_key",
            "api_type",
            "custom_llm_provider",
            "litellm_params",
            "litellm_credential_name",
        ),
        *("user_config", "model_list", "router_settings_override", "fallbacks", "context_window_fallbacks"),
        *("mock_response", "mock_tool_calls", "mock_timeout", "mock_testing_fallbacks"),
        *("extra_headers", "headers", "azure_ad_token", "vertex_credentials"),
        *("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_bedrock_runtime_endpoint"),
        *("callbacks", "success_callback", "failure_callback", "langfuse_host", "langsmith_base_url"),
        # vLLM and SGLang fetch a prompt's KV cache from the server that these fields name.
        *("kv_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room"),
    }
)
_HOLDERS = (dict, list)
# The caller's content and schemas: a field name in them has no effect.
CALLER_CONTENT_FIELDS = frozenset(
    {"messages", "prompt", "input", "suffix", "prediction", "tools", "functions", "tool_choice", "response_format",
     "logit_bias", "metadata", "structured_outputs", "guided_json", "json_schema", "grammar"}
)  # fmt: skip


def forbidden_field(body: dict[str, Any]) -> str | None:
    """Return the path of the first field, at any depth, that an engine could treat as a destination or credential."""
    for name, value in body.items():
        if name in FORBIDDEN_FIELDS and value is not None:
            return name
        if isinstance(value, _HOLDERS) and name not in CALLER_CONTENT_FIELDS and (path := _within(value)) is not None:
            return f"{name}{path}"
    return None


def _within(value: Any) -> str | None:
    parts: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in parts:
        if name in FORBIDDEN_FIELDS and part is not None:
            return f".{name}"
        if isinstance(part, _HOLDERS) and name not in CALLER_CONTENT_FIELDS and (path := _within(part)) is not None:
            return f".{name}{path}" if isinstance(value, dict) else f"[{name}]{path}"
    return None
