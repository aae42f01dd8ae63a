"""A synthetic world: replies of the admin API for a month of three tenants, with problems on every page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tests.browser.synthetic import figures

if TYPE_CHECKING:
    from playwright.async_api import Page, Route

NOW = datetime(2026, 11, 25, 15, 34, tzinfo=UTC)
STEPS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
TENANTS = ("acme", "globex", "initech")
REASONS = {"teacher_late": 342, "teacher_unreachable": 61, "queue_full": 7}


def shown(moment: datetime) -> str:
    """Return a time as the admin API writes it."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _bounds(query: dict[str, str]) -> tuple[datetime, datetime]:
    since, until = (datetime.fromisoformat(query[one]) if one in query else NOW for one in ("since", "until"))
    return since, until


def usage(query: dict[str, str]) -> dict[str, Any]:
    """Return rows by time or by name. At night there are no requests, and one hour in 40 has a loss."""
    since, until = _bounds(query)
    total = figures(51_200, 79.12, 197.52) | {"errors": {"engine_timeout": 22, "engine_unreachable": 15}}
    rows: list[dict[str, Any]] = []
    if "granularity" in query:
        step = STEPS[query["granularity"]]
        day = step == STEPS["day"]
        start = since.replace(second=0, microsecond=0, minute=since.minute if step == STEPS["minute"] else 0)
        if day:
            start = start.replace(hour=0)
        for index in range(2000):
            at = start + index * step
            if at >= until:
                break
            if not day and at.hour < 5:
                continue
            busy = 1.0 + (at.hour % 11) / 5 if not day else 1.0 + (at.day * 7 % 5) / 4
            row = figures(int(900 * busy), 1.1 * busy, (0.8 if index % 40 == 39 else 2.9) * busy)
            failed = {"engine_timeout": index % 5, "engine_overloaded": index % 3}
            rows.append({"start": shown(at), **row, "errors": failed, "unguided": {"teacher_late": 4 * (index % 7)}})
        return {"object": "usage", "rows": rows, "total": total}
    names = {"tenant": TENANTS, "route": ("chat", "support", "summary"), "key": ("prod", "ci", "web")}
    by = [one for one in query.get("by", "").split(",") if one]
    for index, parts in enumerate((6, 3, 1)):
        group = {one: names.get(one, ("big", "small", "tiny"))[index] for one in by}
        rows.append({**group, **figures(5_120 * parts, 7.912 * parts, 19.752 * parts if index < 2 else 5.1)})
    return {"object": "usage", "rows": rows, "total": total}


def summary(query: dict[str, str]) -> dict[str, Any]:
    return {
        "object": "summary",
        "period": {"since": query["since"], "until": shown(NOW), "month": "2026-11", "seconds": 2129640},
        "previous": {"since": "2026-10-01T00:00:00Z", "until": "2026-10-26T00:00:00Z", "seconds": 2160000},
        "filters": {},
        "spent": {
            "usd": "79.12",
            "previous_usd": "84.3",
            "change": -0.048,
            "answers_usd": "77.01",
            "disconnected_usd": "0.4",
            "failed_usd": "1.1",
            "measuring_usd": "0.61",
            "budget": {
                "of": "tenants",
                "budgets": 2,
                "limit_usd": "150",
                "spent_usd": "79.12",
                "reserved_usd": "0.94",
                "ends": "2026-12-01T00:00:00Z",
            },
        },
        "saved": {
            "usd": "118.4",
            "error_usd": "9.2",
            "about_zero": False,
            "previous_usd": "125.1",
            "previous_error_usd": "9.9",
            "guided": {"usd": "85", "error_usd": "8.8", "about_zero": False},
            "reported": {"usd": "16.7", "error_usd": "0.4", "about_zero": False},
            "measured": {"usd": "101.7", "error_usd": "8.8", "about_zero": False},
            "student_by_policy": {"usd": "18.91", "error_usd": "0.4", "about_zero": False},
            "unguided_usd": "-0.5",
            "baseline_usd": "197.52",
            "share": 0.599,
        },
        "quality": _verdict()
        | {"routes": [{"tenant": "acme", "route": "chat", "compare": "words", **_verdict(), "switched_off": None}]},
        "requests": {
            "total": 51200,
            "previous_total": 49870,
            "answers": 51151,
            "disconnected": 12,
            "shadows": 210,
            "guided": 38100,
            "unguided": 900,
            "unguided_by_failure": 410,
            "unguided_share": 0.0105,
            "threshold": 0.2,
            "errors": 37,
            "error_share": 0.00072,
        },
        "failures": {
            "since": "2026-11-25T15:19:00Z",
            "requests": 84,
            "failed": 20,
            "share": 0.238095,
            "cause": {"error": "engine_unreachable", "engine": "small", "since": "2026-11-25T09:41:00Z"},
            "text": "20 of 84 failed: engine small unreachable since 09:41 UTC",
        },
        "banners": [
            {
                "kind": "engine",
                "engine": "big",
                "since": "2026-11-25T15:02:11Z",
                "reason": "unreachable",
                "breaker": "open",
            },
            {
                "kind": "unguided",
                "since": "2026-11-25T15:19:00Z",
                "share": 0.83,
                "threshold": 0.2,
                "requests": 412,
                "reasons": REASONS,
            },
        ],
    }


