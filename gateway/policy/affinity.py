"""Prompt-cache affinity: requests of one conversation go to the same student, whose prefix cache has its earlier turns.

Pure: every process computes the same order, without coordination. After a failure only the conversations of the failed
engine move. Order by weight: Efraimidis and Spirakis (2006), with a hash instead of a random number, which is weighted
rendezvous hashing. Bound on the load: Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with Bounded Loads (2016).
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest

SESSION_HEADERS = (
    *("x-session-affinity", "x-session-id", "x-opencode-session"),  # OpenCode and its forks
    "x-claude-code-session-id",
    *("session-id", "session_id"),  # Codex: current and earlier releases
)
"""Headers in which clients send the id of a conversation, in the order of precedence."""
LOAD_FACTOR = 1.25
"""An engine may have this multiple of its share of the calls in flight."""
MIN_CALLS = 4
"""An engine with fewer calls in flight than this is not overloaded."""

# Hashing 4,000 characters takes a few microseconds.
_MAX_CHARS = 2000
_MAX_SCANNED = 32  # messages before the first of the user, and parts of a message
_MAX_TEXTS = 32  # hashed in about a tenth of a millisecond


class EngineLoad(NamedTuple):
    """The calls of one engine in this process."""

    in_flight: int
    is_full: bool  # whether the next call waits for a slot


NO_LOAD = EngineLoad(0, is_full=False)


def conversation_key(tenant: str, request: CompletionRequest, headers: Mapping[str, str]) -> bytes | None:
    """Return the hash that identifies a tenant's conversation; None if nothing identifies it.

    It is the hash of the first of: a session header, the caller's `prompt_cache_key`, and the system prompt with the
    first user message. A raw prompt has only the first two.
    """
    for name in SESSION_HEADERS:
        if session := headers.get(name):
            return _hash(tenant, "session", session)
    named = None if isinstance(request, TextRequest) else request.cache_key
    cache_key = named or request.body.get("prompt_cache_key")
    if isinstance(cache_key, str) and cache_key:
        return _hash(tenant, "cache", cache_key)
    if isinstance(request, TextRequest):
        return None
    return _hash(tenant, "prompt", *islice(_first_texts(request.messages), _MAX_TEXTS))


def conversation_order(
    key: bytes, weights: Mapping[str, float], loads: Mapping[str, EngineLoad]
) -> dict[str, tuple[bool, float]]:
    """Return what engines are sorted by for a conversation: whether the engine is overloaded, then its hash by weight.

    Args:
        key: the conversation, from `conversation_key`.
        weights: the weight of each engine.
        loads: the calls of the engines that can be called now.
    """
    calls = 1 + sum(load.in_flight for load in loads.values())
    per_weight = LOAD_FACTOR * calls / sum(weights[name] for name in loads) if loads else 0.0
    order = {}
    for name, weight in weights.items():
        load = loads.get(name, NO_LOAD)
        overloaded = load.is_full or load.in_flight >= max(MIN_CALLS, per_weight * weight)
        order[name] = (overloaded, -(_position(key, name) ** (1 / weight)))
    return order


def _position(key: bytes, engine: str) -> float:
    """Return a number from 0 to 1 that depends on the conversation and the engine alone."""
    hashed = blake2b(engine.encode(), key=key, digest_size=8).digest()
    return int.from_bytes(hashed, "big") / 2**64


def _hash(*parts: str) -> bytes:
    hashed = blake2b(digest_size=16)
    for part in parts:
        hashed.update(b"%d:" % len(part))
        text = part if len(part) <= _MAX_CHARS else part[: _MAX_CHARS // 2] + part[-_MAX_CHARS // 2 :]
        hashed.update(text.encode("utf-8", "replace"))
    return hashed.digest()


def _first_texts(messages: Sequence[Json]) -> Iterator[str]:
    """Yield the texts of the system messages and of the first user message."""
    for message in islice(messages, _MAX_SCANNED):
        role, content = message["role"], message.get("content")
        if role not in ("system", "developer", "user"):
            continue
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            yield from (part["text"] for part in content[:_MAX_SCANNED] if isinstance(part.get("text"), str))
        if role == "user":
            return
