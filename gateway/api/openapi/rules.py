"""Rules for request bodies that types and ranges cannot express, by the name of the struct. Parsers enforce them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.api.openapi.anthropic_rules import ADDRESS, ANTHROPIC_RULES
from gateway.api.openapi.responses_rules import RESPONSES_RULES
from gateway.policy.caller_fields import FIELD_HOLDERS, SERVER_FIELDS, URL_KEYS
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

_IF_TEXT: Json = {"anyOf": [{"not": {"type": "string"}}, ADDRESS]}
_ADDRESSES: Json = {"properties": dict.fromkeys(sorted(URL_KEYS), _IF_TEXT)}
_NO_TEXT = {
    "properties": {
        "type": {"not": {"const": "text"}},
        **{name: {"allOf": [_IF_TEXT, _ADDRESSES]} for name in sorted(URL_KEYS)},
    },
    "additionalProperties": _ADDRESSES,
}
_PART = {
    "type": "object",
    "properties": {"type": {"type": "string", "minLength": 1, "not": {"enum": sorted(ANTHROPIC_PARTS)}}},
    "required": ["type"],
    "anyOf": [
        _NO_TEXT,
        {"properties": {"type": {"const": "text"}, "text": {"type": "string"}}, "required": ["type", "text"]},
    ],
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
_RESERVED: Json = {"properties": {name: {"type": "null"} for names in SERVER_FIELDS.values() for name in names}}
_SERVER_FIELDS: Json = {
    "description": "Fields that reach the server of an engine itself are rejected, unless the operator's policy allows "
    "them.",
    "properties": {**_RESERVED["properties"], **dict.fromkeys(sorted(FIELD_HOLDERS), _RESERVED)},
}
_ONE_LIMIT = _if_given("max_tokens", {"properties": {"max_completion_tokens": {"type": "null"}}})
_LOGPROBS: Json = {
    "anyOf": [
        {"properties": {"top_logprobs": {"enum": [None, 0]}}},
        {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
    ]
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
        "allOf": [
            _UNKNOWN_REF,
            _OTHER_NAMES,
            _SERVER_FIELDS,
            _STREAM_OPTIONS,
            _ONE_LIMIT,
            _LOGPROBS,
            _TAGS,
            {"properties": {SYSTEM: {"type": "null"}}},
        ]
    },
    "TextBody": {
        "allOf": [
            _UNKNOWN_REF,
            _OTHER_NAMES,
            _SERVER_FIELDS,
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
        "allOf": [_UNKNOWN_REF, _SERVER_FIELDS, _TAGS],
        "properties": {"input": {"anyOf": [{"maxItems": MAX_INPUTS}, {"items": {"type": "integer"}}]}},
    },
}
"""Additional rules, by the name of the struct."""
