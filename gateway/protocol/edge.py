"""The edge protocol: what a device that runs the student itself reports of an answer, and which versions there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct

from gateway.protocol.body import read_body

MIN_VERSION, MAX_VERSION = 1, 1
"""Of the edge protocol, those that this gateway speaks."""
VERSION_HEADER = "X-GKT-Edge"
MAX_TOKENS = 10_000_000
"""More than any answer has: what a device says that it read or wrote."""
_MAX_UNIX_S = 2**53 - 1

Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
# Printable ASCII: the name stands in logs and receipts, whoever chose it. The end is not before a line's end either.
DeviceModel = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\x20-\x7e]*(?!\n)$")]
FinishReason = Annotated[str, Meta(max_length=32, pattern=r"^[a-z_]+(?!\n)$")]


class UsageBody(Struct, frozen=True):
    """What a device tells of an answer that it finished.

    Attributes:
        student: what the device calls its model.
        first_token_ms, total_ms: since its user asked.
        guided: whether the answer begins with the guidance, or was made with it.
        at: when the answer ended, in Unix seconds.
    """

    input_tokens: Tokens
    output_tokens: Tokens
    student: DeviceModel
    finish_reason: FinishReason | None = None
    first_token_ms: Milliseconds | None = None
    total_ms: Milliseconds | None = None
    guided: bool | None = None
    at: Annotated[float, Meta(ge=0, le=_MAX_UNIX_S)] | None = None


class OfflineBody(UsageBody, frozen=True, kw_only=True):
    """The same of an answer that it made alone, the gateway being out of its reach.

    Attributes:
        model: the route that it would have asked.
        id: a UUID that the device chose: each answer is accounted for once.
    """

    model: Annotated[str, Meta(min_length=1)]
    id: UUID


@dataclass(frozen=True, slots=True)
class EdgeUsage:
    """A checked report. Times are milliseconds since the device's user asked; `at` is Unix seconds."""

    input_tokens: int
    output_tokens: int
    student: str
    finish_reason: str | None
    first_token_ms: float | None
    total_ms: float | None
    guided: bool
    at: float | None


@dataclass(frozen=True, slots=True)
class OfflineUsage:
    """A checked report of an answer that was made without the gateway."""

    id: str
    model: str
    usage: EdgeUsage


def parse_edge_usage(raw: bytes) -> EdgeUsage:
    """What a device reports of an answer that was to begin with guidance. Raises InvalidRequest, naming the field."""
    _, known = read_body(raw, UsageBody, "'input_tokens', 'output_tokens' and 'student'")
    return _usage(known, guided=known.guided is not False)


def parse_offline_usage(raw: bytes) -> OfflineUsage:
    """The same of one that was made alone. Raises InvalidRequest, naming the field."""
    _, known = read_body(raw, OfflineBody, "'id', 'model', 'input_tokens', 'output_tokens' and 'student'")
    return OfflineUsage(known.id.hex, known.model, _usage(known, guided=False))


def _usage(known: UsageBody, *, guided: bool) -> EdgeUsage:
    return EdgeUsage(
        known.input_tokens,
        known.output_tokens,
        known.student,
        known.finish_reason,
        known.first_token_ms,
        known.total_ms,
        guided,
        known.at,
    )
