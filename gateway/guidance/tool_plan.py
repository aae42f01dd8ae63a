"""The teacher's input for a plan, and the plan's place in the student's prompt. Pure.

The teacher reads the functions and the conversation as text in one user message. Some chat templates and providers
reject calls without tools. After a chat that ends in a result, the teacher would call a function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from gateway.guidance.projection import place_in_context
from gateway.protocol.messages import RULES, function_of, tool_calls_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.policy.projections import Projection
    from gateway.policy.tool_plan import ToolPlanScope

_READ_OF_FUNCTION = ("name", "description", "parameters")
_LABELS = dict.fromkeys(RULES, "System") | {"user": "User", "assistant": "Assistant"}


def plan_messages(projection: Projection, body: Mapping[str, Any], scope: ToolPlanScope) -> list[dict[str, Any]]:
    """Return the teacher's chat for a plan: functions, conversation and the projection's instruction.

    Each text is shorter than its JSON in the caller's body. Parts without text, such as images, stay in their place.
    """
    texts = ["Functions:"]
    parts: list[dict[str, Any]] = []
    texts += [_function(tool) for tool in (*(body.get("tools") or ()), *(body.get("functions") or ()))]
    texts.append("\nConversation:")
    for message in body["messages"][: scope.read]:
        for piece in _pieces(message):
            if isinstance(piece, str):
                texts.append(piece)
            else:
                parts += [{"type": "text", "text": "\n".join(texts)}, piece]
                texts = []
    texts.append(f"\n{projection.instruction}")
    text = "\n".join(texts)
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}]


def place_plan(
    projection: Projection, messages: Sequence[Mapping[str, Any]], plan: str, scope: ToolPlanScope
) -> list[dict[str, Any]]:
    """Return the student's chat: the plan ends the message that begins the task, in every turn of the task.

    So the student's prefix cache holds the earlier turns, until another plan replaces this one.
    """
    begin = scope.begin
    return [*place_in_context(projection, messages[:begin], plan), *map(dict, messages[begin:])]


def _function(tool: Mapping[str, Any]) -> str:
    function = tool.get("function", tool)
    if not isinstance(function, dict) or "name" not in function:
        function = tool
    read = {name: function[name] for name in _READ_OF_FUNCTION if function.get(name) is not None}
    return orjson.dumps(read or tool).decode()


def _pieces(message: Mapping[str, Any]) -> Iterator[str | dict[str, Any]]:
    """Yield the texts of a message, and its parts without text."""
    label, content = _LABELS.get(message["role"], "Result"), message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    for part in parts:
        if part.get("type") == "text":
            yield f"{label}: {part['text']}"
        elif label != "Assistant":
            yield part
    legacy = message.get("function_call")
    for call in (*tool_calls_of(message), *([{"function": legacy}] if legacy else ())):
        name, arguments = function_of(call)
        yield f"Call: {name} {arguments}"