def _verdict() -> dict[str, Any]:
    return {
        "verdict": "holding",
        "reason": "change",
        "n": 412,
        "previous_n": 398,
        "agreement": {"value": 0.71, "low": 0.69, "high": 0.73},
        "previous": {"value": 0.705, "low": 0.68, "high": 0.73},
        "change": {"value": 0.005, "low": -0.027, "high": 0.037},
        "bound": None,
        "ignored": [],
    }


def policies(_: dict[str, str]) -> dict[str, Any]:
    routes = [
        {"model": name, "mode": "guided", "teacher": "big", "student": "small"}
        for name in ("chat", "support", "summary")
    ]
    data = [{"tenant": one, "keys": 2, "budget": one != "initech", "routes": routes} for one in TENANTS]
    return {
        "object": "policies",
        "version": "9a",
        "loaded_at": "2026-11-25T09:00:00Z",
        "files": 3,
        "stale": False,
        "error": [],
        "data": data,
    }


def _receipt(number: int, **more: Any) -> dict[str, Any]:
    """Return a receipt as GET /receipts shows it. Every fifth request had no guidance, and every ninth failed."""
    at = int(NOW.timestamp()) - 97 * number
    unguided = "teacher_late" if number % 5 == 4 else None
    read = {"input_tokens": 412, "output_tokens": 40, "cost_usd": "0.000452", "estimated": False}
    return {
        "id": f"req_{at:08x}{number:016x}",
        "created": at,
        "tenant": TENANTS[number % 3],
        "key": "prod",
        "route": "chat",
        "mode": "guided",
        "stream": True,
        "status": "engine_timeout" if number % 9 == 8 else "ok",
        "finish_reason": "stop",
        "unguided": unguided,
        "hint": None,
        "teacher": {"model": "big", **read},
        "student": {"model": "small", **read, "output_tokens": 212},
        "guidance": {"projection": "cutoff", "placement": "prefix", "tokens": 40, "kept_tokens": 38, "complete": False},
        "batch": {"id": "b_19", "size": 4},
        "cost_usd": f"{0.00061 + number * 0.00021:.5f}",
        "baseline_model": "big",
        "baseline_usd": "0.00212",
        "baseline_estimated": True,
        "baseline_error_usd": "0.0001",
        "savings_usd": f"{0.00151 - number * 0.00021:.5f}",
        "savings_class": "guided",
        "savings_about_zero": number % 7 == 6,
        "measured": None,
        "timings": {
            "admission_ms": 0.8,
            "batch_wait_ms": 9.5,
            "teacher_ms": 310.0 + number,
            "handover_ms": 41.0,
            "first_token_ms": 330.0 + number,
            "total_ms": 1_480.0 + 50 * number,
        },
        "budget": None,
        "attempts": [],
        "shadows": [],
        **more,
    }


def receipts(_: dict[str, str]) -> dict[str, Any]:
    """Return 12 receipts. The second one has two shadows."""
    data = [_receipt(number) for number in range(12)]
    second = data[1]
    for role in ("teacher", "student"):
        name = f"{second['id']}-shadow-{role}"
        second["shadows"].append(_receipt(1, id=name, mode="shadow", shadow_of=second["id"], key="prod"))
    return {"object": "list", "data": data, "since": None, "until": None, "scanned": 12, "next": "WzE3"}


