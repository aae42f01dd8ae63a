"""A teacher that is slower than its route's deadline: the warning, and the deadline that follows without a restart."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.config.scalars import duration_s
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway, sha256, write_policy
from tests.readiness import detail, wait_until_probed

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

TAKES_S = 1.3
_numbers = itertools.count()


async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(TAKES_S)
    return await says("The answer to your question begins", "length")(request, body)


@pytest.mark.long
def test_a_route_that_is_often_late_names_its_setting_and_auto_ends_the_lateness_without_a_restart(
    redis_url: str, tmp_path: Path
) -> None:
    """The configured lease, 1 s, is shorter than the teacher's time. The lease of the permits is longer."""
    with FakeEngine(slow).running() as teacher, FakeEngine(says(" here.")).running() as student:
        models = [
            model("big", "tgi", teacher.url),
            model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
        ]
        setting = {"tokens": 6, "deadline": "100ms"}
        with running_gateway(
            tmp_path,
            redis_url=redis_url,
            redis={"prefix": "late", "lease": "1s"},
            models=models,
            routes=[guided(**setting)],
        ) as gateway:
            wait_until_probed(gateway.admin_url)
            late = [ask(gateway) for _ in range(3)]
            assert [one.headers["x-gkt-unguided"] for one in late] == ["teacher_late"] * 3
            assert "x-gkt-hint" not in late[0].headers
            hint = late[2].headers["x-gkt-hint"]
            name, _, value = hint.partition("=")
            assert name == "guidance.deadline"
            assert duration_s(value) >= 0.25  # twice what the requests waited, and a quarter more
            line = gateway.wait_for_log("guidance_often_late", tenant="acme", route="chat")
            assert (line["late"], line["of"], line["set"]) == (3, 3, hint)
            (warning,) = detail(gateway.admin_url)["engines"]["big"]["warnings"]
            assert f"set {hint}" in warning

            auto = {"tokens": 6, "deadline": "auto", "auto_deadline": {"min": "1s", "max": "20s"}}
            write_policy(
                tmp_path / "policies" / "acme.yaml",
                {"tenant": "acme", "keys": [{"id": "only", "sha256": sha256(KEY)}], "routes": [guided(**auto)]},
            )
            gateway.wait_for_log("policies_loaded")
            give_up = time.monotonic() + 30
            while (answer := ask(gateway)).headers["x-gkt-mode"] != "guided":
                assert time.monotonic() < give_up
            assert answer.json()["choices"][0]["message"]["content"] == "The answer to your question here."


async def slow_without_stop(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await (says("The answer", "stop") if body.get("stop") else slow)(request, body)


@pytest.mark.long
def test_answers_that_callers_stop_early_do_not_lower_the_deadline(redis_url: str, tmp_path: Path) -> None:
    with FakeEngine(slow_without_stop).running() as teacher, FakeEngine(says(" here.")).running() as student:
        models = [
            model("big", "tgi", teacher.url),
            model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
        ]
        auto = {"tokens": 6, "deadline": "auto", "auto_deadline": {"min": "100ms", "max": "20s"}, "max_wait": "1ms"}
        with running_gateway(
            tmp_path, redis_url=redis_url, redis={"prefix": "stopped"}, models=models, routes=[guided(**auto)]
        ) as gateway:
            wait_until_probed(gateway.admin_url)
            stopped = {ask(gateway, stop=["begins"]).headers["x-gkt-mode"] for _ in range(6)}
            assert stopped == {"teacher_complete"}
            assert ask(gateway).headers["x-gkt-mode"] == "guided"


def ask(gateway: GatewayProcess, **more: Any) -> httpx.Response:
    body = {"model": "chat", "messages": [{"role": "user", "content": f"What is number {next(_numbers)}?"}]} | more
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=30)
    assert answer.status_code == 200
    return answer
