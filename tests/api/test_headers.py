"""The headers that OpenAI's clients read, on every reply of a running gateway."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from aiohttp import web
from openai import OpenAI

from gateway.accounting.receipt import REQUEST_ID
from gateway.usage.tables import time_of
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

ASKED = {"model": "chat-student", "messages": [{"role": "user", "content": "Hello"}]}
CHAT = "/v1/chat/completions"
# Each fails once: one that asks for a pause is left alone afterwards.
FAILING = tuple(f"failing-{count}" for count in range(7))
_failing = iter(FAILING)


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(says("Hi there")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def gate(engine: FakeEngine, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(
        tmp_path_factory.mktemp("headers"),
        redis_url=redis_url,
        models=[
            model("big", "tgi", engine.url),
            *(model(name, "openai", f"{engine.url}/v1", continuation="none") for name in ("small", *FAILING)),
        ],
        routes=[
            STUDENT_ONLY,
            *({"model": name, "mode": "student", "student": name, "retries": {"num_retries": 0}} for name in FAILING),
        ],
    ) as process:
        yield process


@pytest.fixture
def caller(gate: GatewayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gate.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def replies(caller: httpx.Client, headers: dict[str, str] | None = None) -> list[httpx.Response]:
    """Return one reply of each kind: JSON, a stream, a list, a gateway error, an aiohttp error, and a probe."""
    return [
        caller.post(CHAT, json=ASKED, headers=headers),
        caller.post(CHAT, json={**ASKED, "stream": True}, headers=headers),
        caller.get("/v1/models", headers=headers),
        caller.post(CHAT, json={}, headers=headers),
        caller.get("/v1/nothing", headers=headers),
        caller.get("/healthz", headers=headers),
    ]


def test_ids_of_requests_differ_and_a_fork_repeats_none() -> None:
    code = """import os; from gateway.api.error_body import new_request_id as new
ids = {new() for _ in range(300)}
child = os.fork()
if child: os.waitpid(child, 0)
print(len(ids), new(), flush=True)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    (count, first), (_, second) = (line.split() for line in run.stdout.splitlines())
    assert count == "300"
    assert REQUEST_ID.fullmatch(first)
    assert first[12:] != second[12:]


def test_every_api_reply_has_version_and_duration(caller: httpx.Client) -> None:
    """Errors and streams have both headers; probes have none."""
    answers = replies(caller)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 400, 404, 200]
    assert all(answer.headers.get_list("x-request-id")[0].startswith("req_") for answer in answers)
    assert [answer.headers.get("openai-version") for answer in answers] == ["2020-10-01"] * 5 + [None]
    spent = [answer.headers.get("openai-processing-ms") for answer in answers]
    assert spent[-1] is None
    assert all(0 <= int(one or "-1") < 5_000 for one in spent[:-1])


def test_a_request_id_begins_with_its_time(caller: httpx.Client) -> None:
    began = int(time.time())
    ids = [answer.headers["x-request-id"] for answer in replies(caller)]
    assert all(REQUEST_ID.fullmatch(one) for one in ids)
    assert len({one[12:] for one in ids}) == len(ids)
    assert all(began <= (time_of(one) or 0) <= time.time() for one in ids)


def test_the_time_of_a_stream_is_that_to_its_head(caller: httpx.Client, engine: FakeEngine) -> None:
    """Headers cannot hold the time of the rest."""

    async def late(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return await says("Hi")(request, body)

    usual, engine.behave = engine.behave, late
    try:
        answer = caller.post(CHAT, json={**ASKED, "stream": True})
    finally:
        engine.behave = usual
    assert 300 <= int(answer.headers["openai-processing-ms"]) < 5_000


def test_the_callers_id_is_in_the_reply_and_in_the_log(caller: httpx.Client, gate: GatewayProcess) -> None:
    """Every log line of the request has both ids; the next request on the connection has no caller id."""
    name = "mine-" + "x" * 507
    answers = replies(caller, {"X-Client-Request-Id": name})
    assert [answer.headers.get_list("x-client-request-id") for answer in answers] == [[name]] * 5 + [[]]
    after = caller.post(CHAT, json=ASKED)
    assert "x-client-request-id" not in after.headers
    line = gate.wait_for_log("request", id=answers[0].headers["x-request-id"])
    assert line["client_request_id"] == name
    assert "client_request_id" not in gate.wait_for_log("request", id=after.headers["x-request-id"])
    assert name not in httpx.get(gate.admin_url + "/metrics").text


@pytest.mark.parametrize("name", [b"x" * 513, "Zürich".encode(), b"\xff", b"a\tb"])
def test_an_id_that_openai_would_not_take_is_400(caller: httpx.Client, name: bytes) -> None:
    """The error names the header and does not quote it."""
    answer = caller.post(CHAT, json=ASKED, headers={b"X-Client-Request-Id": name})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Client-Request-Id")
    assert "x-client-request-id" not in answer.headers
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("status", "headers", "retry"),
    [
        (429, {"Retry-After": "0.25"}, ("true", "1", "250")),
        (429, {}, ("true", "1", "1000")),
        (503, {"Retry-After": "86400"}, ("true", "120", "120000")),
        (500, {}, (None, None, None)),
        (400, {}, ("false", None, None)),
        (404, {}, ("false", None, None)),
    ],
)
def test_errors_state_whether_and_when_to_retry(
    caller: httpx.Client, engine: FakeEngine, status: int, headers: dict[str, str], retry: tuple[str | None, ...]
) -> None:
    """An error without a known time has no retry headers. No stated time exceeds what clients wait."""

    async def fails(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({}, status=status, headers=headers)

    usual, engine.behave = engine.behave, fails
    try:
        answer = caller.post(CHAT, json={**ASKED, "model": next(_failing)})
    finally:
        engine.behave = usual
    advice = tuple(answer.headers.get(name) for name in ("x-should-retry", "Retry-After", "retry-after-ms"))
    assert advice == retry


def test_openais_sdk_follows_the_retry_headers(gate: GatewayProcess, engine: FakeEngine) -> None:
    """The SDK retries after retry-after-ms, and never an error that a retry cannot resolve, 502 included."""
    statuses = iter([429, 401])
    calls = 0

    async def fails(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.json_response({}, status=next(statuses), headers={"Retry-After": "0.05"})

    usual, engine.behave = engine.behave, fails
    try:
        with (
            OpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=5) as client,
            pytest.raises(openai.InternalServerError) as caught,
        ):
            client.chat.completions.create(model=next(_failing), messages=[{"role": "user", "content": "Hi"}])
    finally:
        engine.behave = usual
    assert calls == 2
    assert caught.value.code == "engine_rejected"
