"""What the gateway is told of an answer that a device has made: counts and times, and no word of it."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from gateway.protocol.body import Json

MAX_NAME_CHARS = 64
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_REASON = re.compile(r"[a-z_]{1,32}")


@dataclass(frozen=True, slots=True)
class UsageReport:
    """One answer's account, and where it goes."""

    path: str
    body: Json


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """What one answer took on the device.

    Attributes:
        input_tokens, output_tokens: the student's, by its own count.
        finish_reason: why it ended; None where it was broken off.
        student: what the device calls its model.
        first_token_ms, total_ms: since the question was asked.
        guided: whether guidance was used.
        at: Unix seconds when it ended.
    """

    input_tokens: int
    output_tokens: int
    finish_reason: str | None
    student: str
    first_token_ms: int | None
    total_ms: int
    guided: bool
    at: int

    def closing(self, receipt: str) -> UsageReport:
        """Closes the receipt of a guidance."""
        return UsageReport(f"/v1/guidance/{quote(receipt, safe='')}/usage", self._body())

    def alone(self, route: str) -> UsageReport:
        """Of an answer that was made wholly without the gateway, under an id of its own: it counts once."""
        return UsageReport("/v1/guidance/usage", {**self._body(), "model": route, "id": str(uuid.uuid4())})

    def _body(self) -> Json:
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "finish_reason": self.finish_reason if _REASON.fullmatch(self.finish_reason or "") else None,
            # The gateway takes printable ASCII alone: the name stands in its logs.
            "student": _UNPRINTABLE.sub("?", self.student)[:MAX_NAME_CHARS] or "unknown",
            "first_token_ms": self.first_token_ms,
            "total_ms": self.total_ms,
            "guided": self.guided,
            "at": self.at,
        }
