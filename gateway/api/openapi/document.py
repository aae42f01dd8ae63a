"""Build the OpenAPI document from the route table, the structs and the error tree. Pure."""

from __future__ import annotations

import re
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import orjson
from aiohttp import web

from gateway.api.headers import API, MAX_CLIENT_ID_CHARS, OPENAI_VERSION, fact_headers, is_messages
from gateway.api.keys import StaticDocument
from gateway.api.models import ANTHROPIC_VERSION
from gateway.api.openapi.anthropic_shapes import AnthropicErrorReply
from gateway.api.openapi.operations import FACTS, OPERATIONS, Operation
from gateway.api.openapi.responses_shapes import ResponseEvent
from gateway.api.openapi.rules import RULES, UNKNOWN
from gateway.api.openapi.shapes import ErrorReply
from gateway.errors import MethodNotAllowed, NeverFits, NotFound
from gateway.policy import routing
from gateway.policy.guidance_rule import MAX_GUIDANCE_TOKENS
from gateway.policy.schema import OverrideMode
from gateway.protocol import tags
from gateway.protocol.anthropic.errors import OVERLOADED, anthropic_status
from gateway.protocol.anthropic.request import MAX_HEADER_CHARS
from gateway.protocol.edge import MAX_VERSION, MIN_VERSION, VERSION_HEADER
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.api.openapi.operations import ErrorType
    from gateway.protocol.body import Json

_SCHEMA = "#/components/schemas/{name}"
_DESCRIPTION = (
    "A large model, the teacher, writes the first tokens of an answer. A small model, the student, writes the rest. "
    "Routes, bodies and errors are compatible with the OpenAI API. The gateway validates the fields listed here. "
    "It passes other fields to the engine unchanged."
)


def document(routes: Iterable[web.AbstractRouteDef]) -> StaticDocument:
    """Return the document of the routes. Raises KeyError if `OPERATIONS` does not describe a handler."""
    paths: dict[str, Json] = {}
    for route in routes:
        assert isinstance(route, web.RouteDef), "the route table contains single routes only"
        path = re.sub(r"{(\w+):[^}]*}", r"{\1}", route.path)
        described = _operation(path, route.handler.__name__, OPERATIONS[route.handler])
        paths.setdefault(path, {})[route.method.lower()] = described
    body = orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "GKT Gateway",
                "version": __version__,
                "description": _DESCRIPTION,
                "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "security": [{"key": []}, {"anthropic_key": []}],
            "paths": paths,
            "components": {
                "schemas": _schemas(),
                "headers": _headers(),
                "parameters": _PARAMETERS,
                "securitySchemes": {
                    "key": {"type": "http", "scheme": "bearer"},
                    "anthropic_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
        }
    )
    return StaticDocument(body, sha256(body).hexdigest()[:32])


def _operation(path: str, name: str, operation: Operation) -> Json:
    described: Json = {"operationId": name, "summary": operation.summary, "tags": [operation.tag]}
    parameters: list[Json] = [
        {"name": part, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for part in re.findall(r"{(\w+)}", path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in operation.query.items()
    ]
    is_api = path.startswith(API)
    if is_api:
        parameters.append({"$ref": "#/components/parameters/ClientRequestId"})
    of_anthropic = is_messages(path)
    if of_anthropic and operation.event is not None:
        parameters += [{"$ref": f"#/components/parameters/{name}"} for name in ("MessagesVersion", "AnthropicBeta")]
    if operation.event is not None:
        parameters += [{"$ref": f"#/components/parameters/{name}"} for name in ("Mode", "GuidanceTokens")]
    if operation.has_receipt and operation.body is not None:
        parameters.append({"$ref": "#/components/parameters/Tags"})
    if operation.anthropic_reply is not None:
        parameters.append({"$ref": "#/components/parameters/AnthropicVersion"})
    if operation.versioned:
        parameters.append({"$ref": "#/components/parameters/EdgeVersion"})
    if parameters:
        described["parameters"] = parameters
    if operation.public:
        described["security"] = []
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    headers = ["x-request-id"]
    if of_anthropic:
        headers += ["request-id", "x-client-request-id"]
    elif is_api:
        headers += ["x-client-request-id", "openai-version", "openai-processing-ms"]
    facts = fact_headers(FACTS) if operation.has_receipt else ()
    described["responses"] = {
        "200": _response("Success.", _content(operation, of_anthropic=of_anthropic), [*headers, *facts]),
        **{
            str(status): _response(text, _plain(values) if values else {}, headers)
            for status, (text, values) in operation.other_replies.items()
        },
        **_error_responses(operation.all_errors, headers, of_anthropic=of_anthropic),
    }
    return described


def _content(operation: Operation, *, of_anthropic: bool) -> Json:
    if operation.reply is None:
        return {"application/json": {"schema": {"type": "object"}}}
    if isinstance(operation.reply, tuple):
        return _plain(operation.reply)
    content = _json(operation.reply)
    if operation.anthropic_reply is not None:
        content["application/json"]["schema"] = {"anyOf": [_ref(operation.reply), _ref(operation.anthropic_reply)]}
    if operation.event is not None:
        schema = _event(operation.event)
        if of_anthropic:
            schema = _named_event(operation.event, AnthropicErrorReply)
        elif operation.event is ResponseEvent:
            schema = _named_event(operation.event)
        content["text/event-stream"] = {"schema": schema}
    return content


def _event(data: type[msgspec.Struct]) -> Json:
    """Return the schema of one event of a stream. OpenAPI 3.2 has `itemSchema` for it; 3.1 only `schema`."""
    content: Json = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [_ref(data), _ref(ErrorReply)]}}
    return {
        "type": "object",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, content]}},
        "required": ["data"],
    }


