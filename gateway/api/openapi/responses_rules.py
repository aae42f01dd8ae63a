"""Rules for bodies of the Responses API that types and ranges cannot express, by the name of the struct."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.api.openapi.anthropic_rules import ADDRESS, FILLED, TEXT, has
from gateway.protocol.responses.items import TEXT_TYPES
from gateway.protocol.responses.request import MAX_KEY_CHARS, MAX_PAIRS, MAX_VALUE_CHARS
from gateway.protocol.tags import HEADER

if TYPE_CHECKING:
    from gateway.protocol.body import Json

_TEXT_PART = has(type={"enum": list(TEXT_TYPES)}, text=TEXT)
_PART: Json = {
    "anyOf": [
        _TEXT_PART,
        has(type={"const": "input_image"}, image_url=ADDRESS),
        has(type={"const": "input_file"}, file_data=FILLED),
    ]
}
_REFUSAL = has(type={"const": "refusal"}, refusal=TEXT)


def _content(part: Json) -> Json:
    """Return the schema of content that is a text, or a list of parts."""
    return {"anyOf": [TEXT, {"type": "array", "items": part}]}


def _tool(kind: str, **properties: Json) -> Json:
    return has(type={"const": kind}, name=FILLED, **properties)


_MESSAGE_TYPE: Json = {"properties": {"type": {"const": "message"}}}
_ITEM: Json = {
    "description": "An output follows the call with its call_id. Other types: additional_tools, tool_search_call and "
    "tool_search_output. Calls of hosted tools are ignored.",
    "anyOf": [
        {**has(role={"enum": ["user", "system", "developer"]}, content=_content(_PART)), "allOf": [_MESSAGE_TYPE]},
        {
            **has(role={"const": "assistant"}, content=_content({"anyOf": [_TEXT_PART, _REFUSAL]})),
            "allOf": [_MESSAGE_TYPE],
        },
        _tool("function_call", call_id=FILLED, arguments=TEXT),
        has(type={"const": "function_call_output"}, call_id=FILLED, output=_content(_PART)),
        _tool("custom_tool_call", call_id=FILLED, input=TEXT),
        has(type={"const": "custom_tool_call_output"}, call_id=FILLED, output=_content(_PART)),
        has(type={"const": "reasoning"}, summary={"type": "array", "items": _TEXT_PART}),
        has(type={"const": "item_reference"}, id=FILLED),
    ],
}
_FUNCTION: Json = {
    **_tool("function"),
    "allOf": [{"properties": {"parameters": {"type": ["object", "null"]}}}],
}
_CALLED: Json = {"anyOf": [_FUNCTION, _tool("custom")]}
_TOOL: Json = {
    "description": "Also tool_search with execution client. The gateway runs no hosted tools.",
    "anyOf": [_CALLED, _tool("namespace", tools={"type": "array", "minItems": 1, "items": _CALLED})],
}
_FORMAT: Json = {
    "anyOf": [
        {"type": "null"},
        has(type={"enum": ["text", "json_object"]}),
        has(type={"const": "json_schema"}, name=TEXT, schema={"type": "object"}),
    ]
}

RESPONSES_RULES: dict[str, Json] = {
    "ResponsesBody": {
        "properties": {
            "input": {"anyOf": [{"type": ["null", "string"]}, {"type": "array", "minItems": 1, "items": _ITEM}]},
            "tools": {"anyOf": [{"type": "null"}, {"type": "array", "items": _TOOL}]},
            "tool_choice": {
                "description": "auto, none, required with tools, or an object of type function, custom or "
                "allowed_tools that names tools of the request.",
                "anyOf": [{"type": ["null", "object"]}, {"enum": ["auto", "none", "required"]}],
            },
            "metadata": {
                "description": f"`tags` has tags of the request, in addition to those of {HEADER}: text with commas.",
                "anyOf": [
                    {"type": "null"},
                    {
                        "type": "object",
                        "maxProperties": MAX_PAIRS,
                        "propertyNames": {"maxLength": MAX_KEY_CHARS},
                        "additionalProperties": {"type": "string", "maxLength": MAX_VALUE_CHARS},
                    },
                ],
            },
            "background": {"enum": [False, None]},
            "conversation": {"type": "null"},
            "prompt": {"type": "null"},
        },
        "anyOf": [
            {"properties": {name: {"not": {"type": "null"}}}, "required": [name]}
            for name in ("input", "previous_response_id")
        ],
    },
    "TextOptions": {"properties": {"format": _FORMAT}},
}
