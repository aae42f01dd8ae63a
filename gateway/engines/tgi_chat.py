"""Converts the fields of OpenAI chat bodies that the chat route of text-generation-inference (TGI) defines differently.

TGI 3.3.7, router/src/lib.rs: its types reject such a body with a 422 in plain text. It ignores `n`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.engines.replies import unsupported

if TYPE_CHECKING:
    from gateway.protocol.body import Json

_CONVERTED = frozenset({"logit_bias", "n", "response_format", "seed"})


def _json_object(depth: int) -> str:
    """Return the regular expression of a JSON object whose values are nested at most `depth` levels deep.

    TGI has no grammar for any object: a schema needs `properties`, and without entries it allows `{}` only. White space
    is at most one space, as in the expressions that TGI makes of schemas.
    """
    text = r'"(?:[^"\\\x00-\x1F\x7F-\x9F]|\\["\\/bfnrt])*"'
    scalar = rf"{text}|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null"
    value = scalar
    for _ in range(depth):
        value = rf"{scalar}|{_object_of(text, value)}|{_listed('[', f'(?:{value})', ']')}"
    return _object_of(text, value)


def _object_of(text: str, value: str) -> str:
    return _listed("{", f"{text}[ ]?:[ ]?(?:{value})", "}")


def _listed(first: str, item: str, last: str) -> str:
    return rf"\{first}[ ]?(?:(?:{item}[ ]?,[ ]?)*{item}[ ]?)?\{last}"


JSON_OBJECT = {"type": "regex", "value": _json_object(2)}
"""TGI's grammar for `response_format: {"type": "json_object"}`."""


def adapt_chat(engine: str, body: Json) -> None:
    """Convert, in place, the fields of a chat body. Raises EngineUnsupported for those without an equivalent.

    Nulls are removed, since TGI rejects some.
    """
    if None in body.values():
        for name in [name for name, value in body.items() if value is None]:
            del body[name]
    if not _CONVERTED.isdisjoint(body):
        _convert(engine, body)
    messages: list[Json] = body["messages"]
    for message in messages:
        if message.get("content") is None:
            body["messages"] = [_with_content(message) for message in messages]
            break


def tgi_seed(seed: int) -> int:
    """Return the seed as TGI reads it, without a sign. PyTorch treats both values as one seed."""
    return seed % 2**64


def _convert(engine: str, body: Json) -> None:
    if body.pop("logit_bias", None):
        raise unsupported(engine, "does not support 'logit_bias'.", param="logit_bias")
    if body.pop("n", 1) > 1:
        raise unsupported(engine, "does not support 'n': send one request for each answer.", param="n")
    if (form := body.pop("response_format", None)) is not None and (grammar := _grammar(engine, form)) is not None:
        body["response_format"] = grammar
    if "seed" in body:
        body["seed"] = tgi_seed(body["seed"])


def _grammar(engine: str, form: Json) -> Json | None:
    """Return TGI's grammar for OpenAI's response_format; None if it constrains nothing."""
    match form:
        case {"value": _}:
            return form  # TGI's own grammar
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return JSON_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": {"properties": {}} as schema}}:
            return {"type": "json", "value": schema}
    raise unsupported(
        engine,
        "supports 'response_format' only with type text, json_object, or json_schema with a schema of an object with "
        "'properties'.",
        param="response_format",
    )


def _with_content(message: Json) -> Json:
    """Return a message with a text. TGI rejects null unless the message has tool calls."""
    if message.get("content") is None and not message.get("tool_calls"):
        return {**message, "content": ""}
    return message
