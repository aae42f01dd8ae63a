"""Reject fields that set the destination or the credentials of a call, and other names of the fields of its structs.

Only the configuration may set a destination. The gateway reserves and counts by the fields of its structs. A field that
it forwards without reading must not change that. docs/reference/request-fields.md shows the table; a test compares.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from gateway.errors import InvalidRequest
from gateway.protocol.other_endpoint import MESSAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

# Fields from which other gateways and servers read a call's destination, credentials or a predefined answer.
FORBIDDEN_FIELDS = frozenset(
    {
        *("api_base", "base_url", "api_key", "api_type", "custom_llm_provider"),
        *("litellm_params", "litellm_credential_name"),
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
ALIASES = {
    # llama.cpp; Transformers; TensorRT-LLM.
    "n": ("n_cmpl", "num_return_sequences", "num_beams", "beam_width"),
    # llama.cpp; Ollama; TGI and Transformers; SGLang, LMDeploy and KoboldCpp; Anthropic.
    "max_tokens": (
        "n_predict", "num_predict", "max_new_tokens", "max_output_tokens", "max_length", "max_tokens_to_sample",
        "generation_config",
    ),
}  # fmt: skip
"""The names that some engines have for a field, by that field.

`generation_config` is an object or text with several.
"""
HOLDERS = ("extra_body", "nvext", "options", "parameters", "sampling_params")
"""Objects whose fields some engines or clients treat as fields of the body."""
_NOT_HELD = ("model", "n", "best_of", "max_tokens", "max_completion_tokens")
REFUSED = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
"""The field to send, by the alias."""
SYSTEM = "system"
"""The system prompt of Anthropic's API. Chats are rejected with it, as by OpenAI: engines would ignore it."""
REFUSED_IN_HOLDER = {**REFUSED, **{name: name for name in _NOT_HELD}}
"""The field to send, by its name in a holder. The gateway reads nothing there."""


def check_names(body: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    """Reject other names of the `fields` that the gateway reads on this route.

    Some engines ignore the case of names, so a name in another case is another name. An alias whose value is null
    counts as absent. The InvalidRequest has the rejected field as `param`, and names its replacement.
    """
    plain, meanings = _meanings(fields)
    if plain.issuperset(body):
        return
    for name, value in body.items():
        if name in fields or (value is None and (name in REFUSED or name == SYSTEM)):
            continue
        if replacement := meanings.get(name.casefold()):
            raise _refusal(name, replacement)
    if "max_tokens" not in fields:
        return  # the route generates no tokens
    for holder in HOLDERS:
        if isinstance(held := body.get(holder), dict):
            for name, value in held.items():
                if value is not None and (replacement := REFUSED_IN_HOLDER.get(name.casefold())):
                    raise _refusal(f"{holder}.{name}", replacement)


@cache
def _meanings(fields: tuple[str, ...]) -> tuple[frozenset[str], Mapping[str, str]]:
    """Return the fields that are never refused, and the field to send by each other name, in lower case."""
    own, plain = {name: name for name in fields}, frozenset(fields).difference(HOLDERS)
    if "max_tokens" in fields:
        return plain, {**REFUSED, **({SYSTEM: MESSAGES} if "messages" in fields else {}), **own}
    return plain, own


def _refusal(path: str, replacement: str) -> InvalidRequest:
    if replacement == MESSAGES:
        return InvalidRequest(
            f"'{path}' is accepted at {MESSAGES} alone. Send a message with the role 'system' instead.", param=path
        )
    return InvalidRequest(
        f"'{path}' is not accepted: some engines treat it as '{replacement}', and the gateway does not. "
        f"Send '{replacement}'.",
        param=path,
    )


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
