"""Reports of devices are not verified: they save nothing without a rule of the policy, and no more than it allows."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest

from tests.cli import in_process
from tests.cli.in_process import ADMIN_KEY
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, GatewayProcess, guided, model, running_gateway, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
OWN_BOUND = "gk-test-of-a-till"
REPORT = {"model": "chat", "input_tokens": 1_000, "output_tokens": 4_000, "student": "phone", "finish_reason": "stop"}
"""The teacher alone would have cost 0.005 USD."""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    tills = [
        {"id": "only", "sha256": sha256(OTHER_KEY)},
        {"id": "till-07", "sha256": sha256(OWN_BOUND), "device": {"max_daily_savings": 0.006}},
    ]
    with (
        FakeEngine(says("One two three", "length")).running() as engine,
        running_gateway(
            tmp_path_factory.mktemp("devices"),
            redis_url=redis_url,
            usage={"run": "host"},
            admin={"key": "env:DEVICES_ADMIN_KEY"},
            environ={"DEVICES_ADMIN_KEY": ADMIN_KEY},
            tenants={"globex": {"keys": tills, "key_device": {"max_daily_savings": 0.01}}},
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[guided()],
        ) as process,
    ):
        yield process


def report(gate: GatewayProcess, key: str, path: str = "/v1/guidance/usage", **more: Any) -> dict[str, Any]:
    body = REPORT | ({"id": str(uuid4())} if path.endswith("guidance/usage") else {}) | more
    headers = {"Authorization": f"Bearer {key}"}
    reply = httpx.post(f"{gate.url}{path}", json=body, headers=headers, timeout=30)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def usage_of(gate: GatewayProcess, tenant: str, requests: int) -> dict[str, Any]:
    """Return the sums of a tenant, once this number of requests is counted."""
    give_up = time.monotonic() + 30
    while True:
        found = httpx.get(f"{gate.admin_url}/usage", params={"tenant": tenant}, headers=ADMIN, timeout=30).json()
        if found.get("total", {}).get("requests") == requests:
            total: dict[str, Any] = found["total"]
            return total
        assert time.monotonic() < give_up, found
        time.sleep(0.05)


def test_invented_reports_of_any_key_move_neither_savings_nor_baseline(gate: GatewayProcess) -> None:
    for _ in range(20):
        receipt = report(gate, KEY)
        assert (receipt["savings_class"], receipt["student"]["output_tokens"]) == ("reported", 4_000)
        assert [Decimal(receipt[name]) for name in ("savings_usd", "baseline_usd", "baseline_error_usd")] == [0, 0, 0]
    total = usage_of(gate, "acme", 20)
    assert (total["baseline_usd"], total["savings_usd"], total["savings_error_usd"]) == ("0", "0", "0")
    guidance = httpx.post(
        f"{gate.url}/v1/guidance",
        json={"model": "chat", "messages": [{"role": "user", "content": "Why?"}]},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=30,
    ).json()
    body = {name: value for name, value in REPORT.items() if name != "model"}
    url = f"{gate.url}/v1/guidance/{guidance['receipt']}/usage"
    closed = httpx.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=30).json()
    assert (closed["edge_of"], Decimal(closed["baseline_usd"])) == (guidance["receipt"], 0)


def test_a_marked_key_saves_up_to_its_daily_bound_and_the_operator_sees_it_apart(gate: GatewayProcess) -> None:
    """The third report of a key exceeds 0.01 USD. The other key has its own bound."""
    receipts = [report(gate, OTHER_KEY) for _ in range(3)]
    assert [Decimal(one["savings_usd"]) for one in receipts] == [Decimal("0.005"), Decimal("0.005"), 0]
    assert [Decimal(report(gate, OWN_BOUND)["savings_usd"]) for _ in range(2)] == [Decimal("0.005"), 0]
    stored = httpx.get(
        f"{gate.url}/v1/receipts/{receipts[2]['id']}", headers={"Authorization": f"Bearer {OTHER_KEY}"}, timeout=30
    ).json()
    assert (stored["student"]["output_tokens"], Decimal(stored["baseline_usd"])) == (4_000, 0)
    total = usage_of(gate, "globex", 5)
    assert (total["baseline_usd"], total["savings_usd"]) == ("0.015", "0.015")
    assert total["savings_classes"]["reported"]["savings_usd"] == "0.015"
    summary = httpx.get(f"{gate.admin_url}/summary", params={"tenant": "globex"}, headers=ADMIN, timeout=30).json()
    assert (summary["saved"]["reported"]["usd"], summary["saved"]["measured"]["usd"]) == ("0.015", "0")
    done = in_process.run("usage", "show", "--url", gate.admin_url, "--tenant", "globex")
    words = " ".join(done.stdout.split())
    assert "reported by devices and not verified 0.015," in words, (words, done.stderr)
