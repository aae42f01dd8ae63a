"""Limits and budgets as callers observe them: headers, errors of OpenAI's SDK, and cheaper answers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import threading
import time
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import openai
import orjson
import pytest
import redis
from aiohttp import web
from openai import OpenAI

from gateway.local.redis import EmbeddedRedis
from tests.fakes import FakeEngine, says, served
from tests.gateway_process import (
    KEY,
    OTHER_KEY,
    STUDENT_ONLY,
    TEACHER_ONLY,
    GatewayProcess,
    guided,
    model,
    running_gateway,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ASKED = [{"role": "user", "content": "What is it?"}]


@contextmanager
def gateway(
    folder: Path, redis_url: str, tenants: dict[str, dict[str, Any]], prefix: str, **sections: Any
) -> Iterator[GatewayProcess]:
    """Run a gateway between a teacher and a student that answer at once. acme has the limits; globex has none by
    default.
    """
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says("The answer begins", "length")).running())
        student = stack.enter_context(FakeEngine(says(" and ends.")).running())
        yield stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                redis={"prefix": prefix} | sections.pop("redis", {}),
                models=[
                    model("big", "tgi", teacher.url),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[
                    one | {"default_max_tokens": 100, "retries": {"num_retries": 0}}
                    for one in (guided(), STUDENT_ONLY, TEACHER_ONLY)
                ],
                tenants=tenants,
                **sections,
            )
        )


def ask(process: GatewayProcess, route: str = "chat-student", key: str = KEY, **more: Any) -> httpx.Response:
    return httpx.post(
        f"{process.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": route, "messages": ASKED} | more,
        timeout=30,
    )


def complete(
    process: GatewayProcess, messages: Any = ASKED, *, route: str = "chat-student", max_retries: int = 0
) -> Any:
    """Send a request with OpenAI's SDK."""
    with OpenAI(base_url=f"{process.url}/v1", api_key=KEY, max_retries=max_retries) as client:
        return client.chat.completions.create(model=route, messages=messages)


@pytest.mark.long
def test_answers_have_the_remaining_limit_and_the_next_request_is_429(redis_url: str, tmp_path: Path) -> None:
    """JSON, streams and errors have OpenAI's headers; other tenants are unaffected."""
    limits = {"rpm_limit": 3, "tpm_limit": 100_000}
    with gateway(tmp_path, redis_url, {"acme": {"limits": limits}}, "limits") as process:
        first, second = ask(process), ask(process, "chat", stream=True)
        assert (first.status_code, second.status_code) == (200, 200)
        assert second.text.endswith("data: [DONE]\n\n")
        for left, answer in ((2, first), (1, second)):
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
            assert answer.headers["x-ratelimit-limit-tokens"] == "100000"
            assert 0 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 100_000
            assert answer.headers["x-ratelimit-reset-requests"] in {"59.9s", "1m0s", "1m0.1s"} or answer.headers[
                "x-ratelimit-reset-requests"
            ].startswith(("1m0.", "59."))
        assert ask(process, "no-such-model").status_code == 404, "what is wrong is not counted"
        with pytest.raises(openai.APIStatusError) as broken:
            complete(process, [{"role": "wrong", "content": "x"}])
        assert broken.value.status_code == 400
        assert ask(process).status_code == 200
        with pytest.raises(openai.RateLimitError) as refused:
            complete(process)
        error, headers = refused.value, refused.value.response.headers
        assert error.code == "rate_limit_exceeded"
        assert error.message.startswith("Error code: 429")
        assert "The limit of this tenant is 3 requests per minute: 3 were used in the last minute." in error.message
        assert 55 < float(headers["retry-after"]) <= 61
        assert headers["x-should-retry"] == "true"
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert httpx.get(f"{process.url}/v1/receipts/{headers['x-request-id']}",
                         headers={"Authorization": f"Bearer {KEY}"}).status_code == 404  # fmt: skip
        other = ask(process, key=OTHER_KEY)
        assert other.status_code == 200
        assert not [name for name in other.headers if name.startswith("x-ratelimit")]


