"""GET /summary of a running gateway: costs, savings and quality of a period, compared with the one before."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.admin.dashboard_world import DAY_S, DashboardWorld, dashboard_world
from tests.usage.databases import receipt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.accounting.receipt import Receipt

PRICE = {"cost_usd": Decimal("0.001"), "baseline_usd": Decimal("0.003"), "baseline_error_usd": Decimal("0.0005")}


@pytest.fixture
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardWorld]:
    budget = {"max_budget": 10, "budget_duration": "1mo"}
    tenants = {"acme": {"budget": budget}, "globex": {"budget": budget | {"max_budget": 5}}}
    with dashboard_world(tmp_path_factory.mktemp("summary"), redis_url, tenants=tenants) as world:
        yield world


def of_age(seconds: float, number: int = 1, **more: object) -> list[Receipt]:
    """Return receipts that cost 0.001, with savings of 0.002."""
    return [receipt(int(time.time() - seconds), **PRICE | more) for _ in range(number)]


def unguided(reason: str, number: int, **more: object) -> list[Receipt]:
    return of_age(60, number, mode="student", unguided=reason, guidance=None, teacher=None, **more)


def test_amounts_of_a_period_are_compared_with_the_one_before(world: DashboardWorld) -> None:
    shadow = receipt(int(time.time()), **PRICE | {"mode": "shadow", "shadow_of": "req_0"})
    world.add(*of_age(0, 4), *of_age(1.6 * DAY_S, 2), *of_age(0, 1, status="engine_timeout"), shadow)
    world.add(*of_age(0, 1, tenant="globex", route="code", key="other"))
    whole, acme = world.get("/summary", since="24h"), world.get("/summary", since="24h", tenant="acme")
    assert (whole["spent"]["usd"], acme["spent"]["usd"]) == ("0.007", "0.006")
    assert acme["spent"]["measuring_usd"] == "0.001"
    assert acme["spent"]["previous_usd"] == "0.002"
    length, before = acme["period"]["seconds"], acme["previous"]["seconds"]
    assert acme["spent"]["change"] == pytest.approx(3 * before / length - 1, abs=1e-3)
    saved = acme["saved"]
    assert (saved["usd"], saved["error_usd"], saved["about_zero"]) == ("0.008", "0.002", False)
    assert saved["guided"] == {"usd": "0.008", "error_usd": "0.002", "about_zero": False}
    assert (saved["previous_usd"], saved["previous_error_usd"]) == ("0.004", "0.001")
    assert saved["share"] == pytest.approx(0.008 / 0.015)
    counts = acme["requests"]
    assert (counts["total"], counts["previous_total"], counts["errors"]) == (5, 2, 1), "without the shadow"
    assert acme["filters"] == {"tenant": "acme"}
    assert world.get("/summary", since="24h", route="code")["spent"]["usd"] == "0.001"
    assert world.get("/summary", since="24h", key="other")["spent"]["usd"] == "0.001"
    assert whole["period"]["month"] is None
    assert world.get("/summary")["period"]["month"] == time.strftime("%Y-%m", time.gmtime())


def test_the_budget_is_that_of_the_filter(world: DashboardWorld) -> None:
    budget = world.get("/summary", tenant="acme")["spent"]["budget"]
    assert (budget["of"], budget["limit_usd"], budget["spent_usd"]) == ("tenant", "10", "0")
    assert budget["ends"].endswith("-01T00:00:00Z")
    both = world.get("/summary")["spent"]["budget"]
    assert (both["of"], both["budgets"], both["limit_usd"], both["ends"]) == ("tenants", 2, "15", budget["ends"])
    assert world.get("/summary", tenant="acme", route="chat")["spent"]["budget"] is None
    assert world.get("/summary", tenant="acme", key="only")["spent"]["budget"] is None, "the key has none"


def test_banners_name_engines_and_missing_guidance(world: DashboardWorld) -> None:
    banners = {one["engine"]: one for one in world.get("/summary")["banners"]}
    assert set(banners) == {"big", "small"}
    assert banners["big"]["since"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert banners["big"]["reason"]
    world.add(*of_age(60, 10), *unguided("teacher_late", 4), *unguided("tools", 20))
    assert len(world.get("/summary")["banners"]) == 2, "4 of 34 requests are failures"
    world.add(*unguided("teacher_unreachable", 6))
    found = world.get("/summary", since="1h")
    assert found["requests"]["unguided_share"] == found["banners"][-1]["share"] == 0.25
    assert found["requests"]["unguided_by_failure"] == 10
    assert found["banners"][-1]["reasons"] == {"teacher_late": 4, "teacher_unreachable": 6}
    assert len(world.get("/summary", tenant="globex")["banners"]) == 2, "another tenant has no such problem"


def test_the_verdict_on_quality_compares_the_periods(world: DashboardWorld) -> None:
    assert world.get("/summary", since="7d")["quality"]["verdict"] == "not_measured"
    world.compare(*[0.6, 0.8] * 100, ago_s=8.5 * DAY_S)
    world.compare(*[0.6, 0.8] * 100, ago_s=DAY_S)
    world.compare(*[0.2, 0.4] * 100, ago_s=DAY_S, tenant="globex")
    world.compare(*[0.6, 0.8] * 100, ago_s=8.5 * DAY_S, tenant="globex")
    acme = world.get("/summary", since="7d", tenant="acme", key="only")["quality"]
    assert (acme["verdict"], acme["reason"], acme["n"], acme["previous_n"]) == ("holding", "change", 200, 200)
    assert acme["agreement"]["low"] < acme["agreement"]["value"] == 0.7 < acme["agreement"]["high"]
    assert acme["ignored"] == ["key"]
    assert (acme["bound"], [one["route"] for one in acme["routes"]]) == (None, ["chat"])
    assert world.get("/summary", since="7d", tenant="globex")["quality"]["verdict"] == "falling"
    both = world.get("/summary", since="7d")["quality"]
    assert {one["tenant"]: one["verdict"] for one in both["routes"]} == {"acme": "holding", "globex": "falling"}
    assert both["change"]["value"] == -0.2


def test_unknown_tenants_and_parameters_are_refused(world: DashboardWorld) -> None:
    assert world.error("/summary", tenant="acmee")[:2] == (404, "tenant")
    assert world.error("/summary", tenants="acme")[:2] == (400, "tenants")
    assert world.error("/summary", since="tomorrow")[:2] == (400, "since")
    assert httpx.get(f"{world.gateway.admin_url}/summary").status_code == 401
