"""Read and change the text of OpenAI's chat messages. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RULES = frozenset({"system", "developer"})
"""Roles of system messages, which precede the turns of a chat."""
TOOL_FAILED = "The tool failed:"
"""First line of a tool's result that Anthropic's API marks as an error."""
_OTHER_TEXT = frozenset({"reasoning_content", "reasoning", "refusal", "tool_calls", "function_call"})


def with_text(
    messages: Sequence[Mapping[str, Any]], *, before: str = "", after: str = "", gap: str = "\n\n"
) -> list[dict[str, Any]]:
    """Return the chat with text before the text of its last user message, or after it, separated by `gap`.

    Content is text or a list of parts. In a list, the text is added to the first text part, or to the last for `after`.
    Without a text part, a new one is added. A chat without a user message gets one. The input is not changed; untouched
    values are shared with the result.
    """
    copies = [dict(message) for message in messages]
    for message in reversed(copies):
        if message.get("role") == "user":
            message["content"] = _content_with(message.get("content"), before, after, gap)
            return copies
    copies.append({"role": "user", "content": before or after})
    return copies


def with_system(messages: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return the chat with text before that of its first system message, separated by an empty line.

    A chat that begins with another message gets a system message, because many templates allow one only at the
    beginning.
    """
    copies = [dict(message) for message in messages]
    if not copies or copies[0].get("role") not in RULES:
        return [{"role": "system", "content": text}, *copies]
    content = copies[0].get("content")
    if isinstance(content, list | tuple):
        copies[0]["content"] = [{"type": "text", "text": text}, *content]
    else:
        copies[0]["content"] = f"{text}\n\n{content}" if content else text
    return copies


def only_text(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a template renders the whole chat to text, without losing a part such as an image."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return all(isinstance(part, dict) and part.get("type") == "text" for part in parts)


def text_of(content: Any) -> str | None:
    """Return the text of a message's content; None if it has none. Reasoning and images are omitted."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    message = [text for text in texts if isinstance(text, str)]
    return "".join(message) if message else None


def reasoning_of(message: Mapping[str, Any]) -> str:
    """Return the reasoning of a message or a delta, in the field of the engine."""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return reasoning if isinstance(reasoning, str) else ""


def tool_calls_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tool calls of a message or a delta."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def function_of(call: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name and the arguments of a tool call, or the parts of them in a delta."""
    function = call.get("function")
    if not isinstance(function, dict):
        return "", ""
    arguments = function.get("arguments") or ""
    if not isinstance(arguments, str):  # some engines send an object
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return str(function.get("name") or ""), arguments


def generated_text(message: Mapping[str, Any]) -> str:
    """Return all text that was generated, and is charged, for a message or delta: content, reasoning and tool calls."""
    content = message.get("content")
    if isinstance(content, str) and _OTHER_TEXT.isdisjoint(message):
        return content
    texts = [text_of(content), reasoning_of(message), message.get("refusal")]
    for call in (*tool_calls_of(message), {"function": message.get("function_call")}):
        texts += function_of(call)
    return "".join(text for text in texts if isinstance(text, str))


def _content_with(content: Any, before: str, after: str, gap: str) -> str | list[Any]:
    if not isinstance(content, list | tuple):
        return _text_with(content or "", before, after, gap)
    parts = list(content)
    order = range(len(parts)) if before else reversed(range(len(parts)))
    for index in order:
        if parts[index].get("type") == "text":
            text = _text_with(parts[index].get("text") or "", before, after, gap)
            parts[index] = {**parts[index], "text": text}
            return parts
    added = {"type": "text", "text": before or after}
    return [added, *parts] if before else [*parts, added]


def _text_with(text: str, before: str, after: str, gap: str) -> str:
    if before:
        return f"{before} {text}" if text else before
    return f"{text}{gap}{after}" if text else after
