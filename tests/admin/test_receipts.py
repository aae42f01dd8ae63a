"""GET /receipts and GET /receipts/{id} of a running gateway: filters, pages, and shadows below their request."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from gateway.usage.span import rfc3339
from tests.admin.dashboard_world import DAY_S, DashboardWorld, dashboard_world
from tests.usage.databases import receipt

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = int(time.time())
DEAR = receipt(NOW - 10, cost_usd=Decimal("0.5"))
SHADOW = replace(DEAR, id=f"{DEAR.id}-shadow-teacher", mode="shadow", shadow_of=DEAR.id, cost_usd=Decimal("0.001"))
LATE = receipt(NOW - 20, mode="student", unguided="teacher_late", key="other", cost_usd=Decimal("0.002"))
FAILED = receipt(NOW - 30, tenant="globex", status="overloaded", route="code", cost_usd=Decimal("0.001"))
OLD = receipt(NOW - 3 * DAY_S, cost_usd=Decimal("0.001"))


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardWorld]:
    with dashboard_world(tmp_path_factory.mktemp("receipts"), redis_url) as world:
        world.add(OLD, FAILED, LATE, SHADOW, DEAR)
        yield world


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [DEAR, LATE, FAILED, OLD]),
        ({"tenant": "acme", "since": "24h"}, [DEAR, LATE]),
        ({"until": rfc3339(NOW - DAY_S)}, [OLD]),
        ({"status": "error"}, [FAILED]),
        ({"status": "overloaded", "route": "code"}, [FAILED]),
        ({"unguided": "any"}, [LATE]),
        ({"unguided": "tools"}, []),
        ({"min_cost": "0.002"}, [DEAR, LATE]),
        ({"min_cost": "0.0015", "max_cost": "0.002"}, [LATE]),
        ({"key": "other", "mode": "student"}, [LATE]),
        ({"mode": "shadow"}, [SHADOW]),
    ],
)
def test_filters_select(world: DashboardWorld, query: dict[str, str], expected: list[object]) -> None:
    found = world.get("/receipts", **query)
    assert [one["id"] for one in found["data"]] == [one.id for one in expected]  # type: ignore[attr-defined]
    assert found["next"] is None


def test_shadows_are_below_their_request(world: DashboardWorld) -> None:
    first, *others = world.get("/receipts")["data"]
    assert [one["id"] for one in first["shadows"]] == [SHADOW.id]
    assert first["cost_usd"] == "0.5"
    assert not any(one["shadows"] for one in others)
    assert world.get(f"/receipts/{DEAR.id}") == first
    assert world.get(f"/receipts/{SHADOW.id}", tenant="acme")["shadow_of"] == DEAR.id


def test_pages_continue(world: DashboardWorld) -> None:
    first = world.get("/receipts", limit="3")
    second = world.get("/receipts", limit="3", before=first["next"])
    assert [one["id"] for one in [*first["data"], *second["data"]]] == [DEAR.id, LATE.id, FAILED.id, OLD.id]
    assert second["next"] is None


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ({"tenant": "acmee"}, 404, "tenant"),
        ({"min_cost": "much"}, 400, "min_cost"),
        ({"max_cost": "-1"}, 400, "max_cost"),
        ({"min_cost": "NaN"}, 400, "min_cost"),
        ({"before": "yesterday"}, 400, "before"),
        ({"mode": "guide"}, 400, "mode"),
        ({"since": "soon"}, 400, "since"),
        ({"limit": "501"}, 400, "limit"),
        ({"state": "ok"}, 400, "state"),
    ],
)
def test_other_queries_are_refused(world: DashboardWorld, query: dict[str, str], status: int, param: str) -> None:
    assert world.error("/receipts", **query)[:2] == (status, param)


@pytest.mark.parametrize("id_", ["req_000000000000000000000000", "x", pytest.param(f"{DEAR.id}'", id="quoted")])
def test_an_unknown_receipt_is_not_found(world: DashboardWorld, id_: str) -> None:
    status, param, message = world.error(f"/receipts/{id_}")
    assert (status, param) == (404, "id")
    assert "usage.keep" in message
    assert world.error(f"/receipts/{DEAR.id}", tenant="globex")[0] == 404
