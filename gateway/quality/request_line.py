"""The part of a chat request that is collected: its texts, and the parameters that shape an answer. Pure.

No header and no name of a caller is collected. A request that an evaluation cannot repeat from texts is skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from gateway.policy.constraints import placements
from gateway.protocol.chat import ChatRequest
from gateway.protocol.messages import RULES, only_text, text_of

if TYPE_CHECKING:
    from gateway.protocol.requests import CompletionRequest

MAX_REQUEST_BYTES = 100_000
"""Largest collected request, as JSON."""
_ROLES = RULES | {"user", "assistant"}
_MIN_MESSAGE_BYTES = len('{"role":"user","content":""},')
_PARAMETERS = ("temperature", "top_p", "seed")


class Uncollectable(Exception):
    """The request is not collected. `reason` is the name of its count."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def request_line(request: CompletionRequest, route: str, request_id: str, created: int) -> bytes:
    """Return the request as a line of `gkt-gateway eval collect`. `created`: Unix seconds.

    Raises:
        Uncollectable: `opted_out` (`store: false`), `not_text` (raw prompts, images, audio, and chats that end with
            another role than user), `too_large`, or the reason for which such a request gets no guidance, as `tools`.
    """
    if not isinstance(request, ChatRequest):
        raise Uncollectable("not_text")
    body = request.body
    if not request.may_store:
        raise Uncollectable("opted_out")
    if (constraint := placements(body, "chat").prefix) is not None:
        raise Uncollectable(constraint)
    # Before any work: a body may have megabytes, or thousands of empty messages.
    if request.size_bytes > 2 * MAX_REQUEST_BYTES or len(request.messages) * _MIN_MESSAGE_BYTES > MAX_REQUEST_BYTES:
        raise Uncollectable("too_large")
    line: dict[str, Any] = {"id": request_id, "route": route, "created": created}
    line["messages"] = [_message(message) for message in request.messages]
    if line["messages"][-1]["role"] != "user" or request.non_text_parts or not only_text(request.messages):
        raise Uncollectable("not_text")
    if request.max_tokens is not None:
        line["max_tokens"] = request.max_tokens
    if request.stop:
        line["stop"] = request.stop
    line |= {name: value for name in _PARAMETERS if (value := body.get(name)) is not None}
    raw = orjson.dumps(line)
    if len(raw) > MAX_REQUEST_BYTES:
        raise Uncollectable("too_large")
    return raw


def _message(message: dict[str, Any]) -> dict[str, str]:
    if message.get("tool_calls") or message.get("function_call") or message["role"] in {"tool", "function"}:
        raise Uncollectable("tools")
    text = text_of(message.get("content"))
    if text is None or message["role"] not in _ROLES:
        raise Uncollectable("not_text")
    return {"role": message["role"], "content": text}
