"""GET /reliability of a running gateway: engines by role, and unguided answers by reason."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx

from gateway.accounting.receipt import Timings
from tests.admin.dashboard_world import DashboardWorld, dashboard_world
from tests.gateway_process import KEY, OTHER_KEY
from tests.prometheus_world import until
from tests.usage.databases import receipt

if TYPE_CHECKING:
    from pathlib import Path


def test_engines_and_reasons_of_a_period(redis_url: str, tmp_path: Path) -> None:
    now = int(time.time())
    fields: dict[str, Any] = {
        "timings": Timings(total_ms=2000, teacher_ms=400, first_token_ms=800),
        "savings_class": None,  # that of the other fields
    }
    alone = fields | {"mode": "student", "guidance": None, "teacher": None}
    guided = [receipt(now - 60, **fields) for _ in range(6)]
    failed = [receipt(now - 60, status=one, **fields) for one in ("engine_timeout", "client_gone")]
    unguided = [receipt(now - 60, unguided=one, **alone) for one in ("teacher_late", "tools", "budget", "tools")]
    shadow = receipt(now - 60, mode="shadow", shadow_of="req_0", **fields)
    other = receipt(now - 60, tenant="globex", **fields)
    with dashboard_world(tmp_path, redis_url) as world:
        empty = world.get("/reliability", tenant="acme")
        assert (empty["requests"], empty["unguided_share"], empty["unguided"]) == (0, None, [])
        assert [(one["name"], one["teacher"], one["student"]) for one in empty["engines"]] == [
            ("big", None, None),
            ("small", None, None),
        ]
        world.add(*guided, *failed, *unguided, shadow, other)
        found = world.get("/reliability", tenant="acme")
        assert world.get("/reliability")["requests"] == 13
        assert world.error("/reliability", tenant="acmee")[:2] == (404, "tenant")
    big, small = found["engines"]
    assert (big["up"], big["breaker"], big["failed_calls"]) == (False, "closed", {})
    assert big["since"] is not None
    assert big["student"] is None
    assert (big["teacher"]["requests"], big["teacher"]["error_share"]) == (8, 0.125)
    assert big["teacher"]["errors"] == found["errors"] == {"engine_timeout": 1}
    assert (found["answers"], found["disconnected"], found["shadows"]) == (10, 1, 1)
    assert set(big["teacher"]["latency_ms"]) == {"teacher"}
    assert 380 < big["teacher"]["latency_ms"]["teacher"]["p95"] < 420
    assert (small["student"]["requests"], set(small["student"]["latency_ms"])) == (12, {"first_token", "total"})
    assert (found["requests"], found["guided"], found["threshold"]) == (12, 8, 0.2)
    assert {(one["reason"], one["cause"], one["requests"]) for one in found["unguided"]} == {
        ("tools", "request", 2),
        ("teacher_late", "failure", 1),
        ("budget", "policy", 1),
    }
    assert found["unguided_share"] == round(1 / 12, 6)


def test_rejections_are_counted_by_status_error_and_tenant(redis_url: str, tmp_path: Path) -> None:
    acme, globex = ({"Authorization": f"Bearer {key}"} for key in (KEY, OTHER_KEY))
    body = {"model": "chat-student", "messages": [{"role": "user", "content": "Write."}]}
    invented = [{"Authorization": f"Bearer gkt-invented-{number}"} for number in range(20)]
    with dashboard_world(tmp_path, redis_url, tenants={"globex": {"limits": {"rpm_limit": 1}}}) as world:
        url = world.gateway.url
        with httpx.Client(timeout=60) as client:  # on one connection: a tenant is that of the request alone
            for headers in (acme, {}, *invented):
                client.get(f"{url}/v1/limits", headers=headers)
            client.get(f"{url}/v1/assistants", headers=acme)
            client.put(f"{url}/v1/models", headers=acme)
            client.post(f"{url}/v1/chat/completions", json=body | {"model": "missing"}, headers=acme)
            for _ in range(2):
                client.post(f"{url}/v1/chat/completions", json=body, headers=globex)
        httpx.get(f"{world.gateway.admin_url}/usage", timeout=60)  # operators' errors are not counted
        until(lambda: rejections_of(world).get("total") == 25, "all rejections are counted")
        found = world.get("/reliability", since="7d")
        of_acme = world.get("/reliability", since="7d", tenant="acme", key="only")
        metrics = world.reply("/metrics").text
    shown = found["rejections"]["rows"]
    rows = Counter({(one["status"], one["error"], one["tenant"]): one["requests"] for one in shown})
    assert rows == {
        (401, "not_authenticated", None): 21,
        (404, "not_found", None): 1,
        (405, "method_not_allowed", None): 1,
        (404, "model_not_found", "acme"): 1,
        (429, "rate_limited", "globex"): 1,
    }
    assert shown[0]["requests"] == 21, "the most frequent first"
    assert found["requests"] == 0, "no rejection has a receipt"
    assert (of_acme["rejections"]["total"], of_acme["rejections"]["ignored"]) == (1, ["key"])
    assert 'gkt_refused_total{status="not_found"} 1.0' in metrics


def rejections_of(world: DashboardWorld) -> dict[str, Any]:
    """Return the rejections, or nothing while the usage database cannot be read."""
    found: dict[str, Any] = world.reply("/reliability").json().get("rejections", {})
    return found
