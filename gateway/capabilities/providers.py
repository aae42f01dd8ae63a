"""The providers that LiteLLM supports, read from its bundled list without importing it."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_LIST = "provider_endpoints_support_backup.json"


@cache
def providers() -> frozenset[str]:
    """Return the names that may precede the slash in `provider/name`; empty if LiteLLM is not installed."""
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        return frozenset()
    file = Path(spec.origin).with_name(_LIST)
    if not file.is_file():
        return frozenset()
    # A name with a slash is a product, not a provider.
    return frozenset(name for name in json.loads(file.read_text("utf-8"))["providers"] if "/" not in name)
