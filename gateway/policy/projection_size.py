"""Compute the bytes and tokens that a projection adds to the teacher's prompt. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from gateway.policy.projections import Projection
    from gateway.protocol.requests import AnyRequest

# A template writes about four tokens around a turn.
_BYTES_PER_TURN = 16


def added_bytes(projection: Projection, request: AnyRequest) -> int:
    """Return the bytes that the projection adds to the caller's prompt, the template's text around turns included."""
    if isinstance(request, TextRequest):
        return len((projection.instruction or "").encode())
    return projection.shown_bytes + _BYTES_PER_TURN * projection.turns


def caller_tokens(projection: Projection, request: AnyRequest, read_tokens: int) -> int:
    """Estimate the tokens of the caller's own prompt among those that the teacher read, in proportion to bytes."""
    if isinstance(request, TextRequest) or not projection.turns:
        return read_tokens
    return round(read_tokens * request.size_bytes / (request.size_bytes + added_bytes(projection, request)))
