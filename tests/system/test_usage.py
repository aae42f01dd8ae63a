"""Usage on a real gateway of two processes: sums equal the receipts, and each tenant reads only its own."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from gateway.local.redis import EmbeddedRedis
from tests.fakes import FakeEngine, says
from tests.gateway_process import (
    KEY,
    OTHER_KEY,
    STUDENT_ONLY,
    TEACHER_ONLY,
    GatewayProcess,
    guided,
    model,
    running_gateway,
    sha256,
)
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ADMIN_KEY = "an-admin-key-for-tests"
SECOND_KEY, HIDDEN_KEY = "gk-test-second-of-acme", "gk-test-of-hides"
LIMIT_S = 30.0
NO_RETRIES = {"retries": {"num_retries": 0}, "default_max_tokens": 100}
SHADOWED = {"model": "chat-shadowed", "mode": "shadow", "teacher": "big", "student": "small"}
ROUTES = [one | NO_RETRIES for one in (guided(), STUDENT_ONLY, TEACHER_ONLY, SHADOWED)]
STAGES = ("admission", "batch_wait", "teacher", "first_token", "handover", "total")


async def student(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Continue the answer, unless the request is to fail."""
    if "fail" in json.dumps(body["messages"]):
        return web.json_response({"error": {"message": "no"}}, status=500)
    return await says(" and it ends so.")(request, body)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    """Run two workers. acme has two keys; one route of the tenant `hides` does not show costs."""
    folder = tmp_path_factory.mktemp("usage")
    (folder / "admin.key").write_text(ADMIN_KEY)
    with ExitStack() as stack:
        big = stack.enter_context(FakeEngine(says("The answer begins", "length")).running())
        small = stack.enter_context(FakeEngine(student).running())
        process = stack.enter_context(
            running_gateway(
                folder,
                redis_url=redis_url,
                usage={"run": "host"},
                redis={"prefix": f"u{os.urandom(4).hex()}", "timeout": "5s"},
                server={"workers": 2},
                admin={"key": "file:admin.key"},
                models=[
                    model("big", "tgi", big.url),
                    model("small", "openai", f"{small.url}/v1", continuation="trailing", echo=False),
                ],
                routes=ROUTES,
                tenants={
                    "acme": {
                        "keys": [{"id": "only", "sha256": sha256(KEY)}, {"id": "second", "sha256": sha256(SECOND_KEY)}]
                    },
                    "globex": {},
                    "hides": {
                        "keys": [{"id": "only", "sha256": sha256(HIDDEN_KEY)}],
                        "routes": [*ROUTES, STUDENT_ONLY | NO_RETRIES | {"model": "hidden", "show_cost": False}],
                    },
                },
            )
        )
        wait_until_probed(process.admin_url)
        yield process


def ask(process: GatewayProcess, key: str, route: str, words: str = "Go on.", **more: Any) -> str:
    """Send a request on its own connection, so that the kernel chooses the worker anew. Return the request's id."""
    body = {"model": route, "messages": [{"role": "user", "content": words}]} | more
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{process.url}/v1/chat/completions", json=body, headers=headers, timeout=LIMIT_S, verify=False)
    return answer.headers["x-request-id"]


