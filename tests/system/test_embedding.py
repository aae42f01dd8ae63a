"""Embeddings of OpenAI's SDK through a running gateway."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import openai
import orjson
import pytest
from aiohttp import web
from openai import OpenAI

from tests.fakes import FakeEngine, embedded, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.llama_embedder import MODEL, running_embedder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VECTORS = {"model": "vectors", "mode": "embeddings", "student": "small"}
HIDING = {**VECTORS, "model": "vectors-quiet", "show_cost": False}


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(says("Hi")).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def gate(engine: FakeEngine, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(
        tmp_path_factory.mktemp("embedding"),
        redis_url=redis_url,
        redis={"timeout": "5s"},  # receipts are required on a busy machine, too
        models=[
            model("big", "tgi", engine.url),
            # Failures of one test must not open the circuit for the next one.
            model("small", "openai", f"{engine.url}/v1", model="org/vectors-1", breaker={"failures": 1000}),
            model("chatty", "openai", f"{engine.url}/v1", continuation="none"),
        ],
        routes=[guided(student="chatty"), VECTORS, HIDING],
    ) as process:
        yield process


@pytest.fixture
def client(gate: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def receipt_of(client: OpenAI, request_id: str) -> dict[str, Any]:
    """Return the receipt, which is written just after the answer was sent."""
    for _ in range(200):
        try:
            receipt: Any = client.get(f"/receipts/{request_id}", cast_to=object)
        except openai.NotFoundError:
            time.sleep(0.02)
            continue
        assert isinstance(receipt, dict)
        return receipt
    raise AssertionError(f"no receipt {request_id}")


def test_vectors_come_through_and_the_call_has_its_receipt(client: OpenAI, engine: FakeEngine) -> None:
    """The SDK requests and decodes base64 by default. The gateway sends the engine's own model name."""
    raw = client.embeddings.with_raw_response.create(model="vectors", input=["one", "two"], dimensions=2, user="me")
    reply = raw.parse()
    assert [one.embedding for one in reply.data] == [[1.0, 0.0]] * 2
    assert (reply.model, reply.usage.prompt_tokens, reply.object) == ("vectors", 10, "list")
    sent = {"model": "org/vectors-1", "input": ["one", "two"], "dimensions": 2, "user": "me"}
    assert engine.requests[-1] == {**sent, "encoding_format": "base64"}

    receipt = receipt_of(client, raw.headers["x-request-id"])
    assert (receipt["mode"], receipt["status"], receipt["route"]) == ("embeddings", "ok", "vectors")
    assert (receipt["teacher"], receipt["guidance"], receipt["finish_reason"]) == (None, None, None)
    assert receipt["student"]["input_tokens"] == 10
    assert receipt["student"]["output_tokens"] == 0
    assert Decimal(receipt["cost_usd"]) == Decimal("0.000001") == Decimal(raw.headers["x-gkt-cost-usd"])
    assert Decimal(receipt["savings_usd"]) == 0
    assert (raw.headers["x-gkt-mode"], raw.headers["x-gkt-student-tokens"]) == ("embeddings", "10+0")