def reliability(_: dict[str, str]) -> dict[str, Any]:
    latency = {"count": 5120, "mean": 310.2, "p50": 290.1, "p95": 611.0, "p99": 900.5}
    served = {"requests": 5120, "errors": {"engine_timeout": 2}, "error_share": 0.0004}
    engine = {"in_flight": 3, "warnings": [], "failed_calls": {}, "teacher": None, "student": None}
    down = {
        "name": "big",
        "up": False,
        "since": "2026-11-25T15:02:11Z",
        "detail": "unreachable",
        "breaker": "open",
    }
    up = {"up": True, "since": "2026-11-25T09:00:00Z", "detail": "answers", "breaker": "closed"}
    answers = {**served, "latency_ms": {"first_token": latency, "total": {**latency, "p50": 1290.0, "p95": 2811.0}}}
    return {
        "object": "reliability",
        "period": {"since": "2026-11-24T15:34:00Z", "until": shown(NOW), "month": None, "seconds": 86400},
        "filters": {},
        "worker": 1,
        "engines": [
            engine
            | down
            | {"failed_calls": {"engine_unreachable": 61}, "teacher": {**served, "latency_ms": {"teacher": latency}}},
            engine | up | {"name": "small", "student": answers},
            engine | up | {"name": "small-2", "student": answers | {"requests": 1280, "error_share": 0.0}},
            engine | up | {"name": "spare", "up": None, "since": None, "detail": "", "in_flight": 0},
        ],
        "requests": 5300,
        "answers": 5295,
        "disconnected": 3,
        "shadows": 40,
        "guided": 5120,
        "errors": {"engine_timeout": 2},
        "error_share": 0.0004,
        "unguided": [
            {"reason": "teacher_late", "cause": "failure", "requests": 342, "share": 0.0626},
            {"reason": "teacher_unreachable", "cause": "failure", "requests": 61, "share": 0.0112},
            {"reason": "budget_soft", "cause": "policy", "requests": 12, "share": 0.0022},
        ],
        "unguided_share": 0.0738,
        "threshold": 0.2,
        "rejections": {
            "since": "2026-11-24T15:00:00Z",
            "until": "2026-11-25T16:00:00Z",
            "total": 1204,
            "rows": [
                {"status": 401, "error": "not_authenticated", "tenant": None, "requests": 1200},
                {"status": 429, "error": "rate_limited", "tenant": "acme", "requests": 4},
            ],
            "ignored": [],
        },
    }


def queue(_: dict[str, str]) -> dict[str, Any]:
    big = {"in_flight": 12, "cap": 64, "waiting": 5, "oldest_wait_s": 0.4}
    return {"worker": 1, "redis_up": True, "teachers": {"big": big}}


def quality(_: dict[str, str]) -> dict[str, Any]:
    sums = {"guided_teacher": 0.71, "student_teacher": 0.63, "difference": 0.08, "low": 0.041, "high": 0.119}
    some = {"guided_teacher": 0.66, "student_teacher": 0.64, "difference": 0.02, "low": None, "high": None}
    off = {"tenant": "globex", "route": "support", "since": "2026-11-24T11:00:00Z", "by": "quality", "actor": "quality"}
    return {
        "object": "quality",
        "since": "2026-11-01",
        "until": "2026-11-25",
        "rows": [
            {"tenant": "acme", "route": "chat", "compare": "words", "length": length, "samples": count, **figures_}
            for length, count, figures_ in (("16", 8, some), ("64", 404, sums), ("all", 412, sums))
        ],
        "guidance_off": [{**off, "answer_by": "student", "reason": "agreement 0.52 below 0.6"}],
        "spent_today": [{"tenant": "acme", "route": "chat", "usd": "0.0214"}],
    }


def keys(_: dict[str, str]) -> dict[str, Any]:
    key = {
        "tenant": "acme",
        "source": "redis",
        "status": "active",
        "hint": "gk-A4G",
        "created": "2026-10-02T09:12:00Z",
        "created_by": "alice@example.com",
        "expires": None,
        "revoked": None,
        "replaces": None,
        "models": None,
        "limits": None,
        "budget": None,
        "last_used": "2026-11-25T15:33:45Z",
    }
    ci = {
        "expires": "2026-12-25T15:33:45Z",
        "models": ["chat"],
        "limits": {"rpm_limit": 60},
        "budget": {"max_budget": 10},
    }
    return {
        "keys": [
            {**key, "id": "ci", "hint": "gk-fMM", **ci},
            {**key, "id": "prod"},
            {**key, "id": "prod.1", "hint": "gk-9xB", "status": "revoked", "last_used": "2026-11-20T08:00:00Z"},
            {
                **key,
                "tenant": "globex",
                "id": "only",
                "source": "file",
                "hint": None,
                "created": None,
                "last_used": None,
            },
        ],
        "next": None,
    }


