"""Unusual targets, methods, headers and connections give a request no additional access."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import orjson
import pytest

from gateway.api.routes import ROUTES
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

WITH_KEY = f"Authorization: Bearer {KEY}"


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with (
        FakeEngine(says("Hi")).running() as engine,
        running_gateway(
            tmp_path_factory.mktemp("rim"),
            redis_url=redis_url,
            models=[model("big", "tgi", engine.url), model("small", "openai", f"{engine.url}/v1", continuation="none")],
            routes=[guided(), STUDENT_ONLY],
        ) as process,
    ):
        yield process


def ask(url: str, line: str, *headers: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send the raw bytes of a request; return the status and all received bytes until the gateway closes."""
    host, _, port = url.removeprefix("http://").partition(":")
    raw = "\r\n".join([line, "Host: x", "Connection: close", *headers, "", ""]).encode() + body
    with closing(socket.create_connection((host, int(port)), timeout=10)) as connection:
        connection.sendall(raw)
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
    reply = b"".join(parts)
    return int(reply.split(b" ", 2)[1]), reply


TARGETS = [
    "/v1/models",
    "/v1/%6dodels",
    "//v1/models",
    "/v1//models",
    "/v1/./models",
    "/healthz/../v1/models",
    "/healthz/%2e%2e/v1/models",
    "/healthz%2f..%2fv1/models",
    "/v1/models/..%2f..%2fhealthz",
    "/v1/models/%2e%2e/%2e%2e/healthz",
    "/v1/models/%00",
    "/v1/models;/healthz",
    "/v1/models?/healthz",
    "/v1/receipts/..%2f..%2fhealthz",
    "/V1/MODELS",
    "http://localhost/v1/models",
    "http://healthz/v1/models",
    "http://x/healthz/../v1/models",
    "http://user:healthz@x/v1/models",
    "*",
]


@pytest.mark.parametrize("target", TARGETS)
def test_no_spelling_of_a_path_avoids_the_key(gate: GatewayProcess, target: str) -> None:
    """The handler that answers also checks the key; no other code reads the path."""
    status, reply = ask(gate.url, f"GET {target} HTTP/1.1")
    assert status in {400, 401, 404, 405}
    assert b'"object"' not in reply


@pytest.mark.parametrize("target", ["/metrics", "/queue", "/healthz/../metrics"])
@pytest.mark.parametrize("extra", ["", "Host", "X-Forwarded-Host", "X-Original-URL", "X-Rewrite-URL", "Forwarded"])
def test_no_header_leads_to_the_admin_listener(gate: GatewayProcess, target: str, extra: str) -> None:
    """The admin routes are on their own port only, with any Host header."""
    admin = gate.admin_url.removeprefix("http://")
    named = [f"{extra}: {target if 'URL' in extra else admin}"] if extra else []
    for line in (f"GET {target} HTTP/1.1", f"GET http://{admin}{target} HTTP/1.1"):
        status, reply = ask(gate.url, line, WITH_KEY, *named)
        assert status in {400, 404}  # 400: there are two of Host
        assert b"gkt_" not in reply
        assert b"teachers" not in reply


@pytest.mark.parametrize("host", ["", "127.0.0.1:8081", "evil.example", "[::1", "a b", "/v1", "x@y:0", "\x7f"])
def test_the_host_header_decides_nothing(gate: GatewayProcess, host: str) -> None:
    """The reply is unchanged with a key; without one it is 401."""
    at, _, port = gate.url.removeprefix("http://").partition(":")
    for key, meant in ((WITH_KEY, b"200"), ("X: y", b"401")):
        with closing(socket.create_connection((at, int(port)), timeout=10)) as connection:
            connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n{key}\r\n\r\n".encode())
            assert connection.recv(65_536).split(b" ", 2)[1] in {meant, b"400"}


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "PROPFIND"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/healthz"])
def test_a_method_that_a_path_does_not_have_is_405_and_sends_nothing_back(
    gate: GatewayProcess, method: str, path: str
) -> None:
    """TRACE would return the key."""
    status, reply = ask(gate.url, f"{method} {path} HTTP/1.1", WITH_KEY, "X-Canary: canary")
    assert status == 405
    assert b"canary" not in reply
    assert KEY.encode() not in reply


@pytest.mark.parametrize("line", ["CONNECT x:443 HTTP/1.1", "CONNECT /v1/models HTTP/1.1", "BREW /v1/models HTTP/1.1",
                                  "PRI * HTTP/2.0", "GET /v1/models HTTP/3.0"])  # fmt: skip
def test_other_protocols_than_http_1_are_rejected(gate: GatewayProcess, line: str) -> None:
    """The gateway supports no tunnel and no other protocol."""
    status, reply = ask(gate.url, line, WITH_KEY)
    assert 400 <= status < 500
    assert b'"object"' not in reply


def test_head_requires_the_key_and_has_no_body(gate: GatewayProcess) -> None:
    """HEAD behaves as GET."""
    assert ask(gate.url, "HEAD /v1/models HTTP/1.1")[0] == 401
    status, reply = ask(gate.url, "HEAD /v1/models HTTP/1.1", WITH_KEY)
    assert status == 200
    assert reply.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_an_upgrade_is_not_taken(gate: GatewayProcess, upgrade: str) -> None:
    """The request is answered without the upgrade."""
    headers = ["Connection: Upgrade, HTTP2-Settings, close", f"Upgrade: {upgrade}", "HTTP2-Settings: x"]
    host, _, port = gate.url.removeprefix("http://").partition(":")
    for key, meant in ((WITH_KEY, b"200"), ("X: y", b"401")):
        raw = "\r\n".join(["GET /v1/models HTTP/1.1", "Host: x", key, *headers, "", ""]).encode()
        with closing(socket.create_connection((host, int(port)), timeout=10)) as connection:
            connection.sendall(raw)
            assert connection.recv(65_536).split(b" ", 2)[1] == meant


def test_requests_without_a_key_are_rejected_before_the_body_is_read(gate: GatewayProcess) -> None:
    """Without a key nobody can make the gateway hold megabytes."""
    host, _, port = gate.url.removeprefix("http://").partition(":")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n"
    with closing(socket.create_connection((host, int(port)), timeout=10)) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401 ")


def test_a_404_quotes_only_a_part_of_a_long_path(gate: GatewayProcess) -> None:
    """The reply contains a part of the path; the log does not contain it."""
    status, reply = ask(gate.url, "GET /canary/" + 4000 * "x" + " HTTP/1.1")
    message = orjson.loads(reply.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert (status, message.count("x") < 120, len(message) < 1_200) == (404, True, True)
    assert message.startswith("There is no GET /canary/xxx")
    assert "canary" not in gate.raw_log


def test_the_routes_are_the_reviewed_ones() -> None:
    """No route runs, fetches, renders or loads anything that a caller names. A new one belongs in docs/security.md."""
    assert {(route.method, route.path) for route in ROUTES} == {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/responses/{id}"),
        ("DELETE", "/v1/responses/{id}"),
        ("GET", "/v1/responses/{id}/input_items"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/guidance"),
        ("POST", "/v1/guidance/usage"),
        ("POST", "/v1/guidance/{receipt}/usage"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model:.+}"),
        ("GET", "/v1/receipts/{id}"),
        ("POST", "/v1/receipts/{id}/feedback"),
        ("GET", "/v1/limits"),
        ("GET", "/v1/usage"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/openapi.json"),
    }
