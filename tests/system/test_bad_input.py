"""Invalid requests get OpenAI's error body with the name of the field, and no secret of the caller."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

ASKED = [{"role": "user", "content": "Hello"}]
TEXTLESS = {"type": "text"}
AUTHORISED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with (
        FakeEngine(says("Hi")).running() as engine,
        running_gateway(
            tmp_path_factory.mktemp("input"),
            redis_url=redis_url,
            server={"max_body": "10kB"},
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[guided(), STUDENT_ONLY],
        ) as process,
    ):
        wait_until_looked_at(process.admin_url)
        yield process


@pytest.fixture
def caller(gate: GatewayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gate.url, headers=AUTHORISED) as client:
        yield client


def _error(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "chat"}, "messages"),
        ({"model": "chat", "messages": []}, "messages"),
        ({"model": "chat", "messages": "Hello"}, "messages"),
        ({"model": "chat", "messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"model": "chat", "messages": [{"content": "Hello"}]}, "messages[0].role"),
        ({"model": "chat", "messages": [{"role": "foo", "content": "Hello"}]}, "messages[0].role"),
        ({"model": "chat", "messages": [*ASKED, {"role": "user", "content": [5]}]}, "messages[1].content[0]"),
        ({"model": "chat", "messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        ({"model": "chat", "messages": [{"role": "user", "content": [TEXTLESS]}]}, "messages[0].content[0].text"),
        ({"model": "chat", "messages": [*ASKED, {"role": "tool", "content": None}]}, "messages[1].content"),
        ({"messages": ASKED}, "model"),
        ({"model": 7, "messages": ASKED}, "model"),
        ({"model": "chat", "messages": ASKED, "max_tokens": 0}, "max_tokens"),
        ({"model": "chat", "messages": ASKED, "max_completion_tokens": -1}, "max_completion_tokens"),
        ({"model": "chat", "messages": ASKED, "temperature": 2.5}, "temperature"),
        ({"model": "chat", "messages": ASKED, "top_p": "high"}, "top_p"),
        ({"model": "chat", "messages": ASKED, "stream": "yes"}, "stream"),
        ({"model": "chat", "messages": ASKED, "stop": [1]}, "stop[0]"),
        ({"model": "chat", "messages": ASKED, "presence_penalty": 2.5}, "presence_penalty"),
        ({"model": "chat", "messages": ASKED, "frequency_penalty": -2.5}, "frequency_penalty"),
        ({"model": "chat", "messages": ASKED, "n": 0}, "n"),
        ({"model": "chat", "messages": ASKED, "n": 129}, "n"),
        ({"model": "chat", "messages": ASKED, "logit_bias": "x"}, "logit_bias"),
        ({"model": "chat", "messages": ASKED, "user": 5}, "user"),
    ],
)
def test_a_wrong_field_is_named(caller: httpx.Client, body: dict[str, Any], param: str) -> None:
    """400 and invalid_request_error; the SDK does not retry."""
    answer = caller.post("/v1/chat/completions", json=body)
    error = _error(answer)
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"null", b"NaN"])
def test_a_body_other_than_a_json_object_is_400(caller: httpx.Client, raw: bytes) -> None:
    """Any bytes that are not a JSON object get a 400."""
    answer = caller.post("/v1/chat/completions", content=raw)
    assert answer.status_code == 400
    assert "JSON" in _error(answer)["message"]


def test_an_unknown_model_is_404_and_lists_those_of_the_key(caller: httpx.Client) -> None:
    """The list enables the caller to correct the request."""
    answer = caller.post("/v1/chat/completions", json={"model": "gpt-4o", "messages": ASKED})
    error = _error(answer)
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'chat', 'chat-student'" in error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer gk-secret-canary"},
        {"Authorization": "gk-secret-canary"},
        {"Authorization": "Basic gk-secret-canary"},
        {"Authorization": "Bearer"},
        {"Authorization": b"Bearer \xc2\xa0"},
        {"Authorization": f"Bearer {KEY}x"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/receipts/req_1"),
        ("GET", "/v1/limits"),
    ],
)
def test_no_key_or_a_wrong_one_is_401_everywhere(
    gate: GatewayProcess, headers: dict[str, str], method: str, path: str
) -> None:
    """Neither the answer nor the log contains the key that was sent."""
    answer = httpx.request(method, gate.url + path, headers=headers, json={} if method == "POST" else None)
    assert answer.status_code == 401
    assert _error(answer)["code"] == "invalid_api_key"
    assert "canary" not in answer.text
    assert "canary" not in gate.raw_log


def test_two_authorization_headers_are_401_even_if_one_is_right(gate: GatewayProcess) -> None:
    """A proxy may have checked the other one."""
    for other in (f"Bearer {KEY}", "Bearer gk-secret-canary", "Basic canary"):
        headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", other)]
        for order in (headers, headers[::-1]):
            answer = httpx.get(gate.url + "/v1/models", headers=order)
            assert (answer.status_code, _error(answer)["message"]) == (
                401,
                "The request has 2 Authorization headers. Send one.",
            )


def test_a_header_that_cannot_be_parsed_is_not_logged(gate: GatewayProcess) -> None:
    """The line may hold a key."""
    host, _, port = gate.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer gk-header-canary\x01\r\n\r\n")
        assert b"400" in raw.recv(200)
    assert httpx.get(gate.url + "/healthz").status_code == 200
    assert "header-canary" not in gate.raw_log


def test_a_body_with_a_wrong_encoding_is_400(caller: httpx.Client) -> None:
    """The gateway does not report it as an error of its own."""
    answer = caller.post("/v1/chat/completions", content=b"not gzip", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 400
    assert "encoding" in _error(answer)["message"]


def test_after_a_body_that_could_not_be_read_the_connection_ends(gate: GatewayProcess) -> None:
    """The gateway cannot find the start of the next request."""
    host, _, port = gate.url.removeprefix("http://").partition(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Encoding: gzip\r\n"
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(f"{head}Content-Length: 8\r\n\r\nnot gzip".encode())
        reply = b""
        while part := raw.recv(65_536):
            reply += part
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in reply


def test_a_body_over_the_limit_is_413(caller: httpx.Client) -> None:
    """The message states the limit."""
    answer = caller.post("/v1/chat/completions", json={"model": "chat", "messages": ASKED, "pad": "x" * 11_000})
    assert answer.status_code == 413
    assert "10000" in _error(answer)["message"]


def test_unknown_routes_are_404_and_wrong_methods_405(caller: httpx.Client) -> None:
    """The errors have OpenAI's shape; 405 lists the allowed methods."""
    assert caller.get("/v1/nothing").status_code == 404
    assert _error(caller.get("/v1/nothing"))["code"] == "not_found"
    wrong = caller.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert _error(wrong)["code"] == "method_not_allowed"
    assert "POST" in _error(wrong)["message"]


