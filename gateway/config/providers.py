"""Complete an entry of `models` in config.yaml whose `model` names a provider, like openai/gpt-4o-mini."""

from __future__ import annotations

from typing import Any

from gateway.config.yaml_messages import nearest
from gateway.pricing import litellm_providers

OPENAI = {"api_base": "https://api.openai.com/v1", "api_key": "env:OPENAI_API_KEY", "continuation": "none"}
"""Keys of an entry `openai/name` without `api_base`. Only `continuation: auto` sends calls that are charged."""
_KINDS = "write openai (any OpenAI-compatible server), tgi, or litellm"


def completed(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry with the keys that follow from `model`.

    `name` is the last part of `model`. Without `protocol`, the first part of `model` is a provider, as in LiteLLM.
    The model openai/x is x with protocol openai. Another known provider has protocol litellm.
    """
    model = entry.get("model")
    if not isinstance(model, str):
        return entry
    entry = {"name": model.rpartition("/")[2], **entry}
    provider, _, name = model.partition("/")
    if "protocol" in entry or not name:
        return entry
    if provider == "openai":
        return {**({} if "api_base" in entry else OPENAI), **entry, "protocol": "openai", "model": name}
    if provider in litellm_providers():
        return {"continuation": "none", **entry, "protocol": "litellm"}
    return entry


def why_not_derived(model: object) -> str:
    """Return the message for an entry whose protocol does not follow from `model`."""
    provider, slash, name = model.partition("/") if isinstance(model, str) else ("", "", "")
    if slash and (close := nearest(provider, litellm_providers())):
        return f"missing, and LiteLLM has no provider '{provider}': {_KINDS}, or write model: {close}/{name}"
    return f"missing: {_KINDS}, or name the provider in model, like openai/gpt-4o-mini"
