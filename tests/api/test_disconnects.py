"""Callers that disconnect at any time are charged at least the engine's own count."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest

from gateway.accounting.engine_set import EngineSet
from gateway.accounting.shares import EngineCall
from gateway.api.disconnects import MAX_REST_USD, read_on_s
from gateway.pricing import Price
from tests.accounting.receipt_builders import builder, plan
from tests.counting_engine import Books, CountingEngine
from tests.fakes import FakeEngine
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.leaving import leave
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADERS = {"Authorization": f"Bearer {KEY}"}
DEAR = {"price": {"input_per_1m": 1, "output_per_1m": 1000}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "a tool " * 300}}]
_numbers = itertools.count()


@dataclass
class World:
    """A gateway before engines that count their tokens themselves."""

    gateway: GatewayProcess
    engines: dict[str, CountingEngine]

    def receipts(self) -> list[dict[str, Any]]:
        return [line for line in self.gateway.log if line["event"] == "request"]

    def spent_usd(self) -> Decimal:
        limits = httpx.get(f"{self.gateway.url}/v1/limits", headers=HEADERS).json()
        return Decimal(limits["tenant"]["budget"]["spent_usd"])


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    engines = {"stops": CountingEngine(stops=True), "runs-on": CountingEngine(stops=False),
               "deaf": CountingEngine(stops=True, obeys=False)}  # fmt: skip
    with ExitStack() as stack:
        urls = {}
        for name, behave in engines.items():
            owner = "vllm" if behave.stops else None
            urls[name] = stack.enter_context(FakeEngine(behave, owned_by=owner).running()).url
        models: list[dict[str, Any]] = []
        for name, url in urls.items():
            models.append(model(name, "openai", f"{url}/v1", continuation="none"))
            models.append(model(f"dear-{name}", "openai", f"{url}/v1", continuation="none") | DEAR)
        routes = [
            {"model": one["name"], "mode": "student", "student": one["name"], "baseline": one["name"]} for one in models
        ]
        routes.append(guided("guided", teacher="runs-on", student="stops", placement="context", tokens=10))
        gateway = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("disconnects"),
                redis_url=redis_url,
                redis={"prefix": "disconnects"},
                models=models,
                routes=routes,
                tenants={"acme": {"budget": {"max_budget": 1000}}},
            )
        )
        wait_until_looked_at(gateway.admin_url)
        yield World(gateway, engines)


async def leave_at(world: World, at: str, body: dict[str, Any], books: Books) -> None:
    async with aiohttp.ClientSession(headers=HEADERS) as session:
        status = await leave(session, f"{world.gateway.url}/v1/chat/completions", body, at, books)
        assert status == (None if at in {"json", "before the first token"} else 200)


def left(world: World, route: str, at: str, **more: Any) -> tuple[dict[str, Any], int, int]:
    """Return the receipt of a caller that disconnected, and the tokens that the engine read and generated."""
    engine = world.engines[route.removeprefix("dear-")]
    name = f"request-{next(_numbers)}"
    body = {"model": route, "user": name, "messages": [{"role": "user", "content": name}], "max_tokens": 20,
            "stream": at != "json", **more}  # fmt: skip
    if at == "after the usage":
        body["stream_options"] = {"include_usage": True}
    before, spent = len(world.receipts()), world.spent_usd()
    books = engine.books[name]
    asyncio.run(leave_at(world, at, body, books))
    assert books.ended.wait(30)
    give_up = time.monotonic() + 60
    while len(world.receipts()) == before:
        assert time.monotonic() < give_up, "no receipt came"
        time.sleep(0.01)
    receipt = world.receipts()[-1]
    while world.spent_usd() - spent != Decimal(str(receipt["cost_usd"])):
        assert time.monotonic() < give_up, "the budget does not say what the receipt says"
        time.sleep(0.01)
    assert len(world.receipts()) == before + 1
    return receipt, books.read, books.generated


EVERY_POINT = ["before the first token", "in the middle", "at finish_reason", "after the usage", "json"]


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("at", EVERY_POINT)
def test_a_call_with_a_cheap_remainder_is_read_to_its_usage(world: World, at: str, tools: Any) -> None:
    """The receipt is then exact, tokens of tools included."""
    more = {} if tools is None else {"tools": tools}
    receipt, read, generated = left(world, "runs-on", at, **more)
    share = receipt["student"]
    assert (share["input_tokens"], share["output_tokens"], share.get("estimated")) == (read, generated, None)
    if at != "after the usage":  # the caller had the whole answer
        assert receipt["status"] == "client_gone"


@pytest.mark.parametrize("at", ["before the first token", "in the middle", "json"])
@pytest.mark.parametrize("route", ["dear-stops", "dear-runs-on"])
def test_a_call_with_an_expensive_remainder_is_canceled_and_charged_at_its_bound(
    world: World, route: str, at: str
) -> None:
    """An engine that is not known to stop may have generated up to its limit."""
    receipt, _, generated = left(world, route, at)
    share = receipt["student"]
    assert (receipt["status"], share["estimated"]) == ("client_gone", True)
    assert generated <= share["output_tokens"] <= 20
    if route == "dear-runs-on":
        assert (generated, share["output_tokens"]) == (20, 20)
    else:
        assert generated < 20, "the engine was let go"


def test_an_expensive_call_is_read_on_if_only_its_usage_is_missing(world: World) -> None:
    receipt, read, generated = left(world, "dear-runs-on", "at finish_reason")
    share = receipt["student"]
    assert (share["input_tokens"], share["output_tokens"], share.get("estimated")) == (read, generated, None)


def test_a_teachers_call_is_read_to_its_end_and_no_student_is_called(world: World) -> None:
    """The call serves this request alone."""
    student_calls = sum(one.read > 0 for one in world.engines["stops"].books.values())
    world.engines["runs-on"].books.pop("", None)
    teacher = world.engines["runs-on"].books[""]
    count = len(world.receipts())
    body = {"model": "guided", "messages": [{"role": "user", "content": "Is anybody there?"}]}
    asyncio.run(leave_at(world, "json", body, teacher))
    while len(world.receipts()) == count:
        time.sleep(0.01)
    receipt = world.receipts()[-1]
    assert (receipt["status"], receipt["student"]) == ("client_gone", None)
    assert receipt["teacher"]["output_tokens"] == teacher.generated == 10
    assert "estimated" not in receipt["teacher"]
    assert sum(one.read > 0 for one in world.engines["stops"].books.values()) == student_calls


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_ignores_max_tokens_is_cut_at_the_limit(world: World, stream: bool) -> None:
    """The caller gets at most what it requested, and is charged at most what was reserved."""
    body = {"model": "deaf", "user": f"deaf-{stream}", "messages": [{"role": "user", "content": "Go on"}],
            "max_tokens": 7, "stream": stream}  # fmt: skip
    answer = httpx.post(f"{world.gateway.url}/v1/chat/completions", headers=HEADERS, json=body, timeout=10)
    books = world.engines["deaf"].books[f"deaf-{stream}"]
    assert books.ended.wait(30)
    receipt = world.gateway.wait_for_log("request", id=answer.headers["x-request-id"])
    if stream:
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        choices = [choice for one in chunks for choice in one["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        reason = choices[-1]["finish_reason"]
        assert answer.text.endswith("data: [DONE]\n\n")
        assert books.generated < 30, "the call was ended"
    else:
        (choice,) = answer.json()["choices"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text.split(), reason, receipt["finish_reason"]) == (["word"] * 7, "length", "length")
    share = receipt["student"]
    assert share["output_tokens"] == 7 < books.generated
    assert share["estimated"]
    assert stream or share["usage_error"] == "too_high"
    assert receipt["status"] == "ok"


@pytest.mark.long
def test_a_shutdown_waits_for_calls_that_are_read_on(redis_url: str, tmp_path: Path) -> None:
    """Receipts of calls that are read on are exact, too."""
    engine = CountingEngine(stops=True, first_s=0.8)
    with (
        FakeEngine(engine).running() as student,
        running_gateway(
            tmp_path,
            redis_url=redis_url,
            redis={"prefix": "disconnects-drain"},
            models=[model("small", "openai", f"{student.url}/v1", continuation="none")],
            routes=[{"model": "chat", "mode": "student", "student": "small", "baseline": "small"}],
        ) as gateway,
    ):
        body = {"model": "chat", "user": "a", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
        asyncio.run(leave_at(World(gateway, {}), "json", body, engine.books["a"]))
        assert gateway.terminate() == 0
        receipt = gateway.wait_for_log("request")
        share = receipt["student"]
        assert (receipt["status"], share["input_tokens"], share["output_tokens"]) == (
            "client_gone",
            engine.books["a"].read,
            5,
        )
        assert "estimated" not in share


def test_calls_are_read_on_only_below_the_cost_bound() -> None:
    """A call whose usage alone is missing is read on as well. Requests that continue are marked."""
    output_usd = Decimal("0.0001")
    priced = EngineSet({}, {"small": Price.of_tokens(Decimal(0), output_usd * 1_000_000)})
    max_tokens = int(MAX_REST_USD / output_usd)
    for call, reads_on in (
        (EngineCall("small", (), limit_tokens=max_tokens), True),
        (EngineCall("small", (), limit_tokens=max_tokens + 1), False),
        (EngineCall("small", (), limit_tokens=max_tokens + 5, seen_tokens=5), True),
        (EngineCall("small", ()), False),
        (EngineCall("small", (), ended=True), True),
        (None, False),
    ):
        one = builder(plan("student"), engine_set=priced)
        one.running = call
        assert (read_on_s(one) > 0, one.caller_left) == (reads_on, reads_on)
    assert read_on_s(None) == 0
