"""Mixed traffic on a real gateway: each place shows the same counts and amounts, and they add up exactly."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from contextlib import ExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli import in_process
from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, running_gateway
from tests.gateway_process import model as engine_of
from tests.readiness import wait_until_probed
from tests.system.test_usage import ADMIN_KEY, LIMIT_S, ROUTES, admin, not_503, own, student, until, usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

    from tests.gateway_process import GatewayProcess

COSTS = ("answers_usd", "disconnected_usd", "failed_usd", "measuring_usd")
ANSWERED = ["chat", "chat", "chat", "chat-student", "chat-student", "chat-teacher", "chat-shadowed"]


class World(NamedTuple):
    gateway: GatewayProcess
    replies: dict[str, httpx.Response]  # of answered requests, by the id of the receipt
    receipts: list[dict[str, Any]]  # with the shadow


async def talk(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Write words until the caller leaves, if the request says so."""
    if "leave" not in json.dumps(body["messages"]):
        return await student(request, body)
    response = await begin_events(request)
    while True:
        await response.write(event(chunk({"content": " word"})))
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[World]:
    """Send seven requests that are answered, one with `n`, two that fail, and one whose caller disconnects."""
    folder = tmp_path_factory.mktemp("figures")
    (folder / "admin.key").write_text(ADMIN_KEY)
    with ExitStack() as stack:
        big = stack.enter_context(FakeEngine(says("The answer begins", "length")).running())
        small = stack.enter_context(FakeEngine(talk).running())
        gateway = stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                usage={"run": "host"},
                redis={"prefix": f"f{os.urandom(4).hex()}", "timeout": "5s"},
                admin={"key": "file:admin.key"},
                models=[
                    engine_of("big", "tgi", big.url),
                    engine_of("small", "openai", f"{small.url}/v1", continuation="trailing", echo=False),
                ],
                routes=ROUTES,
            )
        )
        wait_until_probed(gateway.admin_url)
        replies = [ask(gateway, route) for route in ANSWERED]
        replies.append(ask(gateway, "chat", n=2))
        for route in ("chat", "chat-student"):
            assert ask(gateway, route, "fail").status_code == 502
        leave(gateway)
        until(lambda: counts(usage(gateway)["total"]) == (11, 1))
        data = not_503(lambda: admin(gateway, "/receipts?limit=100", ADMIN_KEY)).json()["data"]
        receipts = [one for request in data for one in (request, *request["shadows"])]
        yield World(gateway, {one.headers["x-request-id"]: one for one in replies}, receipts)


def ask(gateway: GatewayProcess, route: str, words: str = "Go on.", **more: Any) -> httpx.Response:
    body = {"model": route, "messages": [{"role": "user", "content": words}]} | more
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=LIMIT_S)


