"""Requests of the tables for /v1/responses and /v1/messages, with the engine's script for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tests.conformance.scripted_engine import Script

Outcome = Literal["completed", "incomplete", "failed"]
PLAIN = Script(("Hello", " there", "."))
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
"""An image of one pixel, in base64."""
PDF = "JVBERi0xLjEKdHJhaWxlcgo8PCAvUm9vdCAxIDAgUiA+PgolJUVPRg=="
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
LONG = tuple(f" word{number}" for number in range(2000))
UNICODE = ("Grüße", " 👩‍👩‍👧", " \u2028", "שלום", ' \\ " \t\n', " 漢字", " \x00\x1f", " e\u0301")


@dataclass(frozen=True)
class Case:
    """A request that gets an answer.

    Attributes:
        body: fields besides `model` and `stream`.
        outcome: of the response; a failure is an HTTP error in JSON, and the final event of a stream that has begun.
        custom: names of tools whose calls are custom tool calls with free text.
        stops_at: the stop sequence that the answer reports.
        stop_reason: of a message, if it does not follow from the script's finish_reason.
    """

    name: str
    body: dict[str, Any]
    script: Script = PLAIN
    outcome: Outcome = "completed"
    custom: frozenset[str] = frozenset()
    stops_at: str | None = None
    stop_reason: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A request that gets an HTTP error.

    Attributes:
        body: the whole body but for `model`, unless it has one.
        param: the field path, which the message contains, too.
    """

    name: str
    body: dict[str, Any]
    status: int
    param: str | None