@pytest.fixture(scope="module")
def receipts(gateway: GatewayProcess) -> dict[str, dict[str, Any]]:
    """Send requests of all tenants, keys, routes and outcomes; return the receipts by id, once all are summed."""
    kinds = [
        (KEY, "chat", {}),
        (KEY, "chat", {"stream": True}),
        (SECOND_KEY, "chat", {"words": "fail"}),
        (KEY, "chat-student", {"stream": True}),
        (SECOND_KEY, "chat-teacher", {}),
        (KEY, "chat", {"n": 2}),
        (SECOND_KEY, "chat-shadowed", {}),
        (OTHER_KEY, "chat", {}),
        (OTHER_KEY, "chat-student", {"words": "fail"}),
        (HIDDEN_KEY, "chat", {}),
        (HIDDEN_KEY, "hidden", {}),
    ]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda one: ask(gateway, one[0], one[1], **one[2]), kinds * 6))
    ids += [f"{one}-shadow" for one, kind in zip(ids, kinds * 6, strict=True) if kind[1] == "chat-shadowed"]
    until(lambda: sum(usage(gateway)["total"][name] for name in ("requests", "shadows")) == len(ids))
    assert {line["worker"] for line in gateway.log if line["event"] == "request"} == {1, 2}
    data = admin(gateway, "/receipts?limit=500").json()["data"]
    found = {one["id"]: one for request in data for one in (request, *request.pop("shadows", []))}
    assert sorted(found) == sorted(ids)
    return found


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def admin(process: GatewayProcess, path: str, key: str = ADMIN_KEY) -> httpx.Response:
    return httpx.get(process.admin_url + path, headers={"Authorization": f"Bearer {key}"}, timeout=LIMIT_S)


def usage(process: GatewayProcess, query: str = "since=1h") -> Any:
    answer = not_503(lambda: admin(process, f"/usage?{query}"))
    assert answer.status_code == 200, answer.text
    return answer.json()


def own(process: GatewayProcess, query: str = "since=1h", key: str = KEY) -> httpx.Response:
    url, headers = f"{process.url}/v1/usage?{query}", {"Authorization": f"Bearer {key}"}
    return not_503(lambda: httpx.get(url, headers=headers, timeout=LIMIT_S))


def not_503(send: Callable[[], httpx.Response]) -> httpx.Response:
    """Return the first reply other than 503.

    The first usage query of a process imports the database library. On a busy machine, that exceeds a query's time.
    """
    replies: list[httpx.Response] = []

    def answered() -> bool:
        replies.append(send())
        return replies[-1].status_code != 503

    until(answered)
    return replies[-1]


def total_of(receipts: list[dict[str, Any]], name: str) -> Decimal:
    return sum((Decimal(one[name]) for one in receipts), Decimal(0))


def holds(summary: dict[str, Any], receipts: list[dict[str, Any]]) -> None:
    """Check that a row is the sum of these receipts."""
    served = [one for one in receipts if one["mode"] != "shadow"]
    assert (summary["requests"], summary["shadows"]) == (len(served), len(receipts) - len(served))
    assert receipts
    assert summary["errors"] == Counter(one["status"] for one in served if one["status"] != "ok")
    assert summary["unguided"] == Counter(one["unguided"] for one in served if one["unguided"])
    cost = total_of(receipts, "cost_usd")
    assert Decimal(summary["cost_usd"]) == cost
    assert Decimal(summary["savings_usd"]) == total_of(receipts, "savings_usd")
    for role in ("teacher", "student"):
        shares = [one[role] for one in receipts if one[role] and not one[role].get("shared")]
        cached = sum(share.get("cached_input_tokens", 0) for share in shares)
        stored = sum(share.get("cache_write_input_tokens", 0) for share in shares)
        assert summary["tokens"][role] == {
            "input": sum(share["input_tokens"] for share in shares) - cached - stored,
            "cached": cached,
            "cache_write": stored,
            "output": sum(share["output_tokens"] for share in shares),
        }
        assert Decimal(summary[f"{role}_cost_usd"]) == total_of(shares, "cost_usd")
    for stage in STAGES:
        spent_ms = [one["timings"][f"{stage}_ms"] for one in receipts if f"{stage}_ms" in one["timings"]]
        assert summary["latency_ms"][stage]["count"] == len(spent_ms)
        if spent_ms:
            assert summary["latency_ms"][stage]["mean"] == pytest.approx(sum(spent_ms) / len(spent_ms), abs=0.001)
            assert summary["latency_ms"][stage]["p50"] <= summary["latency_ms"][stage]["p95"] <= max(spent_ms) * 1.06
    whole = [one for one in receipts if one["status"] == "ok" and one["mode"] != "shadow"]
    opened = sum(one["guidance"]["kept_tokens"] for one in whole if one["guidance"])
    alone = sum(one["teacher"]["output_tokens"] for one in whole if one["mode"] == "teacher")
    finished = sum(one["student"]["output_tokens"] for one in whole if one["student"])
    assert summary["tokens"]["answer_by_teacher"] == opened + alone
    assert summary["tokens"]["answer"] == opened + alone + finished
    baseline = cost + total_of(receipts, "savings_usd")
    assert Decimal(summary["baseline_usd"]) == baseline
    counted = [one for one in served if one["savings_class"] != "failed" and Decimal(one["savings_usd"])]
    assert Decimal(summary["savings_error_usd"]) == total_of(counted, "baseline_error_usd")
    assert summary["baseline_estimated"] == sum(one["baseline_estimated"] for one in counted)
    known = baseline and not summary["savings_about_zero"]
    share = float(cost / baseline) if known else None
    assert summary["cost_share"] == (pytest.approx(share, abs=1e-6) if share is not None else None)


