"""Rules for request bodies that types and ranges cannot express, by the name of the struct. Parsers enforce them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.api.openapi.anthropic_rules import ANTHROPIC_RULES
from gateway.api.openapi.responses_rules import RESPONSES_RULES
from gateway.protocol.chat import ROLES_WITHOUT_TEXT
from gateway.protocol.embeddings import MAX_INPUTS
from gateway.protocol.field_names import (
    CALLER_CONTENT_FIELDS,
    FORBIDDEN_FIELDS,
    HOLDERS,
    REFUSED,
    REFUSED_IN_HOLDER,
    SYSTEM,
)
from gateway.protocol.other_endpoint import ANTHROPIC_PARTS
from gateway.protocol.tags import HEADER

if TYPE_CHECKING:
    from gateway.protocol.body import Json

_NO_TEXT = {"properties": {"type": {"not": {"const": "text"}}}}
_PART = {
    "type": "object",
    "properties": {"type": {"type": "string", "minLength": 1, "not": {"enum": sorted(ANTHROPIC_PARTS)}}},
    "required": ["type"],
    "anyOf": [_NO_TEXT, {"properties": {"text": {"type": "string"}}, "required": ["text"]}],
}
_PARTS = {"type": "array", "minItems": 1, "items": _PART}
_TEXT_OR_PARTS = {"anyOf": [{"type": "string"}, _PARTS]}
_ANY_CONTENT = {"anyOf": [{"type": "null"}, {"type": "string"}, _PARTS]}


def _if_given(field: str, then: Json) -> Json:
    return {"anyOf": [{"properties": {field: {"type": "null"}}}, then]}


_STREAM_OPTIONS = _if_given("stream_options", {"properties": {"stream": {"const": True}}, "required": ["stream"]})

_FIELDS: Json = {
    "properties": {
        **{name: {"type": "null"} for name in sorted(FORBIDDEN_FIELDS)},
        **{name: {} for name in sorted(CALLER_CONTENT_FIELDS)},
    }
}
UNKNOWN: Json = {
    "description": "Unknown fields are passed to the engine. Fields that select the target or the credentials of a "
    "call are rejected at any depth. This schema describes the first levels only.",
    **_FIELDS,
    "additionalProperties": {**_FIELDS, "items": _FIELDS},
}
_HOLDER_FIELDS: Json = {"properties": {name: {"type": "null"} for name in REFUSED_IN_HOLDER}}
_OTHER_NAMES: Json = {
    "description": "Other names of the number of answers and of the token limit are rejected, in upper and lower case.",
    "properties": {**{name: {"type": "null"} for name in REFUSED}, **dict.fromkeys(HOLDERS, _HOLDER_FIELDS)},
}
_UNKNOWN_REF: Json = {"$ref": "#/components/schemas/Unknown"}
_TAGS: Json = {
    "description": f"`metadata.tags` has tags of the request, in addition to those of {HEADER}: a list, or text with "
    "commas. Engines get no list. Elements that are no tags are ignored."
}

RULES: dict[str, Json] = {
    "Message": {
        "anyOf": [
            {"properties": {"content": _TEXT_OR_PARTS}, "required": ["content"]},
            {"properties": {"role": {"enum": sorted(ROLES_WITHOUT_TEXT)}, "content": _ANY_CONTENT}},
        ]
    },
    "ChatBody": {
        "allOf": [_UNKNOWN_REF, _OTHER_NAMES, _STREAM_OPTIONS, _TAGS, {"properties": {SYSTEM: {"type": "null"}}}]
    },
    "TextBody": {
        "allOf": [
            _UNKNOWN_REF,
            _OTHER_NAMES,
            _STREAM_OPTIONS,
            _TAGS,
            {
                "anyOf": [
                    {"properties": {"prompt": {"not": {"type": "null"}}}, "required": ["prompt"]},
                    {"properties": {"messages": {"type": "null"}, "input": {"type": "null"}}},
                ]
            },
            {
                "anyOf": [
                    {"properties": {"max_tokens": {"anyOf": [{"type": "null"}, {"minimum": 1}]}}},
                    {"properties": {"echo": {"const": True}}, "required": ["echo"]},
                ]
            },
        ]
    },
    **ANTHROPIC_RULES,
    **RESPONSES_RULES,
    "UsageBody": {"allOf": [_UNKNOWN_REF]},
    "OfflineBody": {"allOf": [_UNKNOWN_REF, _TAGS]},
    "EmbeddingsBody": {
        "allOf": [_UNKNOWN_REF, _TAGS],
        "properties": {"input": {"anyOf": [{"maxItems": MAX_INPUTS}, {"items": {"type": "integer"}}]}},
    },
}
"""Additional rules, by the name of the struct."""
