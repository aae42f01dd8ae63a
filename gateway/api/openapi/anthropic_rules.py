"""Rules for bodies of Anthropic's API that types and ranges cannot express, by the name of the struct."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.protocol.anthropic.tools import CLIENT_TOOL_PATTERN

if TYPE_CHECKING:
    from gateway.protocol.body import Json


def _has(**properties: Json) -> Json:
    """Return the schema of an object that has these properties."""
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _content(*types: str, min_items: int = 0) -> Json:
    """Return the schema of content that is a text, or blocks of these types."""
    blocks = {"type": "array", "minItems": min_items, "items": _has(type={"enum": list(types)})}
    return {"anyOf": [{"type": "string"}, blocks]}


def _message(role: str, content: Json) -> Json:
    return _has(role={"const": role}, content=content)


_TEXT: Json = {"type": "string"}
_FILLED: Json = {"type": "string", "minLength": 1}
_READ = ("text", "image", "document", "search_result", "tool_reference")
_FUNCTION = _has(name=_FILLED, input_schema={"type": "object"})

ANTHROPIC_RULES: dict[str, Json] = {
    "AnthropicMessage": {
        "anyOf": [
            _message("user", _content(*_READ, "tool_result", "mid_conv_system", min_items=1)),
            _message("assistant", _content("text", "thinking", "redacted_thinking", "tool_use")),
            _message("system", _content("text")),
        ]
    },
    "ImageBlock": _has(
        source={
            "anyOf": [
                _has(type={"const": "base64"}, media_type=_FILLED, data=_FILLED),
                _has(type={"const": "url"}, url=_FILLED),
            ]
        }
    ),
    "DocumentBlock": _has(
        source={
            "anyOf": [
                _has(type={"const": "text"}, data=_TEXT),
                _has(
                    type={"const": "content"},
                    content={"anyOf": [_TEXT, {"type": "array", "items": _has(type={"const": "text"}, text=_TEXT)}]},
                ),
            ]
        }
    ),
    "AnthropicTool": {
        "description": "A tool that the client runs. The types bash, text_editor, computer and memory, each with its "
        "date, need a model of Anthropic. Other types of Anthropic are rejected.",
        "anyOf": [
            {"properties": {"type": {"enum": ["custom", None]}}, "allOf": [_FUNCTION]},
            _has(type={"type": "string", "pattern": CLIENT_TOOL_PATTERN}),
        ],
    },
    "AnthropicToolChoice": {
        "anyOf": [
            {"properties": {"type": {"enum": ["auto", "any", "none"]}}},
            _has(type={"const": "tool"}, name=_FILLED),
        ]
    },
    "MessagesBody": {"properties": {"thread": {"type": "null"}}},
}
