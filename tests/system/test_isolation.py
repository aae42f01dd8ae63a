"""Two tenants on one gateway: neither reads, changes or learns anything of the other's."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from ruamel.yaml import YAML

from tests.fake_texts import text_reply
from tests.fakes import FakeEngine, reply
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, TEACHER_ONLY, GatewayProcess, guided, model, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

ACME, GLOBEX = {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {OTHER_KEY}"}
_SECRET = "the canary of acme sings"


class World:
    """A gateway whose tenants share a route and have one route each of their own."""

    def __init__(self, process: GatewayProcess, engine: FakeEngine) -> None:
        self.process = process
        self.engine = engine
        self.fails = threading.Event()  # whether the teacher quotes the prompt in an error
        engine.behave = self._behave

    async def _behave(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.fails.is_set():
            return web.json_response({"error": {"message": f"cannot do {body}"}}, status=400)
        if request.path != "/v1/chat/completions":
            return await text_reply(request, body, "Once upon", "length")
        return web.json_response(reply("Once upon a time", "length" if body.get("max_tokens") == 12 else "stop"))

    def ask(self, who: dict[str, str], question: str, model: str = "chat", **headers: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
        return httpx.post(f"{self.process.url}/v1/chat/completions", json=body, headers={**who, **headers}, timeout=30)

    def get(self, who: dict[str, str], path: str) -> httpx.Response:
        return httpx.get(self.process.url + path, headers=who)


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("isolation")
    with FakeEngine(lambda _, __: None).running() as engine:  # type: ignore[arg-type, return-value]
        process = GatewayProcess(
            folder,
            redis_url=redis_url,
            redis={"prefix": "isolation"},
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[guided(), STUDENT_ONLY, guided("chat-shared", share="all")],
        )
        policy = {
            "tenant": "globex",
            "keys": [{"id": "only", "sha256": sha256(OTHER_KEY)}],
            "routes": [guided(), TEACHER_ONLY, guided("chat-shared", share="all")],
        }
        YAML().dump(policy, folder / "policies" / "globex.yaml")
        try:
            process.start()
            yield World(process, engine)
        finally:
            process.close()


@pytest.mark.long
def test_a_tenant_sees_its_own_models_alone(world: World) -> None:
    """The list, a model by name, and the error for a forbidden name."""
    for who, own, others in ((ACME, "chat-student", "chat-teacher"), (GLOBEX, "chat-teacher", "chat-student")):
        listed = world.get(who, "/v1/models").json()["data"]
        assert {one["id"] for one in listed} == {"chat", own, "chat-shared"}
        assert world.get(who, f"/v1/models/{others}").json() == {
            "error": {
                "message": f"There is no model '{others}' for this key.",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
        }
        refused = world.ask(who, "Hello", others)
        assert refused.status_code == 404
        assert f"'{own}'" in refused.text
        assert refused.text.count(others) == 1  # as it was asked for


def test_a_receipt_of_another_tenant_is_not_there(world: World) -> None:
    """The reply is identical to that for an id that never existed."""
    answer = world.ask(ACME, "Whose is it?")
    path = "/v1/receipts/" + answer.headers["x-request-id"]
    assert world.get(ACME, path).json()["tenant"] == "acme"
    strange, never = world.get(GLOBEX, path), world.get(GLOBEX, "/v1/receipts/req_0123456789abcdef01234567")
    assert (strange.status_code, strange.content) == (never.status_code, never.content) == (404, never.content)


def test_guidance_kept_for_one_tenant_serves_no_other(world: World) -> None:
    """Tenants share guidance only if the policies of both have `share: all`."""

    def shared(who: dict[str, str], question: str, model: str) -> str | None:
        return world.ask(who, question, model).headers.get("x-gkt-shared")

    assert shared(ACME, "Is it kept?", "chat") is None
    assert shared(ACME, "Is it kept?", "chat") == "cache"
    assert shared(GLOBEX, "Is it kept?", "chat") is None
    assert shared(ACME, "Is it kept for all?", "chat-shared") is None
    assert shared(GLOBEX, "Is it kept for all?", "chat-shared") == "cache"


def test_a_request_id_is_the_gateways_own(world: World) -> None:
    """A caller cannot choose, guess or overwrite a request id."""
    taken = world.ask(ACME, "First").headers["x-request-id"]
    named = {"x-request-id": taken, "x-client-request-id": "same"}
    own = world.ask(GLOBEX, "Second", **named)
    assert own.headers["x-request-id"] != taken
    assert own.headers["x-client-request-id"] == "same"
    assert world.ask(ACME, "Third", **named).headers["x-client-request-id"] == "same"
    assert world.get(ACME, f"/v1/receipts/{taken}").json()["tenant"] == "acme"
    assert world.get(GLOBEX, f"/v1/receipts/{taken}").status_code == 404
    assert world.get(GLOBEX, "/v1/receipts/same").status_code == 404


@pytest.mark.parametrize("path", ["/v1/receipts/acme", "/v1/receipts/*", "/v1/receipts/acme%7D:v1:receipt:x"])
def test_a_receipts_id_is_no_pattern_and_no_path(world: World, path: str) -> None:
    """The gateway searches the id only within the tenant."""
    assert world.get(GLOBEX, path).status_code == 404


def test_an_error_reaches_only_its_own_caller(world: World) -> None:
    """The engine quotes the prompt. Concurrent callers receive only errors of their own requests."""
    world.fails.set()
    try:
        with ThreadPoolExecutor(12) as pool:
            calls = [
                pool.submit(world.ask, who, question, "chat-shared")
                for _ in range(3)
                for who, question in ((ACME, _SECRET), (GLOBEX, "Nothing special"), (GLOBEX, _SECRET[::-1]))
            ]
            answers = [one.result() for one in calls]
    finally:
        world.fails.clear()
    assert {answer.status_code for answer in answers} == {400}
    assert [_SECRET in answer.text for answer in answers] == [True, False, False] * 3
    assert _SECRET not in world.get(GLOBEX, "/v1/models").text


def test_no_header_of_a_caller_reaches_an_engine(world: World) -> None:
    """The gateway forwards neither the key, nor a cookie, nor any other header. X-Request-Id has its own id."""
    world.engine.headers.clear()
    sent = {"Cookie": "canary", "X-Api-Key": "canary", "X-Custom": "canary", "Proxy-Authorization": "canary",
            "X-Forwarded-For": "canary", "OpenAI-Organization": "canary", "traceparent": "canary",
            "X-Client-Request-Id": "canary", "X-Request-Id": "canary", "User-Agent": "canary"}  # fmt: skip
    answer = world.ask(ACME, "What do they see?", **sent)
    assert answer.status_code == 200
    assert world.engine.headers
    for headers in world.engine.headers:
        assert {name.lower() for name in headers} <= {
            *("host", "accept", "accept-encoding", "content-type", "content-length", "user-agent", "x-request-id")
        }
        assert "canary" not in str(headers)
        assert KEY not in str(headers)
    every = [{name.lower(): text for name, text in headers.items()} for headers in world.engine.headers]
    ids = [headers["x-request-id"] for headers in every if "x-request-id" in headers]  # probes have none
    assert ids == [f"{answer.headers['x-request-id']}-{number}" for number in (1, 2)]


def test_a_caller_cannot_name_its_tenant(world: World) -> None:
    """The key determines the tenant, regardless of headers and fields."""
    headers = {"X-Tenant": "acme", "X-Gkt-Tenant": "acme", "OpenAI-Organization": "acme", "OpenAI-Project": "acme"}
    answer = world.ask(GLOBEX, "Who am I?", **headers)
    assert world.get(GLOBEX, "/v1/receipts/" + answer.headers["x-request-id"]).json()["tenant"] == "globex"
    assert world.get(ACME, "/v1/receipts/" + answer.headers["x-request-id"]).status_code == 404
