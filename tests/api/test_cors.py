"""Pages of allowed origins may call the listeners of a running gateway; all replies have the headers of CORS."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN_KEY = "an-admin-key-for-tests"
CHAT, MODELS = "/v1/chat/completions", "/v1/models"
BODY = {"model": "chat-student", "messages": [{"role": "user", "content": "Hello"}]}
APP, OPS, OTHER = "https://app.example.com", "https://ops.example.com", "https://other.example.com"
CORS = ("access-control-allow-origin", "access-control-expose-headers", "vary")
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-stainless-os"}


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(says("Hi there")).running() as engine:
        yield engine


def gateway(engine: FakeEngine, redis_url: str, tmp_path_factory: pytest.TempPathFactory, **cors: Any) -> Any:
    return running_gateway(
        tmp_path_factory.mktemp("cors"),
        redis_url=redis_url,
        models=[model("big", "tgi", engine.url), model("small", "openai", f"{engine.url}/v1", continuation="none")],
        routes=[STUDENT_ONLY],
        server={"cors": cors.get("server")},
        admin={"key": "env:CORS_ADMIN_KEY", "cors": cors.get("admin")},
        environ={"CORS_ADMIN_KEY": ADMIN_KEY},
    )


@pytest.fixture(scope="module")
def off(engine: FakeEngine, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway(engine, redis_url, tmp_path_factory) as process:
        yield process


@pytest.fixture(scope="module")
def named(engine: FakeEngine, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    server = {"origins": [APP, "http://localhost:5173"]}
    with gateway(engine, redis_url, tmp_path_factory, server=server, admin={"origins": [OPS]}) as process:
        yield process


@pytest.fixture(scope="module")
def public(engine: FakeEngine, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    server = {"origins": ["*"], "headers": ["authorization", "content-type"]}
    with gateway(engine, redis_url, tmp_path_factory, server=server) as process:
        yield process


def replies(gate: GatewayProcess, origin: str | None) -> dict[str, httpx.Response]:
    """Return one reply of each kind."""
    headers = {"Authorization": f"Bearer {KEY}"} | ({} if origin is None else {"Origin": origin})
    with httpx.Client(base_url=gate.url, headers=headers) as client:
        return {
            "json": client.post(CHAT, json=BODY),
            "closing": client.post(CHAT, json=BODY, headers={"Connection": "close"}),
            "stream": client.post(CHAT, json=BODY | {"stream": True}),
            "list": client.get(MODELS),
            "invalid": client.post(CHAT, json={}),
            "no key": client.post(CHAT, json=BODY, headers={"Authorization": ""}),
            "not found": client.get("/v1/nothing"),
            "wrong method": client.get(CHAT),
            "too large": client.post(CHAT, content=b"x" * 8_000_001),
            "probe": client.get("/healthz"),
            "expectation": client.get(MODELS, headers={"Expect": "200-ok"}),
        }


STATUSES = [200, 200, 200, 200, 400, 401, 404, 405, 413, 200, 417]


def test_every_reply_to_a_named_origin_can_be_read(named: GatewayProcess) -> None:
    """Also errors, streams, and the replies that are sent without aiohttp."""
    answers = replies(named, APP)
    assert [answer.status_code for answer in answers.values()] == STATUSES
    shown = {kind: [answer.headers.get_list(name) for name in CORS] for kind, answer in answers.items()}
    assert shown == {kind: [[APP], ["*"], ["Origin"]] for kind in answers}
    assert all("access-control-allow-credentials" not in answer.headers for answer in answers.values())
    assert answers["json"].headers["x-gkt-mode"] == "student"


@pytest.mark.parametrize("origin", [None, OTHER, OPS, "null", "https://app.example.com.evil.example", APP + ":443", ""])
def test_other_origins_get_only_vary(named: GatewayProcess, origin: str | None) -> None:
    """A cache must not serve the reply to an allowed origin."""
    answers = replies(named, origin)
    assert [answer.status_code for answer in answers.values()] == STATUSES
    shown = {kind: [answer.headers.get_list(name) for name in CORS] for kind, answer in answers.items()}
    assert shown == {kind: [[], [], ["Origin"]] for kind in answers}


@pytest.mark.parametrize("origin", [None, APP, "null"])
def test_any_origin_gets_the_same_reply(public: GatewayProcess, origin: str | None) -> None:
    answers = replies(public, origin)
    shown = {kind: [answer.headers.get_list(name) for name in CORS] for kind, answer in answers.items()}
    assert shown == {kind: [["*"], ["*"], []] for kind in answers}


def test_without_the_setting_no_reply_mentions_origins(off: GatewayProcess) -> None:
    answers = replies(off, APP)
    answers["preflight"] = httpx.options(off.url + CHAT, headers=ASKS | {"Origin": APP})
    assert [answer.status_code for answer in answers.values()] == [*STATUSES, 405]
    assert answers["preflight"].headers["allow"] == "POST"
    names = {name for answer in answers.values() for name in answer.headers}
    assert not [name for name in names if name.startswith("access-control") or name == "vary"]


def test_a_preflight_needs_no_key(named: GatewayProcess) -> None:
    """It permits the methods of the path, and the headers that the page asks for."""
    answer = httpx.options(named.url + CHAT, headers=ASKS | {"Origin": APP})
    assert (answer.status_code, answer.content) == (204, b"")
    shown = {name: value for name, value in answer.headers.items() if name.startswith(("access-control", "vary"))}
    assert shown == {
        "access-control-allow-origin": APP,
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": "authorization, x-stainless-os",
        "access-control-max-age": "600",
        "access-control-expose-headers": "*",
        "vary": "Access-Control-Request-Headers, Origin",
    }
    assert answer.headers["x-request-id"].startswith("req_")
    listing = httpx.options(named.url + MODELS + "/a/b", headers=ASKS | {"Origin": APP})
    assert listing.headers["access-control-allow-methods"] == "GET, HEAD"


def test_a_preflight_permits_the_configured_headers_only(public: GatewayProcess) -> None:
    answer = httpx.options(public.url + CHAT, headers=ASKS | {"Origin": OTHER})
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-max-age"] == "600"


@pytest.mark.parametrize("names", ["", "a b", "x,", ",x", "x\ty", "é", "x" * 7_000 + " y"])
def test_malformed_header_names_are_not_returned(named: GatewayProcess, names: str) -> None:
    asks = [("Origin", APP), ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", names)]
    answer = httpx.options(named.url + CHAT, headers=[(name, value.encode()) for name, value in asks])
    assert answer.status_code == 204
    assert "access-control-allow-headers" not in answer.headers


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (CHAT, {"Origin": OTHER, **ASKS}, 405),
        (CHAT, ASKS, 405),
        (CHAT, {"Origin": APP}, 405),
        ("/v1/nothing", {"Origin": APP, **ASKS}, 404),
    ],
)
def test_other_requests_with_options_are_answered_as_before(
    named: GatewayProcess, path: str, headers: dict[str, str], status: int
) -> None:
    answer = httpx.options(named.url + path, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-methods" not in answer.headers
    assert answer.headers["vary"] == "Origin"


def test_a_request_whose_head_is_rejected_has_no_origin(named: GatewayProcess) -> None:
    host, _, port = named.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as caller:
        caller.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nOrigin: {APP}\r\nX: {'x' * 9_000}\r\n\r\n".encode())
        reply = caller.recv(65_536)
    assert reply.split(b" ", 2)[1] == b"431"
    assert b"access-control" not in reply.lower()


def test_pages_of_the_admins_origins_send_the_admin_key(named: GatewayProcess) -> None:
    """Origins of one listener are not allowed at the other."""
    with httpx.Client(base_url=named.admin_url, headers={"Origin": OPS}) as client:
        answer = client.options("/keys", headers=ASKS)
        assert (answer.status_code, answer.headers["access-control-allow-methods"]) == (204, "GET, HEAD, POST")
        for key, status in ((ADMIN_KEY, 200), ("wrong", 401)):
            answer = client.get("/policies", headers={"Authorization": f"Bearer {key}"})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, OPS)
        assert client.get("/static/base.css").headers["vary"] == "Accept-Encoding, Origin"
        for origin in (APP, named.admin_url):
            assert "access-control-allow-origin" not in client.get("/queue", headers={"Origin": origin}).headers


def test_a_session_is_of_no_use_to_pages_of_other_origins(named: GatewayProcess) -> None:
    """They can neither log in nor change anything with it, and browsers hide replies to requests with cookies."""
    here, elsewhere = {"Sec-Fetch-Site": "same-origin"}, {"Origin": OPS, "Sec-Fetch-Site": "same-site"}
    with httpx.Client(base_url=named.admin_url) as client:
        assert client.post("/session", json={"key": ADMIN_KEY}, headers=elsewhere).status_code == 403
        assert client.post("/session", json={"key": ADMIN_KEY}, headers=here).status_code == 200
        assert client.post("/keys", json={}, headers=elsewhere).status_code == 403
        answer = client.get("/policies", headers=elsewhere)
        assert answer.status_code == 200
        assert "access-control-allow-credentials" not in answer.headers
