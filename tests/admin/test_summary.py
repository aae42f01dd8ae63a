"""GET /summary of a running gateway: costs, savings and quality of a period, compared with the one before."""

from __future__ import annotations

import re
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.admin.problems import CAUSES
from gateway.errors import EngineError
from tests.admin.dashboard_world import DAY_S, NOWHERE, DashboardWorld, dashboard_world
from tests.gateway_process import KEY, model
from tests.postgres import new_database, running_postgres
from tests.prometheus_world import until
from tests.usage.databases import receipt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.accounting.receipt import Receipt
    from tests.postgres import Postgres

PRICE: dict[str, Any] = {
    "cost_usd": Decimal("0.001"),
    "baseline_usd": Decimal("0.003"),
    "baseline_error_usd": Decimal("0.0005"),
    "savings_class": None,  # that of the other fields
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def world(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DashboardWorld]:
    """Each test has tenants of its own."""
    url = "sqlite" if request.param == "sqlite" else new_database(request.getfixturevalue("postgres"))
    budget = {"max_budget": 10, "budget_duration": "1mo"}
    tenants = {"globex": {"budget": budget | {"max_budget": 5}}, "money": {}, "late": {}, "steady": {}, "worse": {}}
    folder = tmp_path_factory.mktemp("summary")
    with dashboard_world(folder, redis_url, usage_url=url, tenants=tenants, defaults={"budget": budget}) as world:
        yield world


def of_age(seconds: float, number: int = 1, **more: Any) -> list[Receipt]:
    """Return receipts that cost 0.001, with savings of 0.002."""
    return [receipt(int(time.time() - seconds), **PRICE | more) for _ in range(number)]


def unguided(reason: str, number: int) -> list[Receipt]:
    return of_age(60, number, tenant="late", mode="student", unguided=reason, guidance=None, teacher=None)


def test_amounts_of_a_period_are_compared_with_the_one_before(world: DashboardWorld) -> None:
    shadow = receipt(int(time.time()), **PRICE | {"mode": "shadow", "shadow_of": "req_0", "tenant": "money"})
    world.add(*of_age(0, 4, tenant="money"), *of_age(1.6 * DAY_S, 2, tenant="money"), shadow)
    world.add(*of_age(0, 1, tenant="money", status="engine_timeout"))
    world.add(*of_age(0, 1, tenant="money", route="code", key="other"))
    found = world.get("/summary", since="24h", tenant="money", route="chat")
    assert (found["spent"]["usd"], found["spent"]["measuring_usd"]) == ("0.006", "0.001")
    assert found["spent"]["previous_usd"] == "0.002"
    length, before = found["period"]["seconds"], found["previous"]["seconds"]
    assert found["spent"]["change"] == pytest.approx(3 * before / length - 1, abs=1e-3)
    saved = found["saved"]
    assert (saved["usd"], saved["error_usd"], saved["about_zero"]) == ("0.006", "0.002", False)
    assert (found["spent"]["failed_usd"], saved["baseline_usd"]) == ("0.001", "0.012")
    assert saved["guided"] == {"usd": "0.008", "error_usd": "0.002", "about_zero": False}
    assert (saved["previous_usd"], saved["previous_error_usd"]) == ("0.004", "0.001")
    assert saved["share"] == 0.5
    counts = found["requests"]
    assert (counts["total"], counts["previous_total"], counts["errors"]) == (5, 2, 1), "without the shadow"
    assert (counts["answers"], counts["disconnected"], counts["shadows"]) == (4, 0, 1)
    assert found["filters"] == {"tenant": "money", "route": "chat"}
    assert found["period"]["month"] is None
    assert world.get("/summary", since="24h", tenant="money")["spent"]["usd"] == "0.007"
    assert world.get("/summary", since="24h", route="code")["spent"]["usd"] == "0.001"
    assert world.get("/summary", since="24h", key="other")["spent"]["usd"] == "0.001"
    assert world.get("/summary")["period"]["month"] == time.strftime("%Y-%m", time.gmtime())


def test_the_budget_is_that_of_the_filter(world: DashboardWorld) -> None:
    budget = world.get("/summary", tenant="acme")["spent"]["budget"]
    assert (budget["of"], budget["limit_usd"], budget["spent_usd"]) == ("tenant", "10", "0")
    assert budget["ends"].endswith("-01T00:00:00Z")
    every = world.get("/summary")["spent"]["budget"]
    assert (every["of"], every["budgets"], every["limit_usd"], every["ends"]) == ("tenants", 6, "55", budget["ends"])
    assert world.get("/summary", tenant="acme", route="chat")["spent"]["budget"] is None
    assert world.get("/summary", tenant="acme", key="only")["spent"]["budget"] is None, "the key has none"


def test_banners_name_engines_and_missing_guidance(world: DashboardWorld) -> None:
    assert world.get("/summary", tenant="late")["banners"] == [], "no request used the engines"
    world.add(*of_age(60, tenant="late", route="chat-student", mode="student", guidance=None, teacher=None))
    assert [one["engine"] for one in world.get("/summary", tenant="late")["banners"]] == ["small"]
    world.add(*of_age(60, 10, tenant="late"), *unguided("teacher_late", 4), *unguided("tools", 20))
    banners = {one["engine"]: one for one in world.get("/summary", tenant="late")["banners"]}
    assert set(banners) == {"big", "small"}, "and no banner for 4 failures of 35 requests"
    assert banners["big"]["since"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert banners["big"]["reason"] == "unreachable"
    world.add(*unguided("teacher_unreachable", 6))
    found = world.get("/summary", since="1h", tenant="late")
    assert found["requests"]["unguided_share"] == found["banners"][-1]["share"] == 0.25
    assert found["requests"]["unguided_by_failure"] == 10
    assert found["banners"][-1]["reasons"] == {"teacher_late": 4, "teacher_unreachable": 6}


def test_the_verdict_on_quality_compares_the_periods(world: DashboardWorld) -> None:
    assert world.get("/summary", since="7d")["quality"]["verdict"] == "not_measured"
    world.compare(*[0.6, 0.8] * 100, ago_s=8.5 * DAY_S, tenant="steady")
    world.compare(*[0.6, 0.8] * 100, ago_s=DAY_S, tenant="steady")
    world.compare(*[0.2, 0.4] * 100, ago_s=DAY_S, tenant="worse")
    world.compare(*[0.6, 0.8] * 100, ago_s=8.5 * DAY_S, tenant="worse")
    steady = world.get("/summary", since="7d", tenant="steady", key="only")["quality"]
    assert (steady["verdict"], steady["reason"], steady["n"], steady["previous_n"]) == ("holding", "change", 200, 200)
    assert steady["agreement"]["low"] < steady["agreement"]["value"] == 0.7 < steady["agreement"]["high"]
    assert steady["ignored"] == ["key"]
    assert (steady["bound"], [one["route"] for one in steady["routes"]]) == (None, ["chat"])
    assert world.get("/summary", since="7d", tenant="worse")["quality"]["verdict"] == "falling"
    both = world.get("/summary", since="7d")["quality"]
    assert {one["tenant"]: one["verdict"] for one in both["routes"]} == {"steady": "holding", "worse": "falling"}
    assert both["change"]["value"] == -0.2
    for since in ("2d", "999999d"):
        rows = world.get("/quality", since=since, tenant="worse")["rows"]
        assert {(one["tenant"], one["samples"]) for one in rows} == {("worse", 200 if since == "2d" else 400)}
    assert world.error("/quality", since="2d", days="3")[:2] == (400, "days")


def test_unknown_tenants_and_parameters_are_refused(world: DashboardWorld) -> None:
    assert world.error("/summary", tenant="acmee")[:2] == (404, "tenant")
    assert world.error("/summary", tenants="acme")[:2] == (400, "tenants")
    for path in ("/summary", "/receipts", "/quality"):
        assert world.error(path, route="chat\0")[:2] == (400, "route"), path
    for since in ("tomorrow", "999999d"):
        assert world.error("/summary", since=since)[:2] == (400, "since")
    assert httpx.get(f"{world.gateway.admin_url}/summary").status_code == 401


def test_without_the_usage_database_the_summary_is_unavailable(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "usage.db").mkdir(parents=True)  # no database can be there
    with dashboard_world(tmp_path, redis_url) as world:
        for path in ("/summary", "/reliability", "/receipts", "/receipts/req_000000000000000000000000"):
            status, _, message = world.error(path)
            assert (status, message) == (503, "The usage database cannot be read now. Try again."), path
        assert world.get("/config")["settings"], "it does not need the database"


def test_failures_have_a_share_and_a_cause_in_words(redis_url: str, tmp_path: Path) -> None:
    usage, spare = {"url": "env:THE_USAGE_URL", "run": "host"}, model("spare", "openai", "http://127.0.0.1:9/v1")
    body = {"model": "chat-student", "messages": [{"role": "user", "content": "Write."}]}
    headers = {"Authorization": f"Bearer {KEY}"}
    patient = [one | {"breaker": {"failures": 1000}} for one in NOWHERE]  # else a paused engine is the cause
    with dashboard_world(tmp_path, redis_url, usage=usage, models=[*patient, spare]) as world:
        until(lambda: failures_of(world), "the usage worker has made its tables")
        assert failures_of(world) | {"since": ""} == {
            "since": "", "requests": 0, "failed": 0, "share": None, "cause": None, "text": "no requests"
        }  # fmt: skip
        for _ in range(3):
            reply = httpx.post(f"{world.gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
            assert reply.status_code in {502, 503}
        until(lambda: failures_of(world).get("requests") == 3, "the receipts are written")
        world.add(receipt(int(time.time()), tenant="globex", status="client_gone", savings_class=None))
        summary, reliability = world.reply("/summary"), world.reply("/reliability")
        globex = world.get("/summary", tenant="globex")["failures"]
    found = summary.json()
    failures = found["failures"]
    assert (failures["requests"], failures["failed"], failures["share"]) == (4, 3, 0.75)
    assert (failures["cause"]["error"], failures["cause"]["engine"]) == ("engine_unreachable", "small")
    assert re.fullmatch(r"3 of 4 failed: engine small unreachable since [-\d ]*\d\d:\d\d UTC", failures["text"])
    assert (globex["failed"], globex["text"]) == (0, "0 of 1 failed"), "the caller disconnected"
    assert "spare" not in {one.get("engine") for one in found["banners"]}, "no route uses it"
    assert {one["detail"] for one in reliability.json()["engines"]} == {"unreachable"}
    for text in (summary.text, reliability.text):
        assert not re.search(r"[A-Z][a-z]+Error|Errno|127\.0\.0\.1", text), "no text of an exception"


def failures_of(world: DashboardWorld) -> dict[str, Any]:
    """Return the failures, or nothing while the usage database cannot be read."""
    found: dict[str, Any] = world.reply("/summary").json().get("failures", {})
    return found


def test_each_error_of_engines_has_words() -> None:
    labels = {one.label for one in errors_below(EngineError)}
    assert labels <= CAUSES.keys()


def errors_below(error: type[EngineError]) -> list[type[EngineError]]:
    return [error, *(one for below in error.__subclasses__() for one in errors_below(below))]