def budgets(_: dict[str, str]) -> dict[str, Any]:
    month = {
        "key": None,
        "soft_budget": 80,
        "budget_duration": "1mo",
        "calendar_aligned": True,
        "on_soft": "warn",
        "on_hard": "reject",
        "raise": None,
        "ends": "2026-12-01T00:00:00Z",
    }
    raised = {"usd": 50, "until": "2026-12-01T00:00:00Z"}
    spent = {"spent_usd": 79.12, "reserved_usd": 0.94, "left_usd": 69.94}
    return {
        "budgets": [
            {**month, "tenant": "acme", "max_budget": 100, **spent, "raise": raised},
            {
                **month,
                "tenant": "globex",
                "soft_budget": None,
                "max_budget": 50,
                "spent_usd": 48.0,
                "reserved_usd": 0.5,
                "left_usd": 1.5,
            },
            {
                **month,
                "tenant": "acme",
                "key": "ci",
                "max_budget": 10,
                "spent_usd": 1.25,
                "reserved_usd": 0,
                "left_usd": 8.75,
                "ends": None,
                "budget_duration": "7d",
            },
        ],
        "next": None,
    }


def audit(_: dict[str, str]) -> dict[str, Any]:
    entry = {"actor": "alice@example.com", "tenant": "acme", "before": None}
    return {
        "entries": [
            {
                **entry,
                "id": "3-0",
                "at": "2026-11-25T15:33:44Z",
                "action": "budget.raise",
                "subject": "",
                "after": {"usd": 50, "reason": "launch week"},
            },
            {
                **entry,
                "id": "2-0",
                "at": "2026-11-24T11:00:00Z",
                "actor": "quality",
                "tenant": "globex",
                "action": "guidance.off",
                "subject": "support",
                "after": {"answer_by": "student"},
            },
            {
                **entry,
                "id": "1-0",
                "at": "2026-11-20T08:00:05Z",
                "action": "key.revoke",
                "subject": "prod.1",
                "before": {"hint": "gk-9xB", "models": ["chat"]},
                "after": None,
            },
        ],
        "next": None,
    }


def config(_: dict[str, str]) -> dict[str, Any]:
    setting = {"from": "file", "line": None}
    return {
        "object": "config",
        "file": "config.yaml",
        "version": "3f1c9a0d",
        "loaded_at": "2026-11-25T09:00:00.120+00:00",
        "worker": 1,
        "settings": [
            {**setting, "name": "server.port", "value": 8080, "line": 3},
            {**setting, "name": "server.workers", "value": 4, "line": 4},
            {**setting, "name": "server.host", "value": "127.0.0.1", "from": "default"},
            {
                **setting,
                "name": "redis.url",
                "value": None,
                "secret": True,
                "from": "environment",
                "variable": "GKT_REDIS_URL",
            },
            {**setting, "name": "models[0].name", "value": "big", "line": 20},
            {**setting, "name": "models[0].api_base", "value": "http://10.0.0.5:8000/v1", "line": 21},
            {**setting, "name": "models[0].price", "value": {"input_per_1m": 1.0, "output_per_1m": 1.0}, "line": 22},
        ],
        "last_reload": {
            "at": "2026-11-25T12:00:01.020+00:00",
            "result": "refused",
            "settings": [],
            "issues": ["config.yaml:12: models[0].timeouts.total: expected a duration like 60s, got '60 seconds'"],
        },
        "policies": {
            "version": "9a41c2",
            "loaded_at": "2026-11-25T09:00:00Z",
            "files": 3,
            "stale": False,
            "error": [],
            "last_reload": {"at": "2026-11-25T14:10:00Z", "result": "applied", "settings": [], "issues": []},
        },
    }


REPLIES = {
    "/usage": usage,
    "/summary": summary,
    "/policies": policies,
    "/receipts": receipts,
    "/reliability": reliability,
    "/queue": queue,
    "/quality": quality,
    "/keys": keys,
    "/budgets": budgets,
    "/audit": audit,
    "/config": config,
}


async def answer(route: Route) -> None:
    """Answer a request of the page from this world. Other requests reach the gateway."""
    url = urlsplit(route.request.url)
    reply = REPLIES.get(url.path) if route.request.method == "GET" else None
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    if reply is not None:
        await route.fulfill(json=reply(query))
    elif url.path.startswith("/receipts/"):
        name = url.path.removeprefix("/receipts/")
        found = [one for one in receipts({})["data"] if one["id"] == name]
        await route.fulfill(json=found[0] if found else {}, status=200 if found else 404)
    else:
        await route.fallback()


async def live_in(page: Page) -> None:
    """Let the page see this world, and its time."""
    await page.clock.set_fixed_time(NOW)
    await page.add_init_script("AbortSignal.timeout = () => new AbortController().signal")  # for a busy machine
    await page.route("**/*", answer)
