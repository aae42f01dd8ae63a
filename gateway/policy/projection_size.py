"""Compute the bytes and tokens that a projection adds to the teacher's prompt. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from gateway.policy.projections import Projection
    from gateway.protocol.body import CallerRequest

# What a template writes around a turn has about four tokens.
_BYTES_PER_TURN = 16


def added_bytes(projection: Projection, asked: CallerRequest) -> int:
    """Return the bytes that the projection adds to the caller's prompt, the template's text around turns included."""
    if isinstance(asked, TextRequest):
        return len((projection.instruction or "").encode())
    return projection.shown_bytes + _BYTES_PER_TURN * projection.turns


def callers_part(projection: Projection, asked: CallerRequest, read_tokens: int) -> int:
    """Estimate the tokens of the caller's own prompt among those that the teacher read, in proportion to bytes."""
    if isinstance(asked, TextRequest) or not projection.turns:
        return read_tokens
    return round(read_tokens * asked.size_bytes / (asked.size_bytes + added_bytes(projection, asked)))
