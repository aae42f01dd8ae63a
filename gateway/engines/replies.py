"""Reads the first choice of chat completion replies. Performs no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from gateway.protocol.body import Json


def first_choice(reply: Any) -> Json:
    """Return the first choice of an OpenAI reply; empty if there is none."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def message_text(reply: Json) -> str | None:
    """Return the text of the first choice; None if it has no text."""
    return text_of((first_choice(reply).get("message") or {}).get("content"))