@pytest.mark.long
def test_the_sdk_waits_for_retry_after_and_gets_its_answer(redis_url: str, tmp_path: Path) -> None:
    """The only slot is in use; the SDK's own retry acquires it after its release."""
    with gateway(tmp_path, redis_url, {"acme": {"limits": {"max_parallel_requests": 1}}}, "slots") as process:
        answers: list[str | None] = []

        def call() -> None:
            answers.append(complete(process, route="chat", max_retries=10).choices[0].message.content)

        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(timeout=40)
        assert answers == ["The answer and ends."] * 3


def test_a_request_that_can_never_fit_is_not_to_be_tried_again(redis_url: str, tmp_path: Path) -> None:
    with gateway(tmp_path, redis_url, {"acme": {"limits": {"tpm_limit": 50}}}, "never") as process:
        refused = ask(process, max_tokens=51)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
        assert "retry-after" not in refused.headers
        assert "Send a shorter prompt or a lower max_tokens." in refused.json()["error"]["message"]
        assert ask(process, max_tokens=5).status_code == 200


def test_a_spent_budget_is_insufficient_quota(redis_url: str, tmp_path: Path) -> None:
    """The error has the time of the reset; the spent amount is the sum of the receipts."""
    budget = {"max_budget": 0.0008, "budget_duration": "1d"}
    with gateway(tmp_path, redis_url, {"acme": {"budget": budget}}, "budgets") as process:
        spent = Decimal(0)
        for _ in range(50):
            answer = ask(process, "chat-teacher")
            if answer.status_code != 200:
                break
            spent += Decimal(process.wait_for_log("request", id=answer.headers["x-request-id"])["cost_usd"])
        with pytest.raises(openai.RateLimitError) as refused:
            complete(process, route="chat-teacher")
        error = refused.value
        assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
        assert error.response.headers["x-should-retry"] == "false"
        assert "retry-after" not in error.response.headers
        assert "The budget of this tenant, $0.0008 per day, has $" in error.message
        assert "It resets at 20" in error.message
        assert 0 < spent <= Decimal("0.0008")
        assert ask(process, key=OTHER_KEY).status_code == 200
        event = process.wait_for_log("budget", tenant="acme", kind="budget_hard")
        assert Decimal(event["spent_usd"]) == spent


def test_above_the_soft_limit_the_student_answers_alone_with_a_header(redis_url: str, tmp_path: Path) -> None:
    """The webhook receives one signed alert."""
    posted: list[tuple[dict[str, str], bytes]] = []

    async def hook(request: web.Request) -> web.Response:
        posted.append((dict(request.headers), await request.read()))
        return web.Response(status=500 if len(posted) == 1 else 204)

    app = web.Application()
    app.router.add_post("/hook", hook)
    budget = {"max_budget": 10, "soft_budget": 0.00001, "on_soft": "student_only"}
    (tmp_path / "secret").write_text("of-the-webhook")
    with (
        served(app) as where,
        gateway(
            tmp_path,
            redis_url,
            {"acme": {"budget": budget}},
            "soft",
            alerts={"webhook": f"{where}/hook", "webhook_secret": "file:secret"},
        ) as process,
    ):
        first, second, third = ask(process, "chat"), ask(process, "chat"), ask(process, "chat", stream=True)
        assert (first.headers["x-gkt-mode"], "x-gkt-budget" in first.headers) == ("guided", False)
        for answer in (second, third):
            assert answer.headers["x-gkt-mode"] == "student"
            assert answer.headers["x-gkt-unguided"] == "budget"
            assert answer.headers["x-gkt-budget"] == "soft"
        give_up = time.monotonic() + 15
        while len(posted) < 2:
            assert time.monotonic() < give_up, "not told"
            time.sleep(0.02)
        headers, body = posted[1]
        assert posted[0][1] == body, "what failed is sent again"
        alert = orjson.loads(body)
        assert {name: alert[name] for name in ("event", "tenant", "budget", "key", "max_budget_usd")} == {
            "event": "budget_soft",
            "tenant": "acme",
            "budget": "tenant",
            "key": None,
            "max_budget_usd": "10.000000000000",
        }
        signed = hmac.new(b"of-the-webhook", body, hashlib.sha256).hexdigest()
        assert headers["x-gkt-signature"] == f"sha256={signed}"


