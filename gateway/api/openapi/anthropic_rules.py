"""Rules for bodies of Anthropic's API that types and ranges cannot express, by the name of the struct."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.protocol.anthropic.tools import CLIENT_TOOL_PATTERN

if TYPE_CHECKING:
    from gateway.protocol.body import Json


def has(**properties: Json) -> Json:
    """Return the schema of an object that has these properties."""
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _content(*types: str, min_items: int = 0) -> Json:
    """Return the schema of content that is a text, or blocks of these types."""
    blocks = {"type": "array", "minItems": min_items, "items": has(type={"enum": list(types)})}
    return {"anyOf": [{"type": "string"}, blocks]}


def _message(role: str, content: Json) -> Json:
    return has(role={"const": role}, content=content)


TEXT: Json = {"type": "string"}
FILLED: Json = {"type": "string", "minLength": 1}
_HOST = r"(?![^/?#:]*\.(localhost|local|internal|home\.arpa)([:/?#]|$))([a-z0-9-]+\.)+[a-z][a-z0-9-]*"
# In Python, `$` also matches before a last line break.
_URL = rf"https?://{_HOST}(:[0-9]+)?([/?#][!-\[\]-~]*)?$(?!\n)"
ADDRESS: Json = {
    "description": "A data: URL, or an http(s) URL with a public name or address. The pattern has names only. The "
    "operator's policy may allow more, or less.",
    "type": "string",
    "pattern": rf"^(data:|{_URL})",
}
_READ = ("text", "image", "document", "search_result", "tool_reference")
_FUNCTION = has(name=FILLED, input_schema={"type": "object"})

ANTHROPIC_RULES: dict[str, Json] = {
    "AnthropicMessage": {
        "anyOf": [
            _message("user", _content(*_READ, "tool_result", "mid_conv_system", min_items=1)),
            _message("assistant", _content("text", "thinking", "redacted_thinking", "tool_use")),
            _message("system", _content("text")),
        ]
    },
    "ImageBlock": has(
        source={
            "anyOf": [
                has(type={"const": "base64"}, media_type=FILLED, data=FILLED),
                has(type={"const": "url"}, url=ADDRESS),
            ]
        }
    ),
    "DocumentBlock": has(
        source={
            "anyOf": [
                has(type={"const": "text"}, data=TEXT),
                has(
                    type={"const": "content"},
                    content={"anyOf": [TEXT, {"type": "array", "items": has(type={"const": "text"}, text=TEXT)}]},
                ),
            ]
        }
    ),
    "AnthropicTool": {
        "description": "A tool that the client runs. The types bash, text_editor, computer and memory, each with its "
        "date, need a model of Anthropic. Other types of Anthropic are rejected.",
        "anyOf": [
            {"properties": {"type": {"enum": ["custom", None]}}, "allOf": [_FUNCTION]},
            has(type={"type": "string", "pattern": CLIENT_TOOL_PATTERN}),
        ],
    },
    "AnthropicToolChoice": {
        "anyOf": [
            {"properties": {"type": {"enum": ["auto", "any", "none"]}}},
            has(type={"const": "tool"}, name=FILLED),
        ]
    },
    "MessagesBody": {"properties": {"thread": {"type": "null"}}},
}
