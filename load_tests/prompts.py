"""Fifty prompts for measurements with real models."""

from __future__ import annotations

from pathlib import Path

import orjson

_FILE = Path(__file__).with_name("prompts.json")


def prompts(limit: int) -> list[str]:
    """Return the first prompts. They alternate between kinds of text, so that a small number of them is varied too."""
    kinds: dict[str, list[str]] = orjson.loads(_FILE.read_bytes())
    longest = max(map(len, kinds.values()))
    return [texts[turn] for turn in range(longest) for texts in kinds.values() if turn < len(texts)][:limit]