def test_usage_is_the_sum_of_its_receipts(gateway: GatewayProcess, receipts: dict[str, dict[str, Any]]) -> None:
    """In total, and by tenant, key, route, mode and engine, in each granularity."""
    for granularity in ("", "minute", "hour", "day"):
        holds(usage(gateway, f"since=1h&granularity={granularity}")["total"], list(receipts.values()))
    for by in ("tenant", "key", "route", "mode", "teacher", "student", "tenant,key,route,mode,teacher,student"):
        names = by.split(",")
        summary = usage(gateway, f"since=1h&by={by}")
        holds(summary["total"], list(receipts.values()))
        for row in summary["rows"]:
            holds(row, [one for one in receipts.values() if all(dim(one, name) == row[name] for name in names)])


def dim(receipt: dict[str, Any], name: str) -> str:
    value = receipt[name]
    return value["model"] if isinstance(value, dict) else value or ""


def test_usage_agrees_with_the_counters(gateway: GatewayProcess, receipts: dict[str, dict[str, Any]]) -> None:
    """The counters are floats, summed over both processes."""
    families = text_string_to_metric_families(httpx.get(f"{gateway.admin_url}/metrics", timeout=LIMIT_S).text)
    counted: Counter[tuple[str, str]] = Counter()
    for sample in (sample for family in families for sample in family.samples):
        counted[sample.name, sample.labels.get("tenant", "")] += sample.value  # type: ignore[assignment]
    for row in usage(gateway, "since=1h&by=tenant")["rows"]:
        assert counted["gkt_requests_total", row["tenant"]] == row["requests"] + row["shadows"]
        assert counted["gkt_cost_usd_total", row["tenant"]] == pytest.approx(float(row["cost_usd"]), abs=1e-6)
        saved = counted["gkt_savings_usd_total", row["tenant"]] - counted["gkt_losses_usd_total", row["tenant"]]
        assert saved == pytest.approx(float(row["savings_usd"]), abs=1e-6)


def test_a_tenant_sees_its_own_usage_alone(gateway: GatewayProcess, receipts: dict[str, dict[str, Any]]) -> None:
    """Any of its keys reads only its own usage, with any query."""
    for key, tenant in ((KEY, "acme"), (SECOND_KEY, "acme"), (OTHER_KEY, "globex")):
        mine = [one for one in receipts.values() if one["tenant"] == tenant]
        holds(own(gateway, key=key).json()["total"], mine)
        for row in own(gateway, "by=key,model&since=1h", key).json()["rows"]:
            holds(row, [one for one in mine if (one["key"], one["route"]) == (row["key"], row["route"])])
    for query in ("by=tenant", "tenant=acme", "by=route,tenant"):
        refused = own(gateway, query, OTHER_KEY)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, query.partition("=")[0])
    assert own(gateway, key="gk-nobodys").status_code == 401
    assert own(gateway, key=ADMIN_KEY).status_code == 401
    assert admin(gateway, "/usage", KEY).status_code == 401
    assert admin(gateway, "/receipts", KEY).status_code == 401


