"""OpenAI's embeddings reply, taken apart only as far as needed: vectors are passed on in the bytes they came in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.engines.base import EmbeddingsReply, Usage
from gateway.engines.chat import is_count
from gateway.errors import EngineGarbled

if TYPE_CHECKING:
    from gateway.protocol import Json

MAX_REPLY_BYTES = 64_000_000
"""2048 vectors of 3072 numbers, the most that OpenAI gives at once, are 34 MB in base64; in decimals half fit."""

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_embeddings(raw: bytes, engine: str) -> EmbeddingsReply:
    """Raises EngineGarbled where there is no list of vectors in it."""
    try:
        fields = _FIELDS.decode(raw)
        if not raw.isascii():
            raw.decode()  # what is skipped over is not looked at, and the caller's own decoder would stumble
        usage = _read_usage(msgspec.json.decode(fields["usage"])) if "usage" in fields else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields, usage = {}, None
    if bytes(memoryview(fields.get("data", b""))[:1]) != b"[":
        raise EngineGarbled(f"Engine '{engine}' sent a reply without embeddings.", engine=engine)
    return EmbeddingsReply(fields, usage)


def _read_usage(usage: Json | None) -> Usage | None:
    """Texts are read and none is written. An engine that says 0 did not count: no text is empty."""
    read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return Usage(read, 0) if is_count(read) and read > 0 else None