def test_only_the_model_name_of_the_reply_changes(gate: GatewayProcess) -> None:
    """Numbers keep the engine's digits."""
    answer = httpx.post(
        f"{gate.url}/v1/embeddings", json={"model": "vectors", "input": "a"}, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert b'"embedding": [1e-05, 0.50]' in answer.content
    assert answer.json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [1e-05, 0.5]}],
        "model": "vectors",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_a_large_reply_is_sent_whole(gate: GatewayProcess, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply is sent in parts, with its length."""
    raw = embedded(20_000)

    async def embed(_: web.Request, __: dict[str, Any]) -> web.Response:
        return web.Response(body=raw, content_type="application/json")

    monkeypatch.setattr(engine, "embed", embed)
    answer = httpx.post(
        f"{gate.url}/v1/embeddings", json={"model": "vectors", "input": "a"}, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert answer.json() == {**orjson.loads(raw), "model": "vectors"}
    assert int(answer.headers["content-length"]) == len(answer.content) > 1_000_000
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-gkt-mode"] == "embeddings"


def test_costs_are_hidden_if_the_route_hides_them(client: OpenAI) -> None:
    """Headers and receipt hide the cost."""
    raw = client.embeddings.with_raw_response.create(model="vectors-quiet", input="a")
    assert "x-gkt-cost-usd" not in raw.headers
    assert "cost_usd" not in receipt_of(client, raw.headers["x-request-id"])


def test_routes_for_embeddings_are_listed_and_answer_no_chats(client: OpenAI) -> None:
    """Routes for chats do not serve embeddings either."""
    assert [entry.id for entry in client.models.list()] == ["chat", "vectors", "vectors-quiet"]
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="vectors", messages=[{"role": "user", "content": "Hi"}])
    assert (wrong.value.param, "/v1/embeddings" in wrong.value.message) == ("model", True)
    with pytest.raises(openai.BadRequestError) as wrong:
        client.embeddings.create(model="chat", input="a")
    assert wrong.value.param == "model"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert "'chat', 'vectors'" in unknown.value.message


def test_a_server_with_only_embeddings_is_not_probed_for_chats(gate: GatewayProcess, engine: FakeEngine) -> None:
    """The continuation probe would fail there."""
    give_up = time.monotonic() + 10
    while (ready := httpx.get(gate.admin_url + "/readyz").json())["status"] != "ready" and time.monotonic() < give_up:
        time.sleep(0.05)
    assert ready["engines"]["small"]["up"] is True
    assert "org/vectors-1" not in {body["model"] for body in engine.requests if "messages" in body}


@pytest.mark.parametrize(
    ("status", "raised", "label"),
    [
        (400, openai.BadRequestError, "invalid_request"),
        (401, openai.InternalServerError, "engine_rejected"),
        (429, openai.InternalServerError, "engine_overloaded"),
        (500, openai.InternalServerError, "engine_failed"),
    ],
)
def test_an_engine_that_fails_is_an_error_with_a_receipt(
    client: OpenAI, engine: FakeEngine, status: int, raised: type[openai.APIStatusError], label: str
) -> None:
    """The caller gets a 400 if the engine rejects the request."""

    async def fails(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": "too many dimensions"}}, status=status)

    usual, engine.embed = engine.embed, fails
    try:
        with pytest.raises(raised) as caught:
            client.embeddings.create(model="vectors", input="a")
    finally:
        engine.embed = usual
    client.embeddings.create(model="vectors", input="a")  # a success: the next case begins without failures
    receipt = receipt_of(client, caught.value.response.headers["x-request-id"])
    assert receipt["status"] == label
    assert (receipt["student"] is None) == (status in {400, 401, 429}), "a call that was refused cost nothing"


@pytest.mark.parametrize(
    ("given", "read"), [("Why is the sky blue?", range(6, 20)), ([1, 2, 3], [3]), ([[1, 2], [3, 4, 5]], [5])]
)
def test_usage_is_estimated_if_the_engine_has_none(client: OpenAI, engine: FakeEngine, given: Any, read: Any) -> None:
    """The gateway bounds words and counts token ids; the receipt marks both."""

    async def uncounted(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(body=embedded(1).partition(b', "usage"')[0] + b"}", content_type="application/json")

    usual, engine.embed = engine.embed, uncounted
    try:
        raw = client.embeddings.with_raw_response.create(model="vectors", input=given, encoding_format="float")
    finally:
        engine.embed = usual
    receipt = receipt_of(client, raw.headers["x-request-id"])
    assert receipt["student"]["input_tokens"] in read
    assert receipt["student"]["estimated"] is True


def test_a_disconnect_has_a_receipt_and_cancels_the_engine_call(
    client: OpenAI, engine: FakeEngine, gate: GatewayProcess
) -> None:
    """The engine may have read the whole input, so the caller pays for it."""

    async def slowly(request: web.Request, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(30)
        raise AssertionError("not waited for")

    usual, engine.embed = engine.embed, slowly
    engine.cancelled.clear()
    try:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1.5).embeddings.create(model="vectors", input=[1, 2, 3, 4])
        assert engine.cancelled.wait(10)
    finally:
        engine.embed = usual
    line = gate.wait_for_log("request", status="client_gone", mode="embeddings")
    assert line["student"]["input_tokens"] == 4


@pytest.mark.long
@pytest.mark.models
def test_a_real_model_returns_the_same_vectors_as_without_the_gateway(redis_url: str, tmp_path: Path) -> None:
    """llama.cpp through OpenAI's SDK: one text, several, token ids; as numbers and in base64."""
    texts = ["The baker sells rolls.", "A roll costs three dollars."]
    with (
        running_embedder() as address,
        running_gateway(
            tmp_path,
            redis_url=redis_url,
            redis={"timeout": "5s"},
            models=[model("small", "openai", f"{address}/v1", model=MODEL)],
            routes=[VECTORS],
        ) as process,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as bare,
        OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        for given in (texts, texts[0], [504, 12394, 1234]):
            for encoding in ("float", "base64"):
                meant = bare.embeddings.create(model=MODEL, input=given, encoding_format=encoding)
                raw = client.embeddings.with_raw_response.create(model="vectors", input=given, encoding_format=encoding)
                reply = raw.parse()
                assert [one.embedding for one in reply.data] == [one.embedding for one in meant.data]
                assert reply.usage == meant.usage
                assert raw.headers["x-gkt-student-tokens"] == f"{meant.usage.prompt_tokens}+0"
                assert "estimated" not in receipt_of(client, raw.headers["x-request-id"])["student"]
