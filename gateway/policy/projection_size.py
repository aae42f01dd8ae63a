"""How many bytes and tokens of the teacher's prompt a projection adds. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from gateway.policy.projections import Projection
    from gateway.protocol.body import CallerRequest

# What a template writes around a turn has about four tokens.
_BYTES_PER_TURN = 16


def added_bytes(projection: Projection, asked: CallerRequest) -> int:
    """How much longer the teacher's prompt is than the caller's: what was added, and a template's words around it."""
    if isinstance(asked, TextRequest):
        return len((projection.instruction or "").encode())
    return projection.shown_bytes + _BYTES_PER_TURN * projection.turns


def callers_part(projection: Projection, asked: CallerRequest, read_tokens: int) -> int:
    """Of what the teacher read, about what the caller sent: by size, for nobody counted the two apart."""
    if isinstance(asked, TextRequest) or not projection.turns:
        return read_tokens
    return round(read_tokens * asked.size_bytes / (asked.size_bytes + added_bytes(projection, asked)))
