"""Stored responses through OpenAI's SDK, with two gateways, a real Redis and an engine that quotes its chat."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from aiohttp import web
from openai import OpenAI
from redis import Redis

from gateway.local.redis import EmbeddedRedis
from tests.fakes import FakeEngine, begin_events, chunk, event, reply, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway
from tests.redis_faults import paused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = "chat-student"
STORED = {"ttl": "1h", "max_response": "100kB", "max_total": "300kB"}
STORING = {"stored_responses": STORED}
TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


async def _answers(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Answer with the texts of all messages, or call the tool if the last message asks for the weather."""
    texts = [f"{message['role']}: {message.get('content') or 'calls'}" for message in body["messages"]]
    if texts[-1] == "user: break off":
        broken = await begin_events(request)
        await broken.write(event(chunk({"content": "some"})))
        assert request.transport is not None
        request.transport.close()
        return broken
    if body["messages"][-1]["content"] == "weather?":
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        answer = reply("")
        answer["choices"][0] |= {"finish_reason": "tool_calls"}
        answer["choices"][0]["message"] |= {"content": None, "tool_calls": [call]}
        return web.json_response(answer)
    return await says(" | ".join(texts), "length" if texts[-1] == "user: too long" else "stop")(request, body)


class World:
    """Gateways with one Redis, and an engine that they share."""

    def __init__(self, gateways: list[GatewayProcess], engine: FakeEngine, redis_url: str, clients: ExitStack) -> None:
        self.gateways, self.engine, self.redis_url, self.clients = gateways, engine, redis_url, clients
        self.acme = self.client(KEY)

    def client(self, key: str, gateway: int = 0) -> OpenAI:
        """Return a client that is closed at the end."""
        url = f"{self.gateways[gateway].url}/v1"
        return self.clients.enter_context(OpenAI(base_url=url, api_key=key, max_retries=0))

    def get(self, path: str, key: str = KEY, **query: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{self.gateways[0].url}/v1/responses/{path}", headers=headers, params=query)


@contextmanager
def started(folder: Path, redis_url: str, gateways: int, prefix: str = "gkt", **tenants: Any) -> Iterator[World]:
    with ExitStack() as stack, FakeEngine(_answers).running() as engine:
        processes = [
            stack.enter_context(
                running_gateway(
                    folder / str(number),
                    redis_url=redis_url,
                    models=[
                        model(name, "openai", f"{engine.url}/v1", continuation="none") for name in ("big", "small")
                    ],
                    routes=[STUDENT_ONLY],
                    redis={"prefix": prefix},
                    tenants=tenants,
                )
            )
            for number in range(gateways)
        ]
        yield World(processes, engine, redis_url, stack)


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("stored")
    with started(folder, redis_url, 2, acme=STORING, globex=STORING) as world:
        yield world


def test_a_follow_up_continues_the_conversation_at_another_gateway(world: World) -> None:
    """Instructions belong to one response and are not inherited."""
    first = world.acme.responses.create(model=MODEL, input="one", instructions="be brief")
    assert first.store is True
    assert first.output_text == "system: be brief | user: one"
    second = world.client(KEY, 1).responses.create(model=MODEL, input="two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert second.output_text == f"user: one | assistant: {first.output_text} | user: two"
    third = world.acme.responses.create(
        model=MODEL, input=[{"role": "user", "content": "three"}], previous_response_id=second.id, instructions="rhyme"
    )
    assert third.output_text == f"system: rhyme | {second.output_text} | assistant: {second.output_text} | user: three"


def test_a_streamed_response_is_stored_before_its_last_event(world: World) -> None:
    """The follow-up is sent while the first stream is still open."""
    text = ""
    for _ in range(10):
        with world.acme.responses.create(model=MODEL, input="one", stream=True) as events:
            for event in events:
                if event.type == "response.completed":
                    assert event.response.store is True
                    second = world.client(KEY, 1).responses.create(
                        model=MODEL, input="two", previous_response_id=event.response.id
                    )
                    text = second.output_text
        assert text == "user: one | assistant: user: one | user: two"


def test_outputs_of_tools_follow_a_stored_call(world: World) -> None:
    first = world.acme.responses.create(model=MODEL, input="weather?", tools=[TOOL])
    (call,) = first.output
    assert call.type == "function_call"
    second = world.acme.responses.create(
        model=MODEL,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        tools=[TOOL],
    )
    assert second.output_text == "user: weather? | assistant: calls | tool: sunny"
    chat = world.engine.requests[-1]["messages"]
    assert chat[1]["tool_calls"][0]["id"] == chat[2]["tool_call_id"] == call.call_id


def test_references_to_stored_items_are_replaced_by_the_items(world: World) -> None:
    """The AI SDK sends them by default instead of the items that it received."""
    first = world.acme.responses.create(model=MODEL, input="weather?", tools=[TOOL])
    items: list[Any] = [
        {"role": "user", "content": "weather?"},
        {"type": "item_reference", "id": first.output[0].id},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
    ]
    second = world.acme.responses.create(model=MODEL, input=items, tools=[TOOL])
    assert second.output_text == "user: weather? | assistant: calls | tool: sunny"
    items += [{"type": "item_reference", "id": second.output[0].id}, {"role": "user", "content": "sure?"}]
    third = world.client(KEY, 1).responses.create(model=MODEL, input=items, tools=[TOOL])
    assert third.output_text == f"{second.output_text} | assistant: {second.output_text} | user: sure?"
    world.acme.responses.delete(second.id)
    for key in (KEY, OTHER_KEY):
        with pytest.raises(openai.NotFoundError, match="not found: no stored response has it"):
            world.client(key).responses.create(model=MODEL, input=items, tools=[TOOL])


def test_references_to_many_responses_are_a_400(world: World) -> None:
    """Each of the 21 responses is stored, so the error must not say that one is not."""
    firsts = [world.acme.responses.create(model=MODEL, input="one") for _ in range(21)]
    items: list[Any] = [{"type": "item_reference", "id": first.output[0].id} for first in firsts]
    calls = len(world.engine.requests)
    with pytest.raises(openai.BadRequestError, match="refers to too many stored responses"):
        world.acme.responses.create(model=MODEL, input=items)
    with pytest.raises(openai.BadRequestError, match="Duplicate item found with id"):
        world.acme.responses.create(model=MODEL, input=[items[0]] * 1000)
    assert len(world.engine.requests) == calls
    assert world.acme.responses.create(model=MODEL, input=items[1:]).output_text.count("user: one") == 20


def test_concurrent_follow_ups_of_one_response_are_independent(world: World) -> None:
    first = world.acme.responses.create(model=MODEL, input="one")

    def follow(number: int) -> str:
        client = world.client(KEY, number % 2)
        second = client.responses.create(model=MODEL, input=f"{number}", previous_response_id=first.id)
        return client.responses.create(model=MODEL, input="end", previous_response_id=second.id).output_text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(follow, range(16)))
    for number, text in enumerate(texts):
        middle = f"user: one | assistant: user: one | user: {number}"
        assert text == f"{middle} | assistant: {middle} | user: end"


def test_a_response_is_read_as_it_was_sent(world: World) -> None:
    sent = world.acme.responses.create(model=MODEL, input="one", metadata={"a": "b"})
    assert world.client(KEY, 1).responses.retrieve(sent.id) == sent
    with world.acme.responses.create(model=MODEL, input="one", stream=True) as events:
        last = list(events)[-1]
    assert last.type == "response.completed"
    assert world.acme.responses.retrieve(last.response.id) == last.response


def test_an_incomplete_response_is_stored_as_well(world: World) -> None:
    first = world.acme.responses.create(model=MODEL, input="too long")
    assert first.status == "incomplete"
    assert world.acme.responses.retrieve(first.id).status == "incomplete"
    second = world.acme.responses.create(model=MODEL, input="go on", previous_response_id=first.id)
    assert second.output_text == "user: too long | assistant: user: too long | user: go on"


def test_a_failed_response_is_not_stored(world: World) -> None:
    with world.acme.responses.create(model=MODEL, input="break off", stream=True) as events:
        last = list(events)[-1]
    assert last.type == "response.failed"
    with pytest.raises(openai.NotFoundError):
        world.acme.responses.retrieve(last.response.id)


def test_input_items_have_the_whole_conversation_in_pages(world: World) -> None:
    first = world.acme.responses.create(model=MODEL, input="one")
    second = world.acme.responses.create(model=MODEL, input="two", previous_response_id=first.id)
    page = world.acme.responses.input_items.list(second.id, limit=2)
    assert page.has_more
    items: list[Any] = list(page)  # the SDK reads the next page by itself
    assert [(item.role, item.content[0].type, item.content[0].text) for item in items] == [
        ("user", "input_text", "two"),
        ("assistant", "output_text", "user: one"),
        ("user", "input_text", "one"),
    ]
    assert items[1].id == first.output[0].id
    assert len({item.id for item in items}) == 3
    oldest_first = world.acme.responses.input_items.list(second.id, order="asc").data
    assert [item.id for item in oldest_first] == [item.id for item in reversed(items)]


def test_a_conversation_that_takes_long_to_decode_is_continued_as_any_other(world: World) -> None:
    """Its many commas look like many values, so that it is decoded in the tenant's turn."""
    text = "a," * 12_000
    first = world.acme.responses.create(model=MODEL, input=text)
    for _ in range(2):
        second = world.acme.responses.create(model=MODEL, input="two", previous_response_id=first.id, store=False)
        assert second.output_text == f"user: {text} | assistant: {first.output_text} | user: two"
        (item,) = world.acme.responses.input_items.list(first.id).data
        assert item.type == "message"
        assert item.content[0].text == text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": "0"}, "limit"), ({"limit": "x"}, "limit"), ({"order": "up"}, "order"), ({"after": "msg_x"}, "after")],
)
def test_a_bad_page_is_a_400_with_the_parameter(world: World, query: dict[str, str], param: str) -> None:
    first = world.acme.responses.create(model=MODEL, input="one")
    refused = world.get(f"{first.id}/input_items", **query)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_a_deleted_response_is_gone_and_its_follow_ups_are_not(world: World) -> None:
    first = world.acme.responses.create(model=MODEL, input="one")
    second = world.acme.responses.create(model=MODEL, input="two", previous_response_id=first.id)
    deleted = httpx.delete(
        f"{world.gateways[1].url}/v1/responses/{first.id}", headers={"Authorization": f"Bearer {KEY}"}
    )
    assert deleted.json() == {"id": first.id, "object": "response", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        world.acme.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        world.acme.responses.create(model=MODEL, input="two", previous_response_id=first.id)
    third = world.acme.responses.create(model=MODEL, input="three", previous_response_id=second.id)
    assert third.output_text == f"{second.output_text} | assistant: {second.output_text} | user: three"


@pytest.mark.parametrize("response_id", ["resp_unknown", "resp_*", "req_1", "{gkt:tenant:acme}", "x" * 1000])
def test_an_unknown_id_is_a_404(world: World, response_id: str) -> None:
    calls = len(world.engine.requests)
    with pytest.raises(openai.NotFoundError) as error:
        world.acme.responses.create(model=MODEL, input="one", previous_response_id=response_id)
    assert (error.value.code, error.value.param) == ("previous_response_not_found", "previous_response_id")
    assert len(str(error.value)) < 400
    assert len(world.engine.requests) == calls
    for path in (response_id, f"{response_id}/input_items"):
        refused = world.get(path)
        assert (refused.status_code, refused.json()["error"]["type"]) == (404, "invalid_request_error")


def test_another_tenants_response_is_a_404(world: World) -> None:
    secret = world.acme.responses.create(model=MODEL, input="the secret of acme")
    globex = world.client(OTHER_KEY)
    calls = len(world.engine.requests)
    with pytest.raises(openai.NotFoundError) as unknown:
        globex.responses.create(model=MODEL, input="two", previous_response_id=secret.id)
    for foreign in (globex.responses.retrieve, globex.responses.delete, globex.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            foreign(secret.id)
    assert len(world.engine.requests) == calls
    assert "secret of" not in str(unknown.value)
    assert world.acme.responses.retrieve(secret.id) == secret


def test_store_false_stores_nothing(world: World) -> None:
    first = world.acme.responses.create(model=MODEL, input="one")
    second = world.acme.responses.create(model=MODEL, input="two", previous_response_id=first.id, store=False)
    assert second.store is False
    assert second.output_text == "user: one | assistant: user: one | user: two"
    with pytest.raises(openai.NotFoundError):
        world.acme.responses.retrieve(second.id)


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_is_too_large_is_answered_and_not_stored(world: World, stream: bool) -> None:
    answer = _last(world.acme, "long " * 15_000, stream=stream)
    assert answer.store is False
    assert answer.status == "completed"
    with pytest.raises(openai.NotFoundError):
        world.acme.responses.retrieve(answer.id)
    assert world.gateways[0].wait_for_log("response_not_stored", response=answer.id)["reason"] == "too_large"
    metrics = httpx.get(f"{world.gateways[0].admin_url}/metrics").text
    assert 'gkt_stored_responses_total{result="too_large",tenant="acme"}' in metrics


def test_a_stored_response_is_not_replayed_as_events(world: World) -> None:
    first = world.acme.responses.create(model=MODEL, input="one")
    refused = world.get(first.id, stream="true")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")


def test_limits_count_the_history(redis_url: str, tmp_path: Path) -> None:
    """The estimate of a follow-up's input includes the stored conversation, which the engine reads."""
    limited = {"stored_responses": STORED, "limits": {"tpm_limit": 15_000}}
    with started(tmp_path, redis_url, 1, prefix="tpm", acme=limited) as world:
        first = world.acme.responses.create(model=MODEL, input="word " * 2_000)
        world.acme.responses.create(model=MODEL, input="two")
        second = world.acme.responses.create(model=MODEL, input="two", previous_response_id=first.id)
        with pytest.raises(openai.RateLimitError):
            world.acme.responses.create(model=MODEL, input="three", previous_response_id=second.id)
        world.acme.responses.create(model=MODEL, input="three")


def test_without_a_rule_nothing_is_stored(redis_url: str, tmp_path: Path) -> None:
    with started(tmp_path, redis_url, 1) as world, Redis.from_url(redis_url) as redis:
        before = set(redis.scan_iter("*stored_response*"))
        first = world.acme.responses.create(model=MODEL, input="one", store=True)
        assert first.store is False
        with pytest.raises(openai.NotFoundError, match="stores no responses") as error:
            world.acme.responses.create(model=MODEL, input="two", previous_response_id=first.id)
        assert error.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError):
            world.acme.responses.retrieve(first.id)
        assert set(redis.scan_iter("*stored_response*")) == before


def test_responses_expire(redis_url: str, tmp_path: Path) -> None:
    with started(tmp_path, redis_url, 1, acme={"stored_responses": {"ttl": "3s"}}) as world:
        first = world.acme.responses.create(model=MODEL, input="one")
        assert world.acme.responses.retrieve(first.id) == first
        time.sleep(3.1)
        with pytest.raises(openai.NotFoundError):
            world.acme.responses.create(model=MODEL, input="two", previous_response_id=first.id)


@pytest.mark.parametrize("stream", [False, True])
async def test_while_redis_is_down_answers_are_sent_and_not_stored(tmp_path: Path, stream: bool) -> None:
    async with EmbeddedRedis() as redis:
        with started(tmp_path, redis.url, 1, acme=STORING) as world:
            first = world.acme.responses.create(model=MODEL, input="one")
            async with paused(redis.url):
                answer = _last(world.acme, "two", stream=stream)
                assert (answer.status, answer.output_text, answer.store) == ("completed", "user: two", False)
                with pytest.raises(openai.InternalServerError) as error:
                    world.acme.responses.create(model=MODEL, input="two", previous_response_id=first.id)
                assert (error.value.status_code, error.value.code) == (503, "store_unavailable")
            assert world.gateways[0].wait_for_log("response_not_stored", response=answer.id)["reason"] == (
                "store_unavailable"
            )


def _last(client: OpenAI, text: str, *, stream: bool) -> Any:
    if not stream:
        return client.responses.create(model=MODEL, input=text)
    with client.responses.create(model=MODEL, input=text, stream=True) as events:
        return list(events)[-1].response  # type: ignore[union-attr]
