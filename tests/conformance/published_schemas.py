"""Validate replies against the schemas that OpenAI and Anthropic publish.

Both publish schemas as the types of their Python SDKs. Those are used with strict types, and without unknown fields.
OpenAI also publishes an OpenAPI document, whose required fields are stricter. It is used if GKT_OPENAI_OPENAPI is the
path of that `openapi.json` (github.com/openai/openai-openapi).
"""

from __future__ import annotations

import functools
import os
import typing
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pydantic

OPENAI_DOCUMENT = os.environ.get("GKT_OPENAI_OPENAPI")
_SENT_AS_NULL = ("usage", "user")


def model_errors(
    model: type[pydantic.BaseModel], value: dict[str, Any], extra: frozenset[str] = frozenset()
) -> list[str]:
    """Return what is wrong in a JSON object by an SDK's type: missing fields, wrong types and values, unknown fields.

    Args:
        extra: paths of fields that the type does not have and that are meant.
    """
    try:
        read = model.model_validate_json(orjson.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        return _without_other_members(error)
    return [f"{path}: no such field" for path in _unknown(read, "") if path not in extra]


def _without_other_members(error: pydantic.ValidationError) -> list[str]:
    """Return the errors; of a union only those of the members that have the value's `type`, if there is one."""
    errors = error.errors()
    others = {one["loc"][:-1] for one in errors if one["loc"][-1] == "type"}
    kept = [one for one in errors if not any(one["loc"][: len(other)] == other for other in others)]
    return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in kept or errors]


def _unknown(value: Any, path: str) -> typing.Iterator[str]:
    if isinstance(value, pydantic.BaseModel):
        for name in value.model_extra or {}:
            yield f"{path}.{name}".lstrip(".")
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for one in value:
            yield from _unknown(one, f"{path}[]")


def members_by_type(union: Any) -> dict[str, type[pydantic.BaseModel]]:
    """Return the members of a union of an SDK by the value of their field `type`."""
    while typing.get_origin(union) is typing.Annotated:
        union = typing.get_args(union)[0]
    return {
        name: member
        for member in typing.get_args(union)
        for name in typing.get_args(member.model_fields["type"].annotation)
    }


@functools.cache
def _document() -> dict[str, Any]:
    assert OPENAI_DOCUMENT is not None
    document: dict[str, Any] = orjson.loads(Path(OPENAI_DOCUMENT).read_bytes())
    return {"schemas": document["components"]["schemas"]}


@functools.cache
def _event_schemas() -> dict[str, str]:
    """Return the names of the document's event schemas, by the events' types."""
    components = _document()["schemas"]
    names = [ref["$ref"].rpartition("/")[2] for ref in components["ResponseStreamEvent"]["anyOf"]]
    return {kind: name for name in names for kind in components[name]["properties"]["type"].get("enum", ())}


@functools.cache
def _validator(schema: str) -> Any:
    return jsonschema_rs.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": _document()})


def document_errors(schema: str, value: dict[str, Any]) -> list[str]:
    """Return what is wrong in a JSON object by OpenAI's document; nothing without the document."""
    if OPENAI_DOCUMENT is None:
        return []
    errors = _validator(schema).iter_errors(_without_nulls(value))
    return [f"{'.'.join(map(str, error.instance_path))}: {error.message[:300]}" for error in errors]


def document_event_errors(event: dict[str, Any]) -> list[str]:
    """Return what is wrong in an event of a response by OpenAI's document; nothing without the document."""
    return [] if OPENAI_DOCUMENT is None else document_errors(_event_schemas()[event["type"]], event)


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """Return a response, or an event with one, without null fields that the document forbids.

    OpenAI sends them: the document's own example of a response has `user: null`, usage is known at the end only, and
    Open Responses requires a schema's `description`, which may be null.
    """
    if isinstance(response := value.get("response"), dict):
        return {**value, "response": _without_nulls(response)}
    value = {name: one for name, one in value.items() if one is not None or name not in _SENT_AS_NULL}
    if isinstance(text := value.get("text"), dict):
        form = {name: one for name, one in text["format"].items() if one is not None or name != "description"}
        value["text"] = {**text, "format": form}
    return value
