"""GET /reconciliation on a real gateway with an engine that is paid by the hour, and its command."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.cli import in_process
from tests.cli.in_process import ADMIN_KEY
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, GatewayProcess, model, running_gateway
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 60


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    """Run a gateway: `small` is two GPUs at 1.80 an hour each, with a high token price; `big` is paid by the token."""
    folder = tmp_path_factory.mktemp("hours")
    (folder / "admin.key").write_text(ADMIN_KEY)
    hourly = {"gpu_usd_per_hour": 1.8, "gpus": 2, "input_tokens_per_s": 1, "output_tokens_per_s": 1}
    with (
        FakeEngine(says("Hello there.")).running() as engine,
        running_gateway(
            folder,
            redis_url=redis_url,
            usage={"run": "host"},
            redis={"prefix": f"h{os.urandom(4).hex()}"},
            admin={"key": "file:admin.key"},
            models=[
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False) | {"price": hourly},
                model("big", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[STUDENT_ONLY | {"baseline": "small"}, TEACHER_ONLY],
        ) as process,
    ):
        wait_until_up(process.admin_url)
        yield process


def ask(process: GatewayProcess, query: str = "") -> httpx.Response:
    return httpx.get(
        f"{process.admin_url}/reconciliation{query}", headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=20
    )


def spend(process: GatewayProcess, route: str) -> Decimal:
    """Send one request; return its cost."""
    body = {"model": route, "messages": [{"role": "user", "content": "Hello"}]}
    reply = httpx.post(
        f"{process.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=20
    )
    assert reply.status_code == 200, reply.text
    return Decimal(reply.headers["x-gkt-cost-usd"])


def until_charged(process: GatewayProcess, usd: Decimal) -> dict[str, Any]:
    """Wait until the sums include all receipts and an engine was seen. The test's day may end meanwhile."""
    give_up = time.monotonic() + LIMIT_S
    while True:
        reply = ask(process, "?since=2d")
        found: dict[str, Any] = reply.json()
        if reply.is_success:  # a busy database gives a 503
            seen = any(one["minutes"] for day in found["days"] for one in day["engines"])
            if seen and Decimal(found["total"]["charged_usd"]) == usd:
                return found
        assert time.monotonic() < give_up, found
        time.sleep(0.1)


@pytest.mark.long
def test_each_hour_has_receipts_and_charges(gateway: GatewayProcess) -> None:
    """Charges agree with receipts to the last digit.

    An engine paid by the token has no hours. The command prints both.
    """
    small = sum((spend(gateway, STUDENT_ONLY["model"]) for _ in range(3)), Decimal(0))
    big = spend(gateway, TEACHER_ONLY["model"])
    found = until_charged(gateway, small + big)
    engines: dict[str, list[dict[str, Any]]] = {}
    for day in found["days"]:
        for one in day["engines"]:
            engines.setdefault(one["engine"], []).append(one)
    assert sum(Decimal(one["charged_usd"]) for one in engines["small"]) == small
    assert sum(Decimal(one["charged_usd"]) for one in engines["big"]) == big
    for one in engines["small"]:
        if one["minutes"] is not None:
            assert one["usd_per_hour"] == "3.6"
            assert one["minutes"]["up"] >= 1
            assert Decimal(one["wall_usd"]) == Decimal("0.06") * one["minutes"]["up"]
            assert Decimal(one["difference_usd"]) == Decimal(one["wall_usd"]) - Decimal(one["charged_usd"])
    assert [(one["minutes"], one["wall_usd"]) for one in engines["big"]] == [(None, None)] * len(engines["big"])
    assert Decimal(found["total"]["by_token_usd"]) == big

    completed = in_process.run("usage", "reconcile", "--since", "2d", "--json", "--url", gateway.admin_url)
    assert completed.returncode == 0, completed.stderr
    assert json.loads(completed.stdout)["total"]["charged_usd"] == found["total"]["charged_usd"]
    shown = in_process.run("usage", "reconcile", "--since", "2d", "--url", gateway.admin_url)
    (line,) = (line for line in shown.stdout.splitlines() if " small " in line and "3.6" in line)
    assert "so far" in shown.stdout
    assert line.count(" h ") == 3
    assert f"{big:.6f}" in next(line for line in shown.stdout.splitlines() if "by the token" in line)


def day(days_from_now: int) -> str:
    return f"{datetime.now(UTC) + timedelta(days=days_from_now):%Y-%m-%d}"


def test_a_day_a_range_and_today(gateway: GatewayProcess) -> None:
    one = ask(gateway, f"?day={day(-3)}").json()
    assert ([entry["day"] for entry in one["days"]], one["days"][0]["complete"]) == ([day(-3)], True)
    assert one["days"][0]["engines"] == []
    some = ask(gateway, f"?since={day(-9)}&until={day(-3)}").json()
    assert [entry["day"] for entry in some["days"]] == [day(place) for place in range(-9, -2)]
    assert (some["since"], some["until"]) == (day(-9), day(-3))
    today = ask(gateway).json()
    assert [entry["complete"] for entry in today["days"]] == [False]


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        (lambda: "?day=yesterday", "day", "'day': expected a day of UTC like 2026-12-01."),
        (lambda: "?day=2026-02-30", "day", "'day': expected a day of UTC like 2026-12-01."),
        (lambda: "?day=7d", "day", "'day': expected a day of UTC like 2026-12-01."),
        (lambda: f"?day={day(2)}", "day", "'day': is in the future; today is "),
        (lambda: f"?day={day(-1)}&since=7d", "day", "'day': cannot be combined with 'since' or 'until'."),
        (lambda: "?since=0d", "since", "'since': expected a day of UTC like 2026-12-01, or a number of days, like 7d."),
        (lambda: "?since=%D9%A7d", "since", "'since': expected a day"),
        (lambda: "?until=9999-12-31", "until", "'until': is in the future; today is "),
        (lambda: f"?since={day(-2)}&until={day(-3)}", "since", "'since': must not be after 'until'."),
        (lambda: "?since=93d", "since", "'since': the range has more than 92 days. Send a shorter range."),
        (lambda: "?since=9999d", "since", "'since': must not be before "),
        (lambda: "?day=0001-01-01", "day", "'day': must not be before "),
        (lambda: "?by=engine", "by", "'by': unknown parameter; known parameters: day, since, until."),
    ],
)
def test_an_invalid_query_is_a_400_with_the_reason(
    gateway: GatewayProcess, query: Any, param: str, message: str
) -> None:
    reply = ask(gateway, query())
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["message"].startswith(message)


def test_reconciliation_requires_the_admin_key(gateway: GatewayProcess) -> None:
    assert httpx.get(f"{gateway.admin_url}/reconciliation").status_code == 401
    assert in_process.run("usage", "reconcile", "--since", "soon", "--url", gateway.admin_url).returncode == 1
