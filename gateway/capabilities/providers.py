"""The providers that LiteLLM supports, read from its bundled list without importing it."""

from __future__ import annotations

from functools import cache

from gateway.pricing import litellm_file


@cache
def providers() -> frozenset[str]:
    """Return the names that may precede the slash in `provider/name`; empty if LiteLLM is not installed."""
    # A name with a slash is a product, not a provider.
    names = litellm_file("provider_endpoints_support_backup.json").get("providers", ())
    return frozenset(name for name in names if "/" not in name)
