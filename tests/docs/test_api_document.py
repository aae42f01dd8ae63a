"""A running gateway held to its own OpenAPI document: whatever is sent, each reply is one that the document knows."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.generation.meta import TestPhase
from schemathesis.specs.openapi.checks import ignored_auth

from gateway.accounting.worst_case import DEFAULT_MAX_OUTPUT_TOKENS
from gateway.api.openapi.document import document
from gateway.api.routes import ROUTES
from gateway.policy.caller_fields import SERVER_FIELDS
from gateway.protocol.anthropic.tools import CLIENT_TOOL_PATTERN
from gateway.protocol.field_names import FORBIDDEN_FIELDS, REFUSED
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITTEN = document(ROUTES)
# The key is ours to send; that replies without one are refused is checked all the same.
# A body above `server.max_body` is refused with a 413, whatever is wrong with it.
REFUSALS = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx"]


def _api(**phases: Any) -> Any:
    config = {
        "generation": {"with-security-parameters": False},
        "checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}},
        "phases": phases,
    }
    return schemathesis.openapi.from_dict(json.loads(WRITTEN.body), config=schemathesis.Config.from_dict(config))


ONLY_RANDOM = _api(coverage={"enabled": False})

# Each process that collects this file computes the thousands of cases of the phase `coverage`, which takes 11 s of CPU.
API = _api() if os.environ.get("GKT_TESTS") == "full" else ONLY_RANDOM
OPENAPI = "/openapi.json"
SCHEMAS = json.loads(WRITTEN.body)["components"]["schemas"].values()
FIELDS = {name for schema in SCHEMAS for name in schema.get("properties", {})} | REFUSED.keys()
FIELDS |= {name for names in SERVER_FIELDS.values() for name in names}
DOCUMENTED_DEPTH = 2
TGI_REFUSES = ("n", "best_of", "logit_bias", "response_format")
MODES = ["student", "teacher"]
ANYTHING = {"modes": MODES, "guidance_tokens": 4096}


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with (
        FakeEngine(says("Hi there")).running() as engine,
        running_gateway(
            tmp_path_factory.mktemp("document"),
            redis_url=redis_url,
            redis={"timeout": "5s"},
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[
                {**guided(), "overrides": ANYTHING},
                STUDENT_ONLY,
                {"model": "vectors", "mode": "embeddings", "student": "small"},
            ],
        ) as process,
    ):
        yield process


def _whole(value: Any) -> Any:
    """5 for 5.0: a schema does not tell them apart, and the gateway takes no 5.0 for an integer."""
    if isinstance(value, dict):
        return {name: _whole(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _no_orders(value: Any, depth: int = 0) -> Any:
    """Without what says where a call goes, where it stands deeper than the document's words reach; it is refused."""
    if isinstance(value, dict):
        return {
            name: _no_orders(part, depth + 1)
            for name, part in value.items()
            if depth < DOCUMENTED_DEPTH or name not in FORBIDDEN_FIELDS
        }
    if isinstance(value, list):
        return [_no_orders(part, depth + isinstance(part, list)) for part in value]
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    """As `n` and `best_of` may be."""
    return _is_whole(value) and 1 <= value <= 128


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_client_tool(kind: Any) -> bool:
    return isinstance(kind, str) and re.search(CLIENT_TOOL_PATTERN, kind) is not None


def _adapt_to_tgi(case: schemathesis.Case) -> None:
    """Adapt a request for the teacher, whose protocol takes few fields of a prompt, and not all values of a chat's."""
    if case.path == "/v1/completions":
        del case.headers["x-gkt-mode"]
    elif case.path == "/v1/chat/completions" and isinstance(case.body, dict):
        case.body = {name: part for name, part in case.body.items() if name not in TGI_REFUSES}
    elif case.path == "/v1/messages" and isinstance(case.body, dict):
        case.body = {name: part for name, part in case.body.items() if name not in ("output_config", "output_format")}


def _adapt_prompt(body: dict[str, Any]) -> None:
    prompt = body.get("prompt")
    if prompt is None:
        body.pop("messages", None)  # with messages, a prompt is required: the body is a chat's
    elif isinstance(prompt, list) and not all(isinstance(one, int) for one in prompt):
        body["prompt"] = prompt[:8]  # JSON Schema does not multiply them by `n`, up to 128


def _without_repetitions(items: list[Any]) -> list[Any]:
    """Keep the first reference to an item. OpenAI rejects a second one, too."""
    seen: list[Any] = []
    kept = []
    for one in items:
        if isinstance(one, dict) and one.get("type") == "item_reference":
            if one.get("id") in seen:
                continue
            seen.append(one.get("id"))
        kept.append(one)
    return kept