def _named_event(*data: type[msgspec.Struct]) -> Json:
    """Return the schema of one event whose name is the `type` of its data. Its stream has no `[DONE]`."""
    content: Json = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [*map(_ref, data)]}}
    properties = {"event": {"type": "string"}, "data": {"type": "string", **content}}
    return {"type": "object", "properties": properties, "required": ["event", "data"]}


def _error_responses(errors: Sequence[ErrorType], header_names: list[str], *, of_anthropic: bool) -> Json:
    by_status: dict[int, list[ErrorType]] = {}
    for error in errors:
        status = anthropic_status(error) if of_anthropic else error.status
        by_status.setdefault(status, []).append(error)
    reply = AnthropicErrorReply if of_anthropic else ErrorReply
    responses: Json = {}
    for status, same in sorted(by_status.items()):
        phrase = "Overloaded" if status == OVERLOADED else HTTPStatus(status).phrase
        lines = [phrase + ":", *(f"- {_error_line(error)}" for error in same)]
        retries = {error.retry for error in same}
        headers = _header_refs(header_names)
        if retries != {None}:
            values = [value for value, retry in (("true", True), ("false", False)) if retry in retries]
            headers["x-should-retry"] = {
                "description": "Whether a retry may succeed. If the header is absent, clients decide by the status.",
                "required": None not in retries,
                "schema": {"type": "string", "enum": values},
            }
        if True in retries:
            headers |= _header_refs(("Retry-After", "retry-after-ms"))
        responses[str(status)] = {"description": "\n".join(lines), "headers": headers, "content": _json(reply)}
    return responses


def _error_line(error: ErrorType) -> str:
    if error is NeverFits:
        return f"`{error.label}` without `Retry-After`: the request alone exceeds the limit"
    retry = {True: "retry after `Retry-After`", False: "a retry does not help", None: "a retry may help"}
    return f"`{error.label}`: {retry[error.retry]}" + (f"; `code` is `{error.code}`" if error.code else "")


def _response(description: str, content: Json, headers: Iterable[str]) -> Json:
    response = {"description": description, "headers": _header_refs(headers)}
    return {**response, "content": content} if content else response


