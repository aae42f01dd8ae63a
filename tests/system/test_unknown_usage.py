"""Many callers disconnect before the usage event: the accounts hold the engine's count, and no budget is exceeded."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from gateway.accounting.estimate import count_text
from tests.fake_texts import begin_events, event
from tests.fakes import FakeEngine, chunk, reply
from tests.gateway_process import KEY, OTHER_KEY, GatewayProcess, model, running_gateway, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

USD_PER_1M = 1
ANSWER = "word " * 20
ROUTE = {"model": "chat", "mode": "student", "student": "small", "default_max_tokens": 50}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"find_{index}",
            "description": "Find the documents that a user of the office asked for, by their titles. " * 12,
            "parameters": {"type": "object", "properties": {"title": {"type": "string", "maxLength": 40}}},
        },
    }
    for index in range(360)
]
ASKED = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}
BODY = json.dumps({**ASKED, "tools": TOOLS, "stream": True}).encode()


class Counting(FakeEngine):
    """An engine with its own tokenizer. It reads tools as JSON, counts each call, and streams no usage."""

    def __init__(self) -> None:
        super().__init__(self._says)
        self.tokens = self.answers = 0
        self.usage: dict[str, Any] | None = None
        text = json.dumps(TOOLS)
        # Longer texts are not counted in one piece.
        self._tools = sum(count_text("p50k_base", text[at : at + 40_000]) for at in range(0, len(text), 40_000))

    async def _says(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.answers += 1
        self.tokens += (self._tools if body.get("tools") else 0) + 30 + count_text("p50k_base", ANSWER)
        if not body.get("stream"):
            return web.json_response(reply(ANSWER, usage=self.usage))
        response = await begin_events(request)
        for word in ANSWER.split():
            await response.write(event(chunk({"content": f"{word} "})))
        await response.write(event(chunk({}, "stop")))
        await asyncio.sleep(0.1)
        return response


@dataclass
class World:
    """A gateway with the engine, and a client for each tenant."""

    engine: Counting
    process: GatewayProcess
    callers: dict[str, httpx.Client]


KEYS = {"acme": KEY, "globex": OTHER_KEY, "initech": "sk-initech"}


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a gateway: acme has a budget, globex a limit on tokens."""
    engine = Counting()
    price = {"input_per_1m": USD_PER_1M, "output_per_1m": USD_PER_1M}
    with ExitStack() as stack:
        stack.enter_context(engine.running())
        process = stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("unknown-usage"),
                redis_url=redis_url,
                redis={"prefix": "unknown-usage"},
                models=[model("small", "openai", f"{engine.url}/v1", price=price, continuation="none")],
                routes=[ROUTE | {"retries": {"num_retries": 0}}],
                tenants={
                    "acme": {"budget": {"max_budget": 1}},
                    "globex": {"limits": {"tpm_limit": 250_000}, "budget": {"max_budget": 100}},
                    "initech": {"keys": [{"id": "only", "sha256": sha256(KEYS["initech"])}]},
                },
            )
        )
        callers = {
            tenant: stack.enter_context(
                httpx.Client(base_url=process.url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
            )
            for tenant, key in KEYS.items()
        }
        yield World(engine, process, callers)


@pytest.fixture(autouse=True)
def _counted_anew(world: World) -> None:
    world.engine.tokens = world.engine.answers = 0


def disconnect_at_the_end(caller: httpx.Client) -> int:
    """Read a whole answer and disconnect at its finish_reason. Return the status."""
    with caller.stream("POST", "/v1/chat/completions", content=BODY) as answer:
        for line in answer.iter_lines():
            if '"finish_reason":"stop"' in line:
                break
        return answer.status_code


def limits(caller: httpx.Client) -> dict[str, Any]:
    give_up = time.monotonic() + 30
    while (answer := caller.get("/v1/limits")).status_code == 503 and time.monotonic() < give_up:
        time.sleep(0.1)  # a busy machine may miss Redis' reply
    found = answer.json()["tenant"]
    assert isinstance(found, dict)
    return found


def crowd(caller: httpx.Client) -> None:
    """Send requests of four concurrent callers until none is admitted though nothing is reserved."""
    with ThreadPoolExecutor(4) as pool:
        for _ in range(40):
            statuses = list(pool.map(lambda _: disconnect_at_the_end(caller), range(4)))
            give_up = time.monotonic() + 30
            while Decimal(limits(caller)["budget"]["reserved_usd"]) and time.monotonic() < give_up:
                time.sleep(0.05)
            if set(statuses) == {429}:
                return
    raise AssertionError("the crowd was admitted again and again")


@pytest.mark.long
def test_a_budget_holds_though_no_caller_waits_for_the_usage(world: World) -> None:
    engine, caller = world.engine, world.callers["acme"]
    crowd(caller)
    spent, counted = Decimal(limits(caller)["budget"]["spent_usd"]), Decimal(engine.tokens * USD_PER_1M) / 10**6
    assert engine.answers >= 3, "a budget for so many answers is used"
    assert counted <= spent <= Decimal(1)


def test_a_limit_on_tokens_holds_though_no_caller_waits_for_the_usage(world: World) -> None:
    """Concurrent first answers have equal estimates; later ones use the settled counts."""
    engine, caller = world.engine, world.callers["globex"]
    crowd(caller)
    used = limits(caller)["tokens_per_minute"]["used"]
    assert engine.tokens <= used
    assert engine.answers <= 4


@pytest.mark.parametrize(("read", "written", "error"), [(2_000_000_000, 5, "too_high"), (9, 0, "too_low")])
def test_impossible_usage_costs_at_most_the_reservation(world: World, read: int, written: int, error: str) -> None:
    """The answer's own text is the lower bound. The receipt, the reply and the metric report it."""
    world.engine.usage = {"prompt_tokens": read, "completion_tokens": written}
    caller = world.callers["initech"]
    body = ASKED | {"echo": True}  # which says nothing of a chat's counts
    answer = caller.post("/v1/chat/completions", json=body)
    assert answer.headers["x-gkt-estimated"] == "true"
    receipt = caller.get(f"/v1/receipts/{answer.headers['x-request-id']}").json()
    metrics = httpx.get(f"{world.process.admin_url}/metrics").text
    assert receipt["estimated"]
    share = receipt["student"]
    assert share["usage_error"] == error
    assert share["input_tokens"] <= len(json.dumps(body)) + 512
    assert (5 if error == "too_high" else 20) <= share["output_tokens"] <= 50
    assert f'gkt_engine_usage_errors_total{{engine="small",reason="{error}"}} 1.0' in metrics


@pytest.mark.parametrize("stream", [False, True])
def test_echo_in_a_chat_does_not_lift_the_token_limit(world: World, stream: bool) -> None:
    """The engine ignores the limit, and its text has 20 words."""
    answer = world.callers["initech"].post(
        "/v1/chat/completions", json=ASKED | {"echo": True, "max_tokens": 3, "stream": stream}
    )
    assert '"finish_reason":"length"' in answer.text
    assert answer.text.count("word") == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "request_fields"),
    [("/v1/chat/completions", ASKED), ("/v1/completions", {"model": "chat", "prompt": "Why?"})],
)
@pytest.mark.parametrize(
    ("fields", "param"), [({"n_cmpl": 64}, "n_cmpl"), ({"extra_body": {"n": 64}}, "extra_body.n"), ({"N": 64}, "N")]
)
def test_no_engine_is_sent_a_number_of_answers_that_was_not_reserved(
    world: World, path: str, request_fields: dict[str, Any], fields: dict[str, Any], param: str, stream: bool
) -> None:
    answer = world.callers["initech"].post(path, json=request_fields | fields | {"stream": stream})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert world.engine.answers == 0