def test_usage_shows_money_only_if_receipts_do(gateway: GatewayProcess, receipts: dict[str, dict[str, Any]]) -> None:
    """A sum with a hidden cost is hidden, too; the operator reads it."""
    summary = own(gateway, "by=route&since=1h", HIDDEN_KEY).json()
    money = {row["route"]: "cost_usd" in row for row in summary["rows"]}
    assert money == {"chat": True, "hidden": False}
    assert not {name for name in summary["total"] if "usd" in name or name in {"baseline_estimated", "cost_share"}}
    assert "cost_usd" in own(gateway, "route=chat&since=1h", HIDDEN_KEY).json()["total"]
    mine = [one for one in receipts.values() if one["tenant"] == "hides"]
    holds(usage(gateway, "tenant=hides&since=1h")["total"], mine)


def test_without_a_beginning_there_is_one_that_fits_the_granularity(gateway: GatewayProcess) -> None:
    for granularity, most in (("minute", 61), ("hour", 25), ("day", 31)):
        assert len(usage(gateway, f"granularity={granularity}")["rows"]) in {most - 1, most}


def test_filters_select_the_named_values(gateway: GatewayProcess, receipts: dict[str, dict[str, Any]]) -> None:
    summary = usage(gateway, "since=1h&tenant=acme&key=second&model=chat&by=mode")
    assert summary["by"] == ["mode"]
    mine = [o for o in receipts.values() if (o["tenant"], o["key"], o["route"]) == ("acme", "second", "chat")]
    holds(summary["total"], mine)
    assert usage(gateway, "since=1h&route=nothing")["rows"] == []