def test_shorter_guidance_is_half_as_long(redis_url: str, tmp_path: Path) -> None:
    budget = {"max_budget": 10, "soft_budget": 0.00001, "on_soft": "shorten"}
    with gateway(tmp_path, redis_url, {"acme": {"budget": budget}}, "shorten") as process:
        lines = []
        for _ in range(2):
            answer = ask(process, "chat")
            line = process.wait_for_log("request", id=answer.headers["x-request-id"])
            lines.append((line["mode"], line["guidance"]["tokens"]))
        assert lines == [("guided", 12), ("guided", 6)]


def test_a_keys_limits_precede_the_tenants_and_the_defaults(redis_url: str, tmp_path: Path) -> None:
    """A key's own limits precede its tenant's limits for keys, and those precede the defaults."""
    own = {"id": "own", "sha256": hashlib.sha256(b"gk-own").hexdigest(), "limits": {"rpm_limit": 1}}
    plain = {"id": "plain", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
    tenants = {"acme": {"keys": [own, plain], "key_limits": {"rpm_limit": 2}}}
    defaults = {"key_limits": {"rpm_limit": 3}}
    with gateway(tmp_path, redis_url, tenants, "keys", defaults=defaults) as process:
        for key, most in (("gk-own", 1), (KEY, 2), (OTHER_KEY, 3)):
            answers = [ask(process, key=key) for _ in range(most + 1)]
            assert [answer.status_code for answer in answers] == [200] * most + [429]
            assert answers[0].headers["x-ratelimit-limit-requests"] == str(most)
            assert "The limit of this key is" in answers[-1].json()["error"]["message"]


@pytest.mark.long
async def test_while_redis_is_away_each_tenants_policy_decides_and_all_is_counted_later(tmp_path: Path) -> None:
    """acme is served without a check, beyond its limit; globex is rejected.

    After its return Redis counts acme's requests.
    """
    async with EmbeddedRedis() as server:
        await asyncio.to_thread(_while_redis_is_away, server.url, tmp_path)


def _while_redis_is_away(redis_url: str, folder: Path) -> None:
    tenants = {
        "acme": {"limits": {"rpm_limit": 4}, "on_redis_failure": "allow"},
        "globex": {"limits": {"rpm_limit": 4}, "on_redis_failure": "reject"},
    }
    with gateway(folder, redis_url, tenants, "away", redis={"timeout": "100ms"}) as process:
        assert ask(process).status_code == 200
        with redis.Redis.from_url(redis_url) as admin:
            admin.execute_command("CLIENT", "PAUSE", 3000)
            went_on = [ask(process) for _ in range(5)]
            refused = ask(process, key=OTHER_KEY)
        assert [answer.status_code for answer in went_on] == [200] * 5
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        process.wait_for_log("redis", up=True)
        give_up = time.monotonic() + 10
        while ask(process).status_code != 429:
            assert time.monotonic() < give_up, "what went on unasked was not counted"
            time.sleep(0.2)
        metrics = httpx.get(f"{process.admin_url}/metrics").text
        counts = [line for line in metrics.splitlines() if line.startswith("gkt_uncounted_total")]
        assert len(counts) == 1
        assert counts[0].startswith('gkt_uncounted_total{tenant="acme"} ')
        assert float(counts[0].split()[1]) >= 5
