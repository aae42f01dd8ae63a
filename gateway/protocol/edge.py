"""The edge protocol: its versions, and the reports of devices that run the student themselves."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.protocol.body import read_body

MIN_VERSION, MAX_VERSION = 1, 1
"""The oldest version of the edge protocol that this gateway supports; the next constant is the newest."""
VERSION_HEADER = "X-GKT-Edge"
MAX_TOKENS = 10_000_000
"""Upper bound of a reported token count, larger than any answer."""
_MAX_UNIX_S = 2**53 - 1

Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
# Printable ASCII, because logs and receipts contain the name. The pattern's end must not match before a newline.
DeviceModel = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\x20-\x7e]*(?!\n)$")]
FinishReason = Annotated[str, Meta(max_length=32, pattern=r"^[a-z_]+(?!\n)$")]


class UsageBody(Struct, frozen=True):
    """The report of an answer that a device completed.

    Attributes:
        student: the device's name of its model.
        first_token_ms, total_ms: milliseconds since the user's request.
        guided: whether the answer begins with the guidance, or was made with it.
        at: end of the answer, in Unix seconds.
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
    """The report of an answer that a device made alone, without a connection to the gateway.

    Attributes:
        model: the route that it would have used.
        id: a UUID that the device chose; each id is accounted for once.
        metadata: its `tags` are those of the request.
    """

    model: Annotated[str, Meta(min_length=1)]
    id: UUID
    metadata: dict[str, Any] | None = None


def parse_edge_usage(raw: bytes) -> UsageBody:
    """Decode and check the report of an answer with guidance. Raises InvalidRequest with the field."""
    _, known = read_body(raw, UsageBody, "'input_tokens', 'output_tokens' and 'student'")
    return replace(known, guided=known.guided is not False)


def parse_offline_usage(raw: bytes) -> OfflineBody:
    """Decode and check the report of an answer that a device made alone. Raises InvalidRequest with the field."""
    _, known = read_body(raw, OfflineBody, "'id', 'model', 'input_tokens', 'output_tokens' and 'student'")
    return replace(known, guided=False)
