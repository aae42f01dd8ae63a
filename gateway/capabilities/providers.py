"""The providers that LiteLLM knows, read from its bundled list without importing it."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_LIST = "provider_endpoints_support_backup.json"


@cache
def providers() -> frozenset[str]:
    """What may stand before the slash in `provider/name`; empty when LiteLLM is not installed."""
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        return frozenset()
    file = Path(spec.origin).with_name(_LIST)
    if not file.is_file():
        return frozenset()
    # With a slash in it, it is no provider but one of its products.
    return frozenset(name for name in json.loads(file.read_text("utf-8"))["providers"] if "/" not in name)
