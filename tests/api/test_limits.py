"""GET /v1/limits on a real gateway: the limits of a key and its tenant, and their usage."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.local.redis import EmbeddedRedis
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aiohttp import web

HIDDEN_KEY, SHOWN_KEY = "gk-test-of-hidden-routes", "gk-test-of-all-routes"
ADMIN_KEY = "an-admin-key-for-tests"
ROUTE = STUDENT_ONLY | {"baseline": "small", "retries": {"num_retries": 0}, "default_max_tokens": 20}
BUDGET = {"max_budget": 20, "soft_budget": 15, "budget_duration": "1d"}
TENANTS: dict[str, dict[str, Any]] = {
    "acme": {
        "limits": {"rpm_limit": 100, "tpm_limit": 50_000, "max_parallel_requests": 7},
        "key_limits": {"rpm_limit": 10},
        "budget": BUDGET,
        "key_budget": {"max_budget": 3, "budget_duration": "100h", "calendar_aligned": False},
    },
    "hides": {
        "budget": BUDGET,
        "keys": [
            {"id": "of-hidden", "sha256": sha256(HIDDEN_KEY), "models": ["hidden"]},
            {"id": "of-all", "sha256": sha256(SHOWN_KEY)},
        ],
        "routes": [ROUTE | {"model": "hidden", "show_cost": False}, ROUTE],
    },
}


class Student(FakeEngine):
    """Answer when allowed."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        super().__init__(self._once_it_may)

    async def _once_it_may(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        while not self.may_answer.is_set():
            await asyncio.sleep(0.01)
        return await says("Hello there.")(request, body)


@contextmanager
def serving(folder: Path, redis_url: str, student: Student) -> Iterator[GatewayProcess]:
    """Run a gateway on which a token costs a tenth of a cent."""
    (folder / "admin.key").write_text(ADMIN_KEY)
    with (
        student.running() as engine,
        running_gateway(
            folder,
            redis_url=redis_url,
            redis={"prefix": f"l{os.urandom(4).hex()}"},
            admin={"key": "file:admin.key"},
            models=[
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False)
                | {"price": {"input_per_1m": 1000, "output_per_1m": 1000}}
            ],
            routes=[ROUTE],
            tenants=TENANTS,
        ) as process,
    ):
        yield process


@pytest.fixture(scope="module")
def student() -> Student:
    return Student()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str, student: Student) -> Iterator[GatewayProcess]:
    with serving(tmp_path_factory.mktemp("limits"), redis_url, student) as process:
        yield process


def limits(process: GatewayProcess, key: str = KEY) -> httpx.Response:
    return httpx.get(f"{process.url}/v1/limits", headers={"Authorization": f"Bearer {key}"}, timeout=20)


def ask(process: GatewayProcess, key: str = KEY) -> httpx.Response:
    body = {"model": "chat-student", "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(
        f"{process.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30
    )
    assert answer.status_code == 200, answer.text
    return answer


def operator(process: GatewayProcess, method: str, path: str, body: Any = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.request(method, process.admin_url + path, json=body, headers=headers, timeout=20)


def until(holds: Any) -> None:
    give_up = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_callers_see_their_limits_and_usage(gateway: GatewayProcess, student: Student) -> None:
    """A request in flight counts as in use and reserved; afterwards its cost counts as spent."""
    before = limits(gateway).json()
    student.may_answer.clear()
    asking = threading.Thread(target=ask, args=[gateway])
    asking.start()
    until(lambda: limits(gateway).json()["tenant"]["parallel_requests"]["used"] == 1)
    during = limits(gateway).json()
    student.may_answer.set()
    asking.join()
    until(lambda: limits(gateway).json()["tenant"]["parallel_requests"]["used"] == 0)
    answer = ask(gateway)
    until(lambda: limits(gateway).json()["tenant"]["parallel_requests"]["used"] == 0)
    after = limits(gateway).json()

    assert before["object"] == "limits"
    assert (before["tenant"]["id"], before["key"]["id"]) == ("acme", "only")
    assert before["tenant"]["requests_per_minute"] == {"limit": 100, "used": 0, "left": 100}
    assert before["key"]["tokens_per_minute"] is before["key"]["parallel_requests"] is None
    assert during["tenant"]["parallel_requests"] == {"limit": 7, "used": 1, "left": 6}
    assert during["key"]["requests_per_minute"] == {"limit": 10, "used": 1, "left": 9}
    assert after["key"]["requests_per_minute"]["left"] == int(answer.headers["x-ratelimit-remaining-requests"]) == 8
    assert after["tenant"]["tokens_per_minute"]["used"] == 24, "10 read and 2 written, each time"

    reserved = Decimal(during["tenant"]["budget"]["reserved_usd"])
    assert reserved > Decimal("0.1")
    assert Decimal(during["key"]["budget"]["left_usd"]) == 3 - reserved
    day_end = during["tenant"]["budget"]["ends"]
    assert datetime.fromtimestamp(day_end, UTC).strftime("%H:%M:%S") == "00:00:00"
    assert after["tenant"]["budget"] == {
        "duration": "1d",
        "ends": day_end,
        "max_usd": "20",
        "spent_usd": "0.024",
        "reserved_usd": "0",
        "left_usd": "19.976",
    }
    assert (after["key"]["budget"]["ends"], after["key"]["budget"]["spent_usd"]) == (None, "0.024")


def test_a_callers_budget_includes_a_raise(gateway: GatewayProcess) -> None:
    raised = operator(gateway, "POST", "/budgets/acme/raise", {"usd": 5})
    assert raised.status_code == 200
    assert limits(gateway).json()["tenant"]["budget"]["max_usd"] == "25"


def test_callers_see_only_their_own_tenant(gateway: GatewayProcess) -> None:
    """globex has no limits, and its reply does not show that acme's are used up."""
    ask(gateway)
    found = limits(gateway, OTHER_KEY)
    none = {"requests_per_minute": None, "tokens_per_minute": None, "parallel_requests": None, "budget": None}
    assert found.json() == {"object": "limits", "tenant": {"id": "globex", **none}, "key": {"id": "only", **none}}
    assert "globex" not in limits(gateway).text
    assert limits(gateway, SHOWN_KEY).json()["tenant"]["budget"]["spent_usd"] == "0"
    assert limits(gateway, "gk-unknown").status_code == 401


def test_keys_whose_routes_hide_costs_see_no_money(gateway: GatewayProcess) -> None:
    """Another key of the same tenant may use a route that shows costs."""
    hidden = limits(gateway, HIDDEN_KEY)
    assert "budget" not in hidden.text
    assert "usd" not in hidden.text
    assert limits(gateway, SHOWN_KEY).json()["tenant"]["budget"]["max_usd"] == "20"


async def test_without_redis_limits_are_an_error(tmp_path: Path) -> None:
    """Callers and operators get the error. A tenant without limits still gets its reply."""
    async with EmbeddedRedis() as redis:
        with serving(tmp_path, redis.url, Student()) as process:
            assert limits(process).status_code == 200
            await redis.stop()
            for _ in range(2):
                away = limits(process)
                assert (away.status_code, away.headers["x-should-retry"]) == (503, "true")
                assert "while Redis is unavailable" in away.json()["error"]["message"]
            assert limits(process, OTHER_KEY).status_code == 200
            answers = operator(process, "GET", "/budgets"), operator(process, "POST", "/budgets/acme/raise", {"usd": 5})
            assert [answer.status_code for answer in answers] == [503, 503]
