"""What types and ranges cannot say of a body, in JSON Schema's words; the parsers say it in code.

A test sends bodies made after these, and such as break them, and sees each taken or refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.protocol.chat import ROLES_WITHOUT_TEXT
from gateway.protocol.embeddings import MAX_INPUTS
from gateway.protocol.field_names import HOLDERS, REFUSED, REFUSED_IN_HOLDER
from gateway.protocol.forbidden_fields import CALLER_CONTENT_FIELDS, FORBIDDEN_FIELDS

if TYPE_CHECKING:
    from gateway.protocol.body import Json

_NO_TEXT = {"properties": {"type": {"not": {"const": "text"}}}}
_PART = {
    "type": "object",
    "properties": {"type": {"type": "string", "minLength": 1}},
    "required": ["type"],
    "anyOf": [_NO_TEXT, {"properties": {"text": {"type": "string"}}, "required": ["text"]}],
}
_PARTS = {"type": "array", "minItems": 1, "items": _PART}
_TEXT_OR_PARTS = {"anyOf": [{"type": "string"}, _PARTS]}
_ANY_CONTENT = {"anyOf": [{"type": "null"}, {"type": "string"}, _PARTS]}


def _if_given(field: str, then: Json) -> Json:
    return {"anyOf": [{"properties": {field: {"type": "null"}}}, then]}


_OPTIONS_OF_STREAMS = _if_given("stream_options", {"properties": {"stream": {"const": True}}, "required": ["stream"]})

_NAMES: Json = {
    "properties": {
        **{name: {"type": "null"} for name in sorted(FORBIDDEN_FIELDS)},
        **{name: {} for name in sorted(CALLER_CONTENT_FIELDS)},
    }
}
UNKNOWN: Json = {
    "description": "What the gateway does not know is passed on, but for what would say where a call goes, or as whom: "
    "however deep it stands, though no deeper than here in these words.",
    **_NAMES,
    "additionalProperties": {**_NAMES, "items": _NAMES},
}
_HELD: Json = {"properties": {name: {"type": "null"} for name in REFUSED_IN_HOLDER}}
_OTHER_NAMES: Json = {
    "description": "Other names of the number of answers and of the token limit are not accepted, in any case.",
    "properties": {**{name: {"type": "null"} for name in REFUSED}, **dict.fromkeys(HOLDERS, _HELD)},
}
_OTHERS: Json = {"$ref": "#/components/schemas/Unknown"}

RULES: dict[str, Json] = {
    "Message": {
        "anyOf": [
            {"properties": {"content": _TEXT_OR_PARTS}, "required": ["content"]},
            {"properties": {"role": {"enum": sorted(ROLES_WITHOUT_TEXT)}, "content": _ANY_CONTENT}},
        ]
    },
    "ChatBody": {
        "allOf": [
            _OTHERS,
            _OTHER_NAMES,
            _OPTIONS_OF_STREAMS,
        ]
    },
    "TextBody": {
        "allOf": [
            _OTHERS,
            _OTHER_NAMES,
            _OPTIONS_OF_STREAMS,
            {
                "anyOf": [
                    {"properties": {"max_tokens": {"anyOf": [{"type": "null"}, {"minimum": 1}]}}},
                    {"properties": {"echo": {"const": True}}, "required": ["echo"]},
                ]
            },
        ]
    },
    "UsageBody": {"allOf": [_OTHERS]},
    "OfflineBody": {"allOf": [_OTHERS]},
    "EmbeddingsBody": {
        "allOf": [_OTHERS],
        "properties": {"input": {"anyOf": [{"maxItems": MAX_INPUTS}, {"items": {"type": "integer"}}]}},
    },
}
"""By the name of a struct: what holds of it besides."""