def _header_refs(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _optional_header(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


_PARAMETERS: Json = {
    "ClientRequestId": _optional_header(
        "X-Client-Request-Id",
        "The caller's id of the request. The gateway returns and logs it.",
        {"type": "string", "maxLength": MAX_CLIENT_ID_CHARS, "pattern": r"^[\x20-\x7e]*$"},
    ),
    "Mode": _optional_header(
        routing.MODE,
        "Mode of this request. Rejected if the tenant's policy does not allow it.",
        {"enum": list(get_args(OverrideMode))},
    ),
    "GuidanceTokens": _optional_header(
        routing.TOKENS,
        "Maximum number of guidance tokens. Rejected if the tenant's policy does not allow it.",
        {"type": "integer", "minimum": 1, "maximum": MAX_GUIDANCE_TOKENS},
    ),
    "Tags": _optional_header(
        tags.HEADER,
        f"Tags of this request, separated by commas: at most {tags.MAX_TAGS}, each of {tags.RULE}.",
        {"type": "string", "pattern": f"^{tags.LIST.pattern}$"},
    ),
    "AnthropicVersion": _optional_header(
        ANTHROPIC_VERSION, "The reply then has the shape of Anthropic's API.", {"type": "string"}
    ),
    "MessagesVersion": _optional_header(
        "anthropic-version",
        "Version of Anthropic's API. Only Anthropic's models get it.",
        {"type": "string", "maxLength": MAX_HEADER_CHARS, "pattern": r"^[\x20-\x7e]*$"},
    ),
    "AnthropicBeta": _optional_header(
        "anthropic-beta",
        "Beta features. Only Anthropic's models get them.",
        {"type": "string", "maxLength": MAX_HEADER_CHARS, "pattern": r"^[\x20-\x7e]*$"},
    ),
    "EdgeVersion": _optional_header(
        VERSION_HEADER,
        "The client's version of the edge protocol. The default is the newest.",
        {"type": "integer", "minimum": MIN_VERSION, "maximum": MAX_VERSION},
    ),
}


def _headers() -> Json:
    text: Json = {"type": "string"}
    request_id, version = {**text, "pattern": "^req_[0-9a-f]+$"}, {**text, "const": OPENAI_VERSION}
    seconds, milliseconds = ({"type": "integer", "minimum": 1, "maximum": most} for most in (120, 120_000))
    headers: dict[str, tuple[str, bool, Json]] = {
        "x-request-id": ("Id of the request and of its receipt.", True, request_id),
        "request-id": ("Id of the request, as x-request-id.", True, request_id),
        "x-client-request-id": ("The caller's X-Client-Request-Id.", False, text),
        "openai-version": ("Version of the OpenAI API.", True, version),
        "openai-processing-ms": ("Milliseconds until the response headers were sent.", True,
                                 {"type": "integer", "minimum": 0}),
        "Retry-After": ("Seconds to wait before a retry.", True, seconds),
        "retry-after-ms": ("Milliseconds to wait before a retry.", True, milliseconds),
        **{name: (fact, False, text) for name, fact in fact_headers(FACTS).items()},
    }  # fmt: skip
    return {
        name: {"description": description, "required": required, "schema": schema}
        for name, (description, required, schema) in headers.items()
    }


def _json(struct: type[msgspec.Struct]) -> Json:
    return {"application/json": {"schema": _ref(struct)}}


def _plain(values: tuple[str, ...]) -> Json:
    return {"text/plain": {"schema": {"type": "string", "enum": list(values)}}}


def _ref(struct: type[msgspec.Struct]) -> Json:
    return {"$ref": _SCHEMA.format(name=struct.__name__)}


def _schemas() -> dict[str, Json]:
    used = [
        struct
        for operation in OPERATIONS.values()
        for struct in (operation.body, operation.reply, operation.anthropic_reply, operation.event)
        if isinstance(struct, type)
    ]
    _, schemas = msgspec.json.schema_components([*used, ErrorReply, AnthropicErrorReply], ref_template=_SCHEMA)
    errors = {error for operation in OPERATIONS.values() for error in operation.all_errors}
    errors |= {NotFound, MethodNotAllowed}
    fields = schemas["Error"]["properties"]
    fields["type"] = {"type": "string", "enum": sorted({error.kind for error in errors})}
    codes = ", ".join(f"`{code}`" for code in sorted({error.code for error in errors if error.code}))
    described = f"One of {codes}. A 400 may have the code of the engine that rejected the request."
    fields["code"] = {"type": ["string", "null"], "description": described}
    for name, schema in schemas.items():
        if name in RULES:
            schema["allOf"] = [RULES[name]]
    schemas["Unknown"] = UNKNOWN
    return {name: _tidy(schema) for name, schema in schemas.items()}


def _tidy(schema: Any) -> Any:
    """Return a schema without null defaults and titles. Amounts are optional, since a route may hide its costs."""
    if isinstance(schema, list):
        return [_tidy(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {name: _tidy(part) for name, part in schema.items() if not (name == "default" and part is None)}
    if isinstance(tidy.get("title"), str):
        del tidy["title"]
    if isinstance(tidy.get("description"), str):
        tidy["description"] = " ".join(tidy["description"].partition("Attributes:")[0].split())
    if isinstance(tidy.get("required"), list):
        amounts = {name for name, part in tidy["properties"].items() if part.get("format") == "decimal"}
        tidy["required"] = [name for name in tidy["required"] if name not in amounts]
    return tidy
