"""Reads OpenAI's embeddings replies without decoding the vectors, which are forwarded as bytes."""

from __future__ import annotations

import re

import msgspec

from gateway.engines.base import EngineEmbeddings, TokenUsage
from gateway.engines.chat import is_count
from gateway.engines.replies import bad_reply
from gateway.engines.reply_json import in_thread
from gateway.protocol.structure import INLINE_BYTES, MAX_VALUES, count_values

MAX_REPLY_BYTES = 64_000_000
"""OpenAI's largest reply, 2048 vectors of 3072 numbers, has 34 MB in base64. Half as many vectors fit in decimals."""

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW = msgspec.json.Decoder(msgspec.Raw)
_NAME = b'"embedding"'
_BEFORE_VECTOR = re.compile(_NAME + rb'[ \n\r\t]{0,99}:[ \n\r\t]{0,99}(?=["\[])')
_MARK = rb'"\u0000vector"'  # replaces a vector


async def read_embeddings(raw: bytes, engine: str) -> EngineEmbeddings:
    """Read a reply; a large one is read in a thread. Raises EngineProtocolError for a reply without vectors."""
    return _read(raw, engine) if len(raw) <= INLINE_BYTES else await in_thread(_read, raw, engine)


async def write_embeddings(reply: EngineEmbeddings, model: str) -> bytes:
    """Return the bytes of a reply with another model name. A large reply is written in a thread."""
    rest = msgspec.json.encode({**reply.fields, "model": model})
    parts = [b'{"data":', *reply.data, b",", rest[1:]]
    return b"".join(parts) if sum(map(len, parts)) <= INLINE_BYTES else await in_thread(b"".join, parts)


def _read(raw: bytes, engine: str) -> EngineEmbeddings:
    """Read a reply vector by vector. One C call for a large reply would hold the interpreter lock too long."""
    rest, vectors = _take_vectors(raw)
    if count_values(rest, MAX_VALUES)[1] > MAX_VALUES:
        raise bad_reply(engine, f"a reply with more than {MAX_VALUES} JSON values, the limit")
    try:
        fields = _FIELDS.decode(rest)
        for part in (rest, *vectors):
            if not part.isascii():
                part.decode()  # the decoder does not validate skipped bytes, and the caller's decoder would fail
        counts = msgspec.json.decode(fields["usage"]) if "usage" in fields else None
        read = counts.get("prompt_tokens") if isinstance(counts, dict) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields, read = {}, None
    data = bytes(fields.pop("data", b"")).split(_MARK)
    if not data[0].startswith(b"[") or len(data) != len(vectors) + 1:
        raise bad_reply(engine, "a reply without embeddings")
    usage = TokenUsage(read, 0) if is_count(read) and read > 0 else None  # no input is empty
    return EngineEmbeddings(fields, [part for both in zip(data, [*vectors, b""], strict=True) for part in both], usage)


def _take_vectors(raw: bytes) -> tuple[bytes, list[bytes]]:
    """Return a reply with each vector replaced by a mark, and the vectors: flat lists, or strings in base64."""
    rest: list[bytes] = []
    vectors: list[bytes] = []
    at = done = 0
    while (at := raw.find(_NAME, at)) >= 0:
        if (found := _BEFORE_VECTOR.match(raw, at)) is None:
            at += len(_NAME)
            continue
        start = found.end()
        end = raw.find(b"]" if raw.startswith(b"[", start) else b'"', start + 1) + 1
        vector = raw[start:end]
        try:
            _RAW.decode(vector)
        except (msgspec.DecodeError, RecursionError):
            break
        vectors.append(vector)
        rest.append(raw[done:start])
        done = at = end
    return _MARK.join([*rest, raw[done:]]), vectors
