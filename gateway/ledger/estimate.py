"""Token counts for when an engine gave none: tiktoken on what was read and written, marked as an estimate."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import tiktoken

if TYPE_CHECKING:
    from collections.abc import Iterable

log = structlog.get_logger()

# Beyond this a count takes longer than it is worth: English has about four bytes to a token.
_MAX_COUNTED_CHARS = 50_000
_BYTES_PER_TOKEN = 4
# What a chat template adds around each message, roughly.
_TOKENS_PER_MESSAGE = 4


@cache
def _encoding(name: str) -> tiktoken.Encoding | None:
    """Loads 0.2 to 0.5 s the first time; from the vocabularies in LiteLLM's wheel, so that no network is needed.

    None when it cannot be loaded: an estimate may be rough, but it may not cost anybody an answer.
    """
    litellm = find_spec("litellm")
    if litellm is not None and litellm.origin is not None:
        # The environment is the one way in which tiktoken is told where to look.
        os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
    try:
        return tiktoken.get_encoding(name)
    except Exception:
        log.exception("encoding_not_loaded", encoding=name, then="four bytes a token")
        return None


def count_text(encoding: str, text: str) -> int:
    """Tokens of `text` in a tiktoken encoding. Takes milliseconds: call it off the event loop."""
    vocabulary = None if len(text) > _MAX_COUNTED_CHARS else _encoding(encoding)
    if vocabulary is None:
        return len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN
    return len(vocabulary.encode_ordinary(text))


def count_messages(encoding: str, messages: Iterable[dict[str, Any]]) -> int:
    """Tokens of a chat, text parts only."""
    total = 0
    for message in messages:
        content = message.get("content")
        parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        total += _TOKENS_PER_MESSAGE + sum(count_text(encoding, text) for text in texts if isinstance(text, str))
    return total
