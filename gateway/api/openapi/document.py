"""The route table, the structs and the error tree -> one JSON document. Pure."""

from __future__ import annotations

import re
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import orjson
from aiohttp import web

from gateway.api.headers import API, MAX_CLIENT_ID_CHARS, OPENAI_VERSION
from gateway.api.keys import StaticDocument
from gateway.api.openapi.operations import FACTS, OPERATIONS, Operation
from gateway.api.openapi.rules import RULES, UNKNOWN
from gateway.api.openapi.shapes import ErrorReply
from gateway.errors import MethodNotAllowed, NotFound
from gateway.policy import overrides
from gateway.policy.schema import MAX_GUIDANCE_TOKENS, OverrideMode
from gateway.protocol.edge import MAX_VERSION, MIN_VERSION, VERSION_HEADER
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.api.openapi.operations import ErrorType
    from gateway.protocol.body import Json

_SCHEMA = "#/components/schemas/{name}"
_ABOUT = (
    "A large model, the teacher, writes the first words of every answer; a small one, the student, writes the rest. "
    "Routes, bodies and errors are OpenAI's. Of a body, the fields named here are checked; whatever else it holds "
    "reaches the engine as it came."
)


def document(routes: Iterable[web.AbstractRouteDef]) -> StaticDocument:
    """The document of these routes. Raises KeyError for a handler that `OPERATIONS` does not describe."""
    paths: dict[str, Json] = {}
    for route in routes:
        assert isinstance(route, web.RouteDef), "the route table holds single routes"
        path = re.sub(r"{(\w+):[^}]*}", r"{\1}", route.path)
        told = _operation(path, route.handler.__name__, OPERATIONS[route.handler])
        paths.setdefault(path, {})[route.method.lower()] = told
    body = orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "GKT Gateway",
                "version": __version__,
                "description": _ABOUT,
                "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "security": [{"key": []}],
            "paths": paths,
            "components": {
                "schemas": _schemas(),
                "headers": _headers(),
                "parameters": {
                    "ClientRequestId": _CLIENT_REQUEST_ID,
                    "Mode": _MODE,
                    "GuidanceTokens": _TOKENS,
                    "EdgeVersion": _EDGE_VERSION,
                },
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )
    return StaticDocument(body, sha256(body).hexdigest()[:32])


def _operation(path: str, name: str, about: Operation) -> Json:
    told: Json = {"operationId": name, "summary": about.summary, "tags": [about.tag]}
    parameters: list[Json] = [
        {"name": part, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for part in re.findall(r"{(\w+)}", path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "description": words, "schema": schema}
        for name, (words, schema) in about.query.items()
    ]
    is_api = path.startswith(API)
    if is_api:
        parameters.append({"$ref": "#/components/parameters/ClientRequestId"})
    if about.streams is not None:
        parameters += [{"$ref": f"#/components/parameters/{name}"} for name in ("Mode", "GuidanceTokens")]
    if about.edge:
        parameters.append({"$ref": "#/components/parameters/EdgeVersion"})
    if parameters:
        told["parameters"] = parameters
    if about.open:
        told["security"] = []
    if about.takes is not None:
        told["requestBody"] = {"required": True, "content": _json(about.takes)}
    own = ["x-request-id"]
    if is_api:
        own += ["x-client-request-id", "openai-version", "openai-processing-ms"]
    told["responses"] = {
        "200": _response("It is done.", _content(about), [*own, *(_fact_headers() if about.accounted else ())]),
        **{
            str(status): _response(why, _plain(words) if words else {}, own)
            for status, (why, words) in about.otherwise.items()
        },
        **_refusals(about.all_errors, own),
    }
    return told


def _content(about: Operation) -> Json:
    if about.gives is None:
        return {"application/json": {"schema": {"type": "object"}}}
    if isinstance(about.gives, tuple):
        return _plain(about.gives)
    content = _json(about.gives)
    if about.streams is not None:
        content["text/event-stream"] = {"schema": _event(about.streams)}
    return content


def _event(data: type[msgspec.Struct]) -> Json:
    """One event of a stream, as OpenAPI 3.2 describes it under `itemSchema`; 3.1 has no other place than `schema`."""
    told: Json = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [_ref(data), _ref(ErrorReply)]}}
    return {
        "type": "object",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, told]}},
        "required": ["data"],
    }