def test_the_pages_commands_run(gateway: GatewayProcess, receipts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Run the page's commands with a shell: the calls of curl and the check of a bill."""
    missing = [name for name in ("curl", "python3", "grep") if shutil.which(name) is None]
    if missing and "CI" not in os.environ:
        pytest.skip(f"not run: this machine has no {missing[0]}")
    (tmp_path / "gateway.log").write_text(gateway.raw_log)
    page = (Path(__file__).parents[2] / "docs" / "cost.md").read_text("utf-8")
    scripts = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    outputs = [in_shell(gateway, script, tmp_path) for script in scripts]
    assert len(outputs) == 3
    mine = [one for one in receipts.values() if one["tenant"] == "acme"]
    holds(json.loads(outputs[0])["total"], mine)
    lines = csv.DictReader(io.StringIO(outputs[1]))
    assert sum(int(line["requests"]) + int(line["shadows"]) for line in lines) == len(receipts)
    assert Decimal(outputs[2]) == total_of(mine, "cost_usd") > 0


def in_shell(gateway: GatewayProcess, script: str, folder: Path) -> str:
    for placeholder, meant in (
        ("http://127.0.0.1:8080", gateway.url),
        ("http://127.0.0.1:8081", gateway.admin_url),
        ("gk-demo", KEY),
    ):
        script = script.replace(placeholder, meant)
    environ = {**os.environ, "GKT_ADMIN_KEY": ADMIN_KEY}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_csv_equals_json(gateway: GatewayProcess, receipts: dict[str, dict[str, Any]]) -> None:
    assert receipts
    answer = admin(gateway, "/usage?since=1h&by=tenant,route&granularity=hour&format=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert re.fullmatch(r'attachment; filename="usage_[0-9_-]+\.csv"', answer.headers["content-disposition"])
    rows = usage(gateway, "since=1h&by=tenant,route&granularity=hour")["rows"]
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    names = ("start", "tenant", "route", "cost_usd", "savings_usd", "savings_error_usd")
    assert [[one[name] for name in names] for one in lines] == [[row[name] for name in names] for row in rows]
    assert any(Decimal(row["savings_error_usd"]) for row in rows)
    assert [int(one["requests"]) for one in lines] == [row["requests"] for row in rows]
    assert all(one["end"] > one["start"] for one in lines)


def test_the_last_receipts_are_listed_with_costs(gateway: GatewayProcess, receipts: dict[str, dict[str, Any]]) -> None:
    """The newest come first, of all tenants or of one, with costs that callers cannot read."""
    data = admin(gateway, "/receipts?tenant=globex&limit=5").json()["data"]
    assert [one["tenant"] for one in data] == ["globex"] * 5
    headers = {"Authorization": f"Bearer {OTHER_KEY}"}
    assert httpx.get(f"{gateway.url}/v1/receipts/{data[0]['id']}", headers=headers).json() | {"shadows": []} == data[0]
    hidden = next(one for one in receipts.values() if one["route"] == "hidden")
    assert Decimal(hidden["cost_usd"]) > 0
    requests = [name for name, one in receipts.items() if one["mode"] != "shadow"]
    assert [one["id"] for one in admin(gateway, "/receipts?limit=3").json()["data"]] == requests[:3]


@pytest.mark.parametrize(
    ("query", "param", "words"),
    [
        ("since=soon", "since", "24h or 7d"),
        ("since=todya", "since", "Did you mean 'today'"),
        ("since=2999-01-01", "since", "future"),
        ("since=2026-13-01", "since", "a date like"),
        ("since=1h&until=2h", "since", "must be before 'until'"),
        ("since=1h&until=never", "until", "24h or 7d"),
        ("since=2000-01-01", "since", "or later"),
        ("since=99999999999999d", "since", "or later"),
        ("since=2d&granularity=minute", "since", "granularity=hour"),
        ("granularity=hours", "granularity", "Did you mean 'hour'"),
        ("granularity=second", "granularity", "minute, hour, day"),
        ("by=modle", "by", "Did you mean"),
        ("by=colour", "by", "route, mode, teacher, student"),
        ("by=route,model", "by", "twice"),
        ("route=chat&model=chat", "model", "keep one"),
        ("mode=guidd", "mode", "Did you mean 'guided'"),
        ("since=1h&since=2h", "since", "twice"),
        ("sinse=1h", "sinse", "Did you mean 'since'"),
    ],
)
def test_an_invalid_query_is_rejected_with_the_reason(
    gateway: GatewayProcess, query: str, param: str, words: str
) -> None:
    """Callers and operators get the same error, in OpenAI's shape."""
    for answer in (own(gateway, query), admin(gateway, f"/usage?{query}")):
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert words in error["message"]


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("/usage?format=xml", 400, "format"),
        ("/usage?tenant=acm", 404, "tenant"),
        ("/receipts?tenant=acm", 404, "tenant"),
        ("/receipts?limit=0", 400, "limit"),
        ("/receipts?limit=501", 400, "limit"),
        ("/receipts?since=soon", 400, "since"),
    ],
)
def test_a_wrong_question_of_an_operator_likewise(gateway: GatewayProcess, path: str, status: int, param: str) -> None:
    answer = admin(gateway, path)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


async def test_without_redis_usage_is_read_all_the_same(tmp_path: Path) -> None:
    """Callers and operators read the usage database."""
    (tmp_path / "admin.key").write_text(ADMIN_KEY)
    async with EmbeddedRedis() as redis:
        with running_gateway(
            tmp_path,
            redis_url=redis.url,
            redis={"timeout": "5s"},
            admin={"key": "file:admin.key"},
            models=[model("small", "openai", "http://127.0.0.1:1/v1", continuation="trailing", echo=False)],
            routes=[STUDENT_ONLY | {"baseline": "small"}],
        ) as process:
            before = own(process)
            assert (before.status_code, before.json()["total"]["requests"]) == (200, 0), before.text
            await redis.stop()
            for answer in (own(process), own(process), admin(process, "/usage"), admin(process, "/receipts")):
                assert answer.status_code == 200, answer.text