def _adapt_tools(path: str, body: dict[str, Any]) -> None:
    """Drop tools that the engine does not know, and outputs and choices whose call or tool may not be there."""
    tools, items = body.get("tools"), body.get("input")
    if path == "/v1/messages" and isinstance(tools, list):
        # The engine is no model of Anthropic, and does not know the tools that Anthropic defines.
        body["tools"] = [tool for tool in tools if not (isinstance(tool, dict) and is_client_tool(tool.get("type")))]
    elif path == "/v1/responses":
        # JSON Schema compares no two fields.
        if isinstance(items, list):
            kept = [one for one in items if not (isinstance(one, dict) and str(one.get("type")).endswith("_output"))]
            body["input"] = [*_without_repetitions(kept), {"role": "user", "content": "Hi"}]
        if isinstance(body.get("tool_choice"), dict) or not tools:
            body.pop("tool_choice", None)


def _select_pages(case: schemathesis.Case) -> None:
    """Add the header without which the query of a list of models has no effect."""
    if case.path == "/v1/models" and case.query:
        case.headers["anthropic-version"] = "2023-06-01"


def conforms(case: schemathesis.Case, gate: GatewayProcess, session: requests.Session) -> None:
    """The reply's status, headers, type and body stand in the document, and no key means 401 where it says so."""
    if case.headers is not None and "x-schemathesis-unknown-property" in case.headers:
        return  # an unknown header has no effect
    _select_pages(case)
    case.body = _no_orders(_whole(case.body))
    if isinstance(case.body, dict):
        # The gateway rejects a field's name in another case. JSON Schema cannot express that.
        case.body = {name: part for name, part in case.body.items() if name in FIELDS or name.casefold() not in FIELDS}
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and case.body["model"]:
        # Otherwise nearly every name would be unknown, and later code not reached.
        case.body["model"] = "vectors" if case.path == "/v1/embeddings" else "chat"
    if isinstance(case.body, dict) and _is_count(case.body.get("best_of")):
        # JSON Schema compares no two fields: that it may be neither below `n` nor, streamed, above it.
        choices = case.body.get("n")
        case.body["best_of"] = choices if _is_count(choices) else 1
    if case.path == "/v1/guidance" and case.headers is not None and case.headers.get("x-gkt-mode") in MODES:
        del case.headers["x-gkt-mode"]  # a mode other than the route's gives no guidance; an unknown mode is refused
    if case.path == "/v1/guidance/usage" and isinstance(case.body, dict) and _is_whole(case.body.get("output_tokens")):
        # The engine has the maximum, not the document.
        case.body["output_tokens"] = min(case.body["output_tokens"], DEFAULT_MAX_OUTPUT_TOKENS)
    if isinstance(case.body, dict) and isinstance(case.body.get("at"), int | float):
        case.body["at"] = None  # nor does JSON Schema know what time it is
    if case.headers is not None and case.headers.get("x-gkt-mode") == "teacher":
        _adapt_to_tgi(case)
    if case.path == "/v1/completions" and isinstance(case.body, dict):
        _adapt_prompt(case.body)
    if case.path == "/v1/usage" and case.query is not None:
        # It has no calendar either, and no list of words in one text.
        fine = {"since": "1h", "until": "", "by": "mode,key", "model": ""}
        case.query = {name: fine.get(name, value) if _is_text(value) else value for name, value in case.query.items()}
    if isinstance(case.body, dict):
        _adapt_tools(case.path, case.body)
    # It calls again without a key. The key is checked before the body, so it need not do so for each value of a field.
    of_a_field = case.meta is not None and case.meta.phase.name is TestPhase.COVERAGE
    response = case.call_and_validate(
        base_url=gate.url,
        session=session,
        headers={"Authorization": f"Bearer {KEY}"},
        excluded_checks=[ignored_auth] if of_a_field else [],
    )
    # The document allows these for every request, so that none of them proves anything about the body.
    assert response.status_code not in (401, 403, 429), response.text
    assert response.status_code < 500, response.text


def test_the_document_is_public_and_cacheable(gate: GatewayProcess) -> None:
    """Without a key, the same for every configuration; who has it already gets no second copy."""
    answer = httpx.get(gate.url + OPENAPI)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.content == WRITTEN.body
    etag = answer.headers["ETag"]
    for known, status in ((etag, 304), (f'"other", {etag}', 304), ("*", 304), ('"other"', 200)):
        again = httpx.get(gate.url + OPENAPI, headers={"If-None-Match": known})
        assert (again.status_code, again.headers["ETag"]) == (status, etag)
        assert bool(again.content) == (status == 200)


@pytest.mark.timeout(600)
@API.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_reply_matches_the_document(
    case: schemathesis.Case, gate: GatewayProcess, session: requests.Session
) -> None:
    conforms(case, gate, session)


@pytest.mark.long
@pytest.mark.timeout(600)
@ONLY_RANDOM.parametrize()
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_reply_matches_the_document_in_many_requests(
    case: schemathesis.Case, gate: GatewayProcess, session: requests.Session
) -> None:
    conforms(case, gate, session)
