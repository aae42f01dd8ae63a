"""Tokens that an engine wrote to its prompt cache, on a real gateway: receipts, budgets, sums, metrics and replies."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from contextlib import ExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from gateway.config.database_url import sqlalchemy_url
from tests.fake_texts import begin_events, event
from tests.fakes import FakeEngine, chunk, reply, says
from tests.gateway_process import KEY, TEACHER_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_probed
from tests.usage.databases import check_sums, held, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMIT_S = 60.0
ADMIN_KEY = "an-admin-key-for-tests"
WRITES = {"cache_write_per_1m": 3.75, "cache_write_1h_per_1m": 6}
BIG = {"input_per_1m": 3, "cached_input_per_1m": 0.3, "output_per_1m": 15} | WRITES
SMALL = {"input_per_1m": 0.1, "output_per_1m": 0.5}
COUNTED = {"prompt_tokens": 500, "completion_tokens": 3, "total_tokens": 503}
DETAILS = {"cached_tokens": 100, "cache_write_tokens": 300}
LIFETIMES = {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100}
BIG_USD = Decimal("0.001725")
"""100 x 3 + 100 x 0.3 + 200 x 3.75 + 100 x 6 + 3 x 15 = 1725, by a million."""
SMALL_USD = Decimal("0.000003")
"""10 x 0.1 + 4 x 0.5 = 3, by a million."""


async def caching(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Report stored tokens as OpenAI does, and in a stream as LiteLLM's proxy does."""
    if not body.get("stream"):
        answer = reply("The answer begins", "length")
        details = {**DETAILS, "cache_creation_token_details": LIFETIMES}
        return web.json_response({**answer, "usage": {**COUNTED, "prompt_tokens_details": details}})
    response = await begin_events(request)
    await response.write(event(chunk({"content": "The answer begins"}, "length")))
    usage = {**COUNTED, "prompt_tokens_details": {"cached_tokens": 100}, "cache_creation_input_tokens": 300}
    usage["cache_creation"] = LIFETIMES
    await response.write(event({**chunk({}), "choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    await response.write_eof()
    return response


@pytest.fixture
def gateway(tmp_path: Path, redis_url: str) -> Iterator[GatewayProcess]:
    """Run a gateway: `big` caches prompts, `small` does not."""
    (tmp_path / "admin.key").write_text(ADMIN_KEY)
    with ExitStack() as stack:
        big = stack.enter_context(FakeEngine(caching).running())
        small = stack.enter_context(FakeEngine(says(" and it ends so.")).running())
        own = {"continuation": "trailing", "echo": False}
        limits = {"retries": {"num_retries": 0}, "default_max_tokens": 50}
        process = stack.enter_context(
            running_gateway(
                tmp_path,
                redis_url=redis_url,
                redis={"prefix": f"w{os.urandom(4).hex()}"},
                usage={"run": "host"},
                admin={"key": "file:admin.key"},
                data=str(tmp_path / "data"),
                models=[
                    model("big", "openai", f"{big.url}/v1", price=BIG, **own),
                    model("small", "openai", f"{small.url}/v1", price=SMALL, **own),
                ],
                routes=[guided() | limits, TEACHER_ONLY | limits],
                tenants={"acme": {"budget": {"max_budget": 1}}},
            )
        )
        wait_until_probed(process.admin_url)
        yield process


def call(process: GatewayProcess, path: str, body: Any = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}"}
    method = "GET" if body is None else "POST"
    answer = httpx.request(method, process.url + path, json=body, headers=headers, timeout=LIMIT_S)
    assert answer.status_code == 200, answer.text
    return answer


def ask(process: GatewayProcess, route: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """Return the id of a request and the usage in its reply."""
    body = {"model": route, "messages": [{"role": "user", "content": "Go on."}]} | more
    answer = call(process, "/v1/chat/completions", body)
    parts = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return answer.headers["x-request-id"], (parts[-1] if parts else answer.json())["usage"]


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.long
def test_stored_tokens_are_charged_and_counted_everywhere(gateway: GatewayProcess, tmp_path: Path) -> None:
    whole, reported = ask(gateway, "chat-teacher")
    assert reported == {**COUNTED, "prompt_tokens_details": DETAILS}
    streamed, reported = ask(gateway, "chat-teacher", stream=True, stream_options={"include_usage": True})
    assert reported == {**COUNTED, "prompt_tokens_details": DETAILS}
    opened_by_big, reported = ask(gateway, "chat")
    assert "prompt_tokens_details" not in reported, "the student cached nothing"
    ids = [whole, streamed, opened_by_big]

    until(lambda: call(gateway, "/v1/usage?since=1h").json()["total"]["requests"] == len(ids))
    receipts = [call(gateway, f"/v1/receipts/{one}").json() for one in ids]
    for receipt in receipts:
        assert receipt["teacher"] == {
            "model": "big",
            "input_tokens": 500,
            "output_tokens": 3,
            "cached_input_tokens": 100,
            "cache_write_input_tokens": 300,
            "cache_write_1h_input_tokens": 100,
            "cost_usd": "0.001725000000",
        }
    costs = [Decimal(one["cost_usd"]) for one in receipts]
    assert costs == [BIG_USD, BIG_USD, BIG_USD + SMALL_USD]
    assert [Decimal(one["baseline_usd"]) for one in receipts[:2]] == [BIG_USD, BIG_USD]

    budget = call(gateway, "/v1/limits").json()["tenant"]["budget"]
    assert (Decimal(budget["spent_usd"]), Decimal(budget["reserved_usd"])) == (sum(costs), 0)

    total = call(gateway, "/v1/usage?since=1h").json()["total"]
    assert Decimal(total["cost_usd"]) == sum(costs)
    assert total["tokens"]["teacher"] == {"input": 300, "cached": 300, "output": 9, "cache_write": 900}
    exported = httpx.get(
        f"{gateway.admin_url}/usage?since=1h&format=csv", headers={"Authorization": f"Bearer {ADMIN_KEY}"}
    )
    (line,) = csv.DictReader(io.StringIO(exported.text))
    assert (line["teacher_input_tokens"], line["teacher_cache_write_tokens"]) == ("300", "900")

    metrics = httpx.get(f"{gateway.admin_url}/metrics", timeout=LIMIT_S).text
    counted = {
        sample.labels["direction"]: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "gkt_tokens_total" and sample.labels["engine"] == "big"
    }
    assert counted == {"input": 300, "cached": 300, "cache_write": 900, "output": 9}

    with opened(sqlalchemy_url("sqlite", tmp_path / "data")) as engine:
        assert sorted(one.id for one in held(engine)) == sorted(ids)
        check_sums(engine)
