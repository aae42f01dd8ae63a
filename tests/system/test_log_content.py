"""The log holds prompts and answers of tenants whose policy sets `log_content`, and of no others."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
import redis as redis_client
from aiohttp import web

from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, TEACHER_ONLY, GatewayProcess, guided, model
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fakes import Handler

QUIET, TOLD = "quietcanary", "toldcanary"
"""In every prompt of acme, whose policy says nothing, and of globex, whose policy says `log_content: true`."""
KEYS = {QUIET: KEY, TOLD: OTHER_KEY}
_CANARY = re.compile(r"(quiet|told)canary")
LITELLM = {"model": "chat-litellm", "mode": "student", "student": "other"}
EMBEDDINGS = {"model": "vectors", "mode": "embeddings", "student": "small"}


def quoted(body: dict[str, Any]) -> str:
    """Return the caller's canary, as an engine finds it in the prompt."""
    found = _CANARY.search(orjson.dumps(body).decode())
    return found[0] if found else "nobody"


async def answers(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Answer with words that include the caller's canary."""
    return await says(f"The ship {quoted(body)}answered sails.")(request, body)


def fails(status: int, shape: Callable[[str], Any]) -> Handler:
    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = shape(f"cannot read '{quoted(body)}' in {orjson.dumps(body).decode()}")
        raw = error if isinstance(error, str) else json.dumps(error)
        return web.Response(text=raw, status=status, content_type="application/json")

    return behave


async def breaks_off(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = await begin_events(request)
    await response.write(event(chunk({"content": f"The {quoted(body)}answered "})))
    await response.write(event({"error": {"message": f"broke at {quoted(body)}", "type": quoted(body)}}))
    return response


async def hangs_up(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = await begin_events(request)
    await response.write(event(chunk({"content": f"The {quoted(body)}answered "})))
    assert request.transport is not None
    request.transport.abort()
    return response


FAILURES: dict[str, Handler] = {
    "openai 400": fails(400, lambda error: {"error": {"message": error, "type": error, "code": error}}),
    "tgi 422": fails(422, lambda error: {"error": error, "error_type": error}),
    "detail 404": fails(404, lambda error: {"detail": error}),
    "text 500": fails(500, lambda error: error),
    "html 502": fails(502, lambda error: f"<html>{error}</html>"),
    "busy 429": fails(429, lambda error: {"error": {"message": error}}),
    "200 with an error": fails(200, lambda error: {"error": {"message": error}}),
    "200 with something else": fails(200, lambda error: {"choices": error, error: error}),
    "200 without JSON": fails(200, lambda error: f"{error}{{"),
    "an error in the middle": breaks_off,
    "an end in the middle": hangs_up,
}


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(answers).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, engine: FakeEngine, redis_url: str) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("content")
    never = {"breaker": {"failures": 1000}}
    process = GatewayProcess(
        folder,
        models=[
            model("big", "tgi", engine.url, **never),
            model("small", "openai", f"{engine.url}/v1", continuation="trailing", **never),
            model("other", "litellm", f"{engine.url}/v1", model="openai/gpt-4o", api_key="env:HOME", **never),
        ],
        routes=[
            guided(cache_ttl="0s"),
            *(one | {"retries": {"num_retries": 0}} for one in (STUDENT_ONLY, TEACHER_ONLY, LITELLM, EMBEDDINGS)),
        ],
        redis_url=redis_url,
        redis={"prefix": "content"},
    )
    with debugging(process, folder):
        wait_until_up(process.admin_url)
        yield process


@contextmanager
def debugging(process: GatewayProcess, folder: Path) -> Iterator[None]:
    """Run the process at log level debug, with a tenant whose content is logged."""
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("format: json", "format: json\n  level: debug"))
    with (folder / "policies" / "globex.yaml").open("a") as policy:
        policy.write("log_content: true\n")
    try:
        process.start()
        yield
    finally:
        process.close()


def ask(gateway: GatewayProcess, canary: str, name: str, *, stream: bool = False, path: str = "chat") -> httpx.Response:
    text = f"Write of {canary}asked."
    body: dict[str, Any] = {"model": name}
    if name == "vectors":
        path, body = "embeddings", body | {"input": [text, "and more"]}
    elif path == "chat":
        path, body = "chat/completions", body | {"messages": [{"role": "user", "content": text}], "stream": stream}
    else:
        path, body = "completions", body | {"prompt": text, "stream": stream}
    headers = {"Authorization": f"Bearer {KEYS[canary]}"}
    return httpx.post(f"{gateway.url}/v1/{path}", json=body, headers=headers, timeout=30, verify=False)


WAYS: list[dict[str, Any]] = [
    {"name": name, "stream": stream, "path": path}
    for name in ("chat", "chat-student", "chat-teacher", "chat-litellm")
    for path in ("chat", "text")
    for stream in (False, True)
    if not (name == "chat-litellm" and path == "text")
] + [{"name": "vectors"}]


def line_of(gateway: GatewayProcess, answer: httpx.Response) -> dict[str, Any]:
    return gateway.wait_for_log("request", id=answer.headers["x-request-id"])


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_question_and_answer_are_logged_only_for_tenants_with_log_content(
    gateway: GatewayProcess, engine: FakeEngine, way: dict[str, Any]
) -> None:
    """The line holds the whole answer as the caller received it, with its opening."""
    engine.behave = answers
    logged_reply = ask(gateway, TOLD, **way)
    assert logged_reply.status_code == 200, logged_reply.text
    content = line_of(gateway, logged_reply)["content"]
    assert f"Write of {TOLD}asked." in content["request"]
    assert content["answer"] == (
        "" if way["name"] == "vectors" else seen(logged_reply, stream=way.get("stream", False))
    )
    quiet = ask(gateway, QUIET, **way)
    assert quiet.status_code == 200
    assert "content" not in line_of(gateway, quiet)
    # Nowhere else.
    headers = {"Authorization": f"Bearer {OTHER_KEY}"}
    receipt = httpx.get(
        f"{gateway.url}/v1/receipts/{logged_reply.headers['x-request-id']}", headers=headers, verify=False
    )
    assert receipt.status_code == 200
    assert "canary" not in receipt.text


def seen(answer: httpx.Response, *, stream: bool) -> str:
    """Return the text of the first choice that the caller of this answer received."""
    if not stream:
        replies = [answer.json()]
    else:
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        replies = [json.loads(line) for line in lines]
    choices = [choice for reply in replies for choice in reply.get("choices", ())]
    parts = [choice.get("delta") or choice.get("message") or {"content": choice.get("text")} for choice in choices]
    return "".join(part.get("content") or "" for part in parts)


@pytest.mark.parametrize("failure", FAILURES)
def test_no_failure_logs_questions_or_answers(gateway: GatewayProcess, engine: FakeEngine, failure: str) -> None:
    """Engines quote prompts in their errors. Only a tenant with `log_content` has them in the log."""
    engine.behave = engine.embed = FAILURES[failure]
    before = len(gateway.log)
    try:
        with ThreadPoolExecutor(8) as pool:
            pending = [pool.submit(ask, gateway, canary, **way) for way in WAYS for canary in (QUIET, TOLD)]
            ended = [line_of(gateway, one.result())["status"] for one in pending]
    finally:
        engine.behave, engine.embed = answers, FakeEngine(answers).embed
    lines = list(gateway.log)[before:]
    failed = [line for line in lines if line["event"] == "engine_error"]
    assert {line["engine"] for line in failed} == {"big", "small", "other"}
    assert sum(status != "ok" for status in ended) >= len(WAYS)
    assert QUIET not in json.dumps(lines)
    if failure == "openai 400":
        assert any(TOLD in line["message"] for line in failed)
        assert any(line["message"] == "Engine 'small' answered 400." for line in failed)


def test_content_is_in_no_metric_no_detail_and_not_in_redis(gateway: GatewayProcess, redis_url: str) -> None:
    """After all requests above. Only prompts are searched, because the words of guided answers pass through Redis."""
    assert "canary" not in httpx.get(f"{gateway.admin_url}/metrics", verify=False).text
    assert "canary" not in httpx.get(f"{gateway.admin_url}/readyz", verify=False).text
    with redis_client.Redis.from_url(redis_url) as redis:
        keys = list(redis.scan_iter("content:*"))
        held = [redis.dump(key) or b"" for key in keys]
    assert keys
    assert not [key for key, raw in zip(keys, held, strict=True) if b"canaryasked" in raw or b"canary" in key]
    assert QUIET not in gateway.raw_log
    assert gateway.raw_log.count(f"{TOLD}asked") > len(WAYS)