def _refusals(errors: Sequence[ErrorType], own: list[str]) -> Json:
    by_status: dict[int, list[ErrorType]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    refusals: Json = {}
    for status, same in sorted(by_status.items()):
        lines = [HTTPStatus(status).phrase + ":", *(f"- {_verdict(error)}" for error in same)]
        verdicts = {error.retry for error in same}
        headers: Json = {name: {"$ref": f"#/components/headers/{name}"} for name in own}
        if verdicts != {None}:
            words = [word for word, verdict in (("true", True), ("false", False)) if verdict in verdicts]
            headers["x-should-retry"] = {
                "description": "Whether the same request may succeed later; where absent, the status says it.",
                "required": None not in verdicts,
                "schema": {"type": "string", "enum": words},
            }
        if True in verdicts:
            headers |= {name: {"$ref": f"#/components/headers/{name}"} for name in ("Retry-After", "retry-after-ms")}
        refusals[str(status)] = {"description": "\n".join(lines), "headers": headers, "content": _json(ErrorReply)}
    return refusals


def _verdict(error: ErrorType) -> str:
    retry = {True: "try again after `Retry-After`", False: "a retry does not help", None: "a retry may help"}
    return f"`{error.label}`: {retry[error.retry]}" + (f"; `code` is `{error.code}`" if error.code else "")


def _response(description: str, content: Json, headers: list[str]) -> Json:
    told: Json = {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
    }
    if content:
        told["content"] = content
    return told


def _fact_headers() -> list[str]:
    return ["x-gkt-" + name.replace("_", "-") for name in FACTS]


_CLIENT_REQUEST_ID: Json = {
    "name": "X-Client-Request-Id",
    "in": "header",
    "required": False,
    "description": "The caller's own name for the request. It comes back, and stands in the gateway's log.",
    "schema": {"type": "string", "maxLength": MAX_CLIENT_ID_CHARS, "pattern": r"^[\x20-\x7e]*$"},
}

_EDGE_VERSION: Json = {
    "name": VERSION_HEADER,
    "in": "header",
    "required": False,
    "description": "The version of the edge protocol that the client speaks; without it, the newest.",
    "schema": {"type": "integer", "minimum": MIN_VERSION, "maximum": MAX_VERSION},
}

_MODE: Json = {
    "name": overrides.MODE,
    "in": "header",
    "required": False,
    "description": "Another mode for this request alone. Refused where the tenant's policy does not allow it.",
    "schema": {"enum": list(get_args(OverrideMode))},
}
_TOKENS: Json = {
    "name": overrides.TOKENS,
    "in": "header",
    "required": False,
    "description": "How long the teacher's opening of this answer may be. Refused where the policy does not allow it.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_GUIDANCE_TOKENS},
}


def _headers() -> Json:
    text: Json = {"type": "string"}
    request_id: Json = {"type": "string", "pattern": "^req_[0-9a-f]+$"}
    version: Json = {"type": "string", "const": OPENAI_VERSION}
    milliseconds: Json = {"type": "integer", "minimum": 0}
    own: dict[str, tuple[str, bool, Json]] = {
        "x-request-id": ("The request's id, and its receipt's.", True, request_id),
        "x-client-request-id": ("The caller's own X-Client-Request-Id.", False, text),
        "openai-version": ("The version of OpenAI's API that this is.", True, version),
        "openai-processing-ms": ("Milliseconds until the reply's head left.", True, milliseconds),
        "Retry-After": ("Seconds after which to try again.", True, {"type": "integer", "minimum": 1, "maximum": 120}),
        "retry-after-ms": ("The same in milliseconds.", True, {"type": "integer", "minimum": 1, "maximum": 120_000}),
    }
    for name, about in zip(_fact_headers(), FACTS.values(), strict=True):
        own[name] = (about, False, text)
    return {
        name: {"description": about, "required": required, "schema": schema}
        for name, (about, required, schema) in own.items()
    }


def _json(struct: type[msgspec.Struct]) -> Json:
    return {"application/json": {"schema": _ref(struct)}}


def _plain(words: tuple[str, ...]) -> Json:
    return {"text/plain": {"schema": {"type": "string", "enum": list(words)}}}


def _ref(struct: type[msgspec.Struct]) -> Json:
    return {"$ref": _SCHEMA.format(name=struct.__name__)}


def _schemas() -> dict[str, Json]:
    used = [
        struct
        for about in OPERATIONS.values()
        for struct in (about.takes, about.gives, about.streams)
        if isinstance(struct, type)
    ]
    _, schemas = msgspec.json.schema_components([*used, ErrorReply], ref_template=_SCHEMA)
    errors = {error for about in OPERATIONS.values() for error in about.all_errors} | {NotFound, MethodNotAllowed}
    fields = schemas["Error"]["properties"]
    fields["type"] = {"type": "string", "enum": sorted({error.kind for error in errors})}
    fields["code"] = {"enum": [None, *sorted({error.code for error in errors if error.code})]}
    for name, schema in schemas.items():
        if name in RULES:
            schema["allOf"] = [RULES[name]]
    schemas["Unknown"] = UNKNOWN
    return {name: _tidy(schema) for name, schema in schemas.items()}


def _tidy(schema: Any) -> Any:
    """Without what says nothing; and no amount is promised, since a route may hide what its answers cost."""
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
        money = {name for name, part in tidy["properties"].items() if part.get("format") == "decimal"}
        tidy["required"] = [name for name in tidy["required"] if name not in money]
    return tidy