def test_no_reply_reveals_versions_of_libraries(caller: httpx.Client, gate: GatewayProcess) -> None:
    """Versions of Python and aiohttp would help attackers."""
    request_body = {"model": "chat-student", "messages": ASKED}
    replies = [
        caller.post("/v1/chat/completions", json=request_body),
        caller.post("/v1/chat/completions", json={**request_body, "stream": True}),
        caller.post("/v1/chat/completions", json={}),
        caller.get("/v1/nothing"),
        caller.get("/healthz"),
        httpx.get(gate.admin_url + "/metrics"),
        httpx.get(gate.admin_url + "/nothing"),
    ]
    assert [reply.status_code for reply in replies] == [200, 200, 400, 404, 200, 200, 404]
    assert [reply.headers.get_list("Server") for reply in replies] == [["gkt-gateway"]] * len(replies)


def test_an_unknown_receipt_is_404(caller: httpx.Client) -> None:
    """The reply does not reveal the owner of a receipt."""
    assert caller.get("/v1/receipts/req_nobody").status_code == 404


def test_probes_need_no_key_and_metrics_are_not_public(gate: GatewayProcess) -> None:
    """The public listener serves healthz and readyz; only the admin listener serves metrics."""
    assert httpx.get(gate.url + "/healthz").text == "ok\n"
    assert httpx.get(gate.url + "/readyz").text == "ready\n"
    assert httpx.get(gate.url + "/metrics").status_code == 404
    assert "gkt_in_flight" in httpx.get(gate.admin_url + "/metrics").text


@pytest.mark.long
def test_a_flood_beyond_the_bound_is_503_with_retry_after(redis_url: str, tmp_path: Any) -> None:
    """A process bounds its requests in flight; all others get Retry-After."""
    import asyncio

    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return await says("Hi")(request, body)

    async def flood(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, headers=AUTHORISED, timeout=10) as client:
            body = {"model": "chat-student", "messages": ASKED}
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(8)))

    with (
        FakeEngine(slowly).running() as engine,
        running_gateway(
            tmp_path,
            redis_url=redis_url,
            server={"max_in_flight": 3},
            models=[model("big", "tgi", engine.url), model("small", "openai", f"{engine.url}/v1", continuation="none")],
            routes=[STUDENT_ONLY],
        ) as process,
    ):
        answers = asyncio.run(flood(process.url))
        refused = [answer for answer in answers if answer.status_code == 503]
        for answer in answers:
            found = _receipt_of(process, answer)
            assert found.status_code == (404 if answer in refused else 200), found.text
        metrics = httpx.get(process.admin_url + "/metrics").text
    assert len(refused) == 5
    assert all(_error(answer)["code"] == "overloaded" and answer.headers["Retry-After"] for answer in refused)
    assert sum(answer.status_code == 200 for answer in answers) == 3
    assert 'gkt_limited_total{limit="concurrent_requests",tenant="acme"} 5.0' in metrics
    assert 'gkt_refused_total{status="overloaded"} 5.0' in metrics
    assert 'status="overloaded"' not in "".join(line for line in metrics.splitlines() if "gkt_requests_total" in line)


def _receipt_of(process: GatewayProcess, answer: httpx.Response) -> httpx.Response:
    """Return the reply for the receipt of a sent answer; its process writes receipts immediately."""
    return httpx.get(f"{process.url}/v1/receipts/{answer.headers['x-request-id']}", headers=AUTHORISED)