def leave(gateway: GatewayProcess) -> None:
    """Disconnect after the first words of a stream, and wait for the receipt."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "leave"}], "stream": True}
    url, headers = f"{gateway.url}/v1/chat/completions", {"Authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=LIMIT_S) as answer:
        assert any('" word"' in line for line in answer.iter_lines())
    gateway.wait_for_log("request", status="client_gone")


def counts(total: dict[str, Any]) -> tuple[int, int]:
    return total["requests"], total["shadows"]


def get(world: World, path: str) -> dict[str, Any]:
    reply = not_503(lambda: admin(world.gateway, f"{path}?since=1h", ADMIN_KEY))
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def sum_of(receipts: list[dict[str, Any]], name: str, **only: str) -> Decimal:
    chosen = (one for one in receipts if all(one[field] == value for field, value in only.items()))
    return sum((Decimal(one[name]) for one in chosen), Decimal(0))


def adds_up(baseline: str, costs: list[str], saved: str) -> None:
    assert Decimal(baseline) - sum(map(Decimal, costs), Decimal(0)) == Decimal(saved)


def test_costs_and_savings_add_up_in_usage_and_equal_the_receipts(world: World) -> None:
    """An operator and the tenant read the same figures."""
    total = get(world, "/usage")["total"]
    assert own(world.gateway).json()["total"] == total
    adds_up(total["baseline_usd"], [total[name] for name in COSTS], total["savings_usd"])
    assert all(Decimal(total[name]) > 0 for name in COSTS)
    assert Decimal(total["cost_usd"]) == sum(Decimal(total[name]) for name in COSTS)
    assert Decimal(total["cost_usd"]) == sum_of(world.receipts, "cost_usd")
    assert Decimal(total["savings_usd"]) == sum_of(world.receipts, "savings_usd")
    classes = total["savings_classes"]
    assert classes.keys() == {one["savings_class"] for one in world.receipts} >= {"guided", "student_by_policy"}
    for name, sums in classes.items():
        adds_up(sums["baseline_usd"], [sums["cost_usd"]], sums["savings_usd"])
        assert Decimal(sums["savings_usd"]) == sum_of(world.receipts, "savings_usd", savings_class=name), name
    for of_cost, of_class in zip(COSTS[1:], ("disconnected", "failed", "measuring"), strict=True):
        assert total[of_cost] == classes[of_class]["cost_usd"]


def test_headers_show_the_savings_of_the_receipts(world: World) -> None:
    for one in world.receipts:
        if (reply := world.replies.get(one["id"])) is not None:
            shown = "about 0" if one["savings_about_zero"] else f"{Decimal(one['savings_usd']).normalize():f}"
            assert (reply.headers["x-gkt-savings-usd"], reply.headers["x-gkt-savings-class"]) == (
                shown,
                one["savings_class"],
            )


def test_the_summary_has_the_amounts_of_usage_with_the_parts_of_the_savings(world: World) -> None:
    total, found = get(world, "/usage")["total"], get(world, "/summary")
    spent, saved, classes = found["spent"], found["saved"], total["savings_classes"]
    assert spent["usd"] == total["cost_usd"]
    assert [spent[name] for name in COSTS] == [total[name] for name in COSTS]
    assert (saved["usd"], saved["baseline_usd"]) == (total["savings_usd"], total["baseline_usd"])
    adds_up(saved["baseline_usd"], [spent[name] for name in COSTS], saved["usd"])
    for part in ("guided", "student_by_policy"):
        assert saved[part]["usd"] == classes[part]["savings_usd"]
    parts = saved["guided"]["usd"], saved["student_by_policy"]["usd"], saved["unguided_usd"]
    lost = [spent["failed_usd"], spent["measuring_usd"]]
    assert sum(map(Decimal, parts)) - sum(map(Decimal, lost)) == Decimal(saved["usd"])


def test_each_place_counts_the_same_requests(world: World) -> None:
    total, requests, reliability = (
        get(world, "/usage")["total"],
        get(world, "/summary")["requests"],
        get(world, "/reliability"),
    )
    assert (requests["total"], requests["errors"]) == (11, 2)
    assert (reliability["requests"], sum(reliability["errors"].values())) == (11, 2)
    assert (total["requests"], sum(total["errors"].values())) == (11, 2)
    assert reliability["errors"] == total["errors"] == {"engine_failed": 2}
    for place in (total, requests, reliability):
        assert (place["answers"], place["disconnected"], place["shadows"]) == (8, 1, 1)
    assert requests["error_share"] == reliability["error_share"] == round(2 / 11, 6)


def test_the_command_prints_the_same_sums(world: World) -> None:
    done = in_process.run(
        "usage", "show", "--by", "", "--since", "1h", "--url", world.gateway.admin_url, GKT_ADMIN_KEY=ADMIN_KEY
    )
    assert done.returncode == 0, done.stderr
    total, text = get(world, "/usage")["total"], " ".join(done.stdout.split())
    assert "Requests: 11 = 8 answered + 2 failed + 1 disconnected. Shadows apart: 1." in text
    names = "USD: teacher alone", "- answers", "- disconnected", "- failed requests", "- measuring", "= saved"
    line = re.search(" ".join(rf"{name} (\S+)" for name in names), text)
    assert line is not None, text
    baseline, *costs, saved = line.groups()
    assert [baseline, *costs, saved] == [total[name] for name in ("baseline_usd", *COSTS, "savings_usd")]
    classes = total["savings_classes"]
    parts = [f"{words} {classes[name]['savings_usd']}" for words, name in (
        ("guidance", "guided"), ("student by policy", "student_by_policy"))]  # fmt: skip
    assert f"Saved: {', '.join(parts)}, reported by devices and not verified 0, other unguided answers" in text


def test_the_metrics_count_the_same_savings_by_class(world: World) -> None:
    text = httpx.get(f"{world.gateway.admin_url}/metrics", timeout=LIMIT_S).text
    found: Counter[str] = Counter()
    for sample in (one for family in text_string_to_metric_families(text) for one in family.samples):
        sign = {"gkt_savings_usd_total": 1, "gkt_losses_usd_total": -1}.get(sample.name, 0)
        if sign:
            found[sample.labels["savings_class"]] += sign * sample.value  # type: ignore[assignment]
    classes = get(world, "/usage")["total"]["savings_classes"]
    expected = {name: float(sums["savings_usd"]) for name, sums in classes.items() if float(sums["savings_usd"])}
    assert {name: usd for name, usd in found.items() if usd} == pytest.approx(expected, abs=1e-12)
