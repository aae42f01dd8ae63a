"""Usage reports of answers on a device: counts and times, and no text."""

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
    """A report of one answer, with the path to send it to."""

    path: str
    body: Json


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """Usage of one answer on the device.

    Attributes:
        input_tokens, output_tokens: tokens of the student, as it reports them.
        finish_reason: why the answer ended; None if it was canceled or failed.
        student: the device's name of its model.
        first_token_ms, total_ms: times since the request.
        guided: whether guidance was used.
        at: end of the answer, in Unix seconds.
    """

    input_tokens: int
    output_tokens: int
    finish_reason: str | None
    student: str
    first_token_ms: int | None
    total_ms: int
    guided: bool
    at: int

    def closing_report(self, receipt: str) -> UsageReport:
        """Return the report that closes the receipt of guidance."""
        return UsageReport(f"/v1/guidance/{quote(receipt, safe='')}/usage", self._body())

    def unguided_report(self, route: str) -> UsageReport:
        """Return the report of an answer without the gateway. Its id prevents counting it twice."""
        return UsageReport("/v1/guidance/usage", {**self._body(), "model": route, "id": str(uuid.uuid4())})

    def _body(self) -> Json:
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "finish_reason": self.finish_reason if _REASON.fullmatch(self.finish_reason or "") else None,
            # The gateway accepts only printable ASCII, since it logs the name.
            "student": _UNPRINTABLE.sub("?", self.student)[:MAX_NAME_CHARS] or "unknown",
            "first_token_ms": self.first_token_ms,
            "total_ms": self.total_ms,
            "guided": self.guided,
            "at": self.at,
        }
