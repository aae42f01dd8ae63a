"""The OpenAPI document of the public API is valid, complete, and in agreement with the code."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.api.openapi.document import RULES, document
from gateway.api.openapi.operations import FACTS, OPERATIONS, family
from gateway.api.routes import ROUTES
from gateway.errors import EngineError, GatewayError, RequestError, ServiceError
from tests.docs.test_docs import page

WRITTEN = document(ROUTES)
API: dict[str, Any] = json.loads(WRITTEN.body)
SCHEMAS: dict[str, Any] = API["components"]["schemas"]


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): entry for path, methods in API["paths"].items() for method, entry in methods.items()}


def test_the_document_is_openapi_3_1() -> None:
    """An independent validator accepts it."""
    OpenAPIV31SpecValidator(API).validate()


def test_the_document_contains_exactly_the_public_routes() -> None:
    """The methods are those of the route table."""
    routes = [route for route in ROUTES if isinstance(route, web.RouteDef)]
    table = {(route.method.lower(), re.sub(r":[^}]*", "", route.path)) for route in routes}
    assert len(routes) == len(ROUTES) == len(table)
    assert set(operations()) == table
    assert set(OPERATIONS) == {route.handler for route in routes}


def test_a_route_that_is_not_described_cannot_be_served() -> None:
    """The gateway refuses to start."""

    async def undescribed(_: web.Request) -> web.Response:
        raise AssertionError("not called")

    with pytest.raises(KeyError):
        document([*ROUTES, web.get("/v1/undescribed", undescribed)])


def test_only_probes_and_the_document_need_no_key() -> None:
    """All other operations list 401."""
    is_open = {path for (_, path), entry in operations().items() if entry.get("security") == []}
    assert is_open == {"/healthz", "/readyz", "/openapi.json"}
    assert all(("401" in entry["responses"]) == (path not in is_open) for (_, path), entry in operations().items())


@pytest.mark.parametrize(
    ("schema", "field", "lowest", "highest"),
    [
        ("ChatBody", "temperature", 0, 2),
        ("ChatBody", "top_p", 0, 1),
        ("ChatBody", "n", 1, 128),
        ("ChatBody", "max_completion_tokens", 1, 2**31 - 1),
        ("ChatBody", "top_logprobs", 0, 20),
        ("EmbeddingsBody", "dimensions", 1, 2**31 - 1),
    ],
)
def test_ranges_are_those_of_the_parsers(schema: str, field: str, lowest: int, highest: int) -> None:
    """The document derives the ranges from the parsers' structs."""
    number = SCHEMAS[schema]["properties"][field]["anyOf"][0]
    assert (number["minimum"], number["maximum"]) == (lowest, highest)


def test_every_rule_refers_to_an_existing_body() -> None:
    """No rule refers to a renamed or removed struct."""
    assert set(RULES) <= set(SCHEMAS)
    assert all(SCHEMAS[name]["allOf"] == [rule] for name, rule in RULES.items())


def test_every_error_is_documented_with_status_and_retry() -> None:
    """The errors of engines and of queues are included."""
    refusals = operations()["post", "/v1/chat/completions"]["responses"]
    never = {
        "not_found",
        "method_not_allowed",
        "ticket_unreadable",
        "admin_key_unset",
        "cross_origin",
        "host_unknown",
        "conflict",
    }
    never |= {"role_required", "host_unknown"}  # of the admin listener
    never |= {"route_without_guidance", "edge_version", "edge_closed", "edge_expired"}  # a device meets these
    never.add("feedback_given")  # of feedback
    never.add("previous_response_not_found")  # of /v1/responses
    for error in (*family(RequestError), *family(ServiceError), *family(EngineError), GatewayError):
        if error.label in never:
            continue
        entry = refusals[str(error.status)]
        assert f"`{error.label}`" in entry["description"]
        if error.retry is not None:
            assert str(error.retry).lower() in entry["headers"]["x-should-retry"]["schema"]["enum"]
        if error.retry:
            assert f"`{error.label}`: retry after" in entry["description"]
            assert {"Retry-After", "retry-after-ms"} <= set(entry["headers"])
    assert all(f"`{label}`" not in entry["description"] for label in never for entry in refusals.values())


def test_only_streams_with_done_promise_it() -> None:
    """Events of the Responses and Messages APIs have names instead, and a last event of their own."""
    streams = {
        path: entry["responses"]["200"]["content"]["text/event-stream"]["schema"]
        for (_, path), entry in operations().items()
        if "text/event-stream" in entry["responses"]["200"].get("content", {})
    }
    named = {path for path, schema in streams.items() if "event" in schema["required"]}
    assert named == {"/v1/responses", "/v1/messages"}
    assert all(("[DONE]" in json.dumps(schema)) == (path not in named) for path, schema in streams.items())
    assert "ErrorReply" not in json.dumps(streams["/v1/responses"])


def test_every_fact_of_a_receipt_has_its_header() -> None:
    """The names are those of the code that writes the headers."""
    source = page("gateway/accounting/receipt.py").partition("def facts")[2].partition("_DECODER")[0]
    names = {*re.findall(r'facts\["(\w+)"\]', source), *re.findall(r'"(\w+_ms)"', source)}
    names |= set(re.findall(r'[{,] ?"(\w+)": ', source))
    names |= {name for role in ("teacher", "student") for name in (role, f"{role}_tokens")}
    assert set(FACTS) == names
    headers = operations()["post", "/v1/embeddings"]["responses"]["200"]["headers"]
    assert {"x-gkt-" + name.replace("_", "-") for name in names} <= set(headers)


def test_no_amount_is_promised() -> None:
    """A route may hide the cost of its answers."""
    for name in ("Receipt", "EngineShare"):
        money = {field for field, about in SCHEMAS[name]["properties"].items() if about.get("format") == "decimal"}
        assert money
        assert not money & set(SCHEMAS[name]["required"])


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    """All references resolve within the document."""
    text = WRITTEN.body.decode()
    used = {tuple(one.split("/")) for one in re.findall(r'"#/components/([^"]+)"', text)}
    known = {(kind, name) for kind, parts in API["components"].items() for name in parts}
    assert used | {("securitySchemes", "key"), ("securitySchemes", "anthropic_key")} == known
