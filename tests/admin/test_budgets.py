"""The admin API's budgets, over HTTP, on a real gateway: remaining amounts and raises."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN_KEY = "an-admin-key-for-tests"
# Little more than what one request reserves; it costs less.
MONTHLY = {"max_budget": 0.5, "soft_budget": 0.4}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    """Run a gateway on which a token costs a tenth of a cent.

    The tenant acme has a budget, each key of globex has one, and initech has none.
    """
    folder = tmp_path_factory.mktemp("budgets")
    (folder / "admin.key").write_text(ADMIN_KEY)
    with (
        FakeEngine(says("Hello there.")).running() as engine,
        running_gateway(
            folder,
            redis_url=redis_url,
            redis={"prefix": f"b{os.urandom(4).hex()}"},
            admin={"key": "file:admin.key"},
            models=[
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False)
                | {"price": {"input_per_1m": 1000, "output_per_1m": 1000}}
            ],
            routes=[STUDENT_ONLY | {"baseline": "small", "retries": {"num_retries": 0}, "default_max_tokens": 20}],
            tenants={
                "acme": {"budget": MONTHLY},
                "globex": {"key_budget": {"max_budget": 0.5, "budget_duration": "100h", "calendar_aligned": False}},
                "initech": {},
            },
        ) as process,
    ):
        yield process


def admin(process: GatewayProcess, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    return httpx.request(
        method,
        process.admin_url + path,
        content=None if body is None else json.dumps(body),
        headers={"Authorization": f"Bearer {ADMIN_KEY}", **headers},
        timeout=20,
    )


def ask(process: GatewayProcess, token: str = KEY) -> httpx.Response:
    body = {"model": "chat-student", "messages": [{"role": "user", "content": "Hello"}]}
    return httpx.post(f"{process.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {token}"})


def spend(process: GatewayProcess, token: str = KEY) -> None:
    """Send requests until the budget has no room for another one."""
    for _ in range(100):
        answer = ask(process, token)
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "insufficient_quota"
            return
        assert answer.status_code == 200
    raise AssertionError("the budget is never spent")


def shown(process: GatewayProcess, path: str = "/budgets/acme") -> list[dict[str, Any]]:
    answer = admin(process, "GET", path)
    assert answer.status_code == 200, answer.text
    found = json.loads(answer.text, parse_float=Decimal)["budgets"]
    assert isinstance(found, list)
    return found


def at(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_spent_budget_has_room_again_while_a_raise_holds(gateway: GatewayProcess) -> None:
    """The test ends one raise, and the other expires. Both are in the audit trail and in the list."""
    spend(gateway)
    (before,) = shown(gateway)
    assert before["raise"] is None
    assert before["spent_usd"] + before["left_usd"] == Decimal("0.5")
    raised = admin(gateway, "POST", "/budgets/acme/raise", {"usd": 5, "reason": "a demo"}, **{"x-gkt-actor": "alice"})
    assert raised.status_code == 200, raised.text
    raise_view = raised.json()
    assert raise_view["raise"] == {"usd": 5, "until": raise_view["ends"]}, "to the end of the period"
    assert [json.loads(raised.text, parse_float=Decimal)] == shown(gateway)
    assert ask(gateway).status_code == 200
    give_up = time.monotonic() + 20
    while True:
        (now,) = shown(gateway)
        if now["spent_usd"] + now["left_usd"] == Decimal("5.5"):
            break
        assert time.monotonic() < give_up, "what a request reserved is given back, when it is settled"
        time.sleep(0.05)
    ended = admin(gateway, "POST", "/budgets/acme/raise", {"usd": 0})
    assert (ended.status_code, ended.json()["raise"]) == (200, None)
    assert ask(gateway).status_code == 429

    assert admin(gateway, "POST", "/budgets/acme/raise", {"usd": 0.75, "for": "4s"}).json()["raise"]["usd"] == 0.75
    assert ask(gateway).status_code == 200
    give_up = time.monotonic() + 20
    while shown(gateway)[0]["raise"] is not None and time.monotonic() < give_up:
        time.sleep(0.05)
    assert ask(gateway).status_code == 429

    entries = admin(gateway, "GET", "/audit").json()["entries"][:3]
    assert {(one["action"], one["tenant"], one["subject"]) for one in entries} == {("budget.raise", "acme", "")}
    ends = raise_view["ends"]
    short, end, first = entries
    assert (first["actor"], first["before"], first["after"]) == (
        "alice", {"usd": 0}, {"usd": 5, "until": ends, "reason": "a demo"}
    )  # fmt: skip
    assert (end["actor"], end["before"], end["after"]) == ("admin", {"usd": 5, "until": ends}, {"usd": 0})
    assert short["after"]["usd"] == 0.75
    assert gateway.wait_for_log("admin", action="budget.raise", tenant="acme")["actor"] == "alice"
    assert "a demo" not in gateway.raw_log


def test_a_key_is_raised_by_itself_and_a_rolling_budget_for_one_duration(gateway: GatewayProcess) -> None:
    made = admin(gateway, "POST", "/keys", {"tenant": "globex", "id": "prod"}).json()
    for token in (OTHER_KEY, made["key"]):
        spend(gateway, token)
    for key_id, token in (("only", OTHER_KEY), ("prod", made["key"])):
        raised = admin(gateway, "POST", f"/budgets/globex/keys/{key_id}/raise", {"usd": 2}).json()
        assert (raised["tenant"], raised["key"], raised["ends"], raised["calendar_aligned"]) == (
            "globex", key_id, None, False
        )  # fmt: skip
        until = datetime.fromisoformat(raised["raise"]["until"])
        assert timedelta(hours=99.9) < until - datetime.now(UTC) <= timedelta(hours=100, seconds=1)
        assert ask(gateway, token).status_code == 200
    admin(gateway, "POST", "/budgets/globex/keys/prod/raise", {"usd": 0})
    assert [ask(gateway, token).status_code for token in (OTHER_KEY, made["key"])] == [200, 429]
    trail = admin(gateway, "GET", "/audit?limit=1").json()["entries"]
    assert [(one["tenant"], one["subject"]) for one in trail] == [("globex", "prod")]


def test_a_raise_ends_on_its_date_and_replaces_an_earlier_one(gateway: GatewayProcess) -> None:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    for usd in (3, 4):
        answer = admin(gateway, "POST", "/budgets/acme/raise", {"usd": usd, "until": tomorrow.isoformat()})
        assert answer.json()["raise"] == {"usd": usd, "until": f"{tomorrow + timedelta(days=1)}T00:00:00Z"}
    exact = f"{tomorrow}T12:30:00Z"
    answer = admin(gateway, "POST", "/budgets/acme/raise", {"usd": 0.000000000001, "until": exact})
    assert json.loads(answer.text, parse_float=Decimal)["raise"] == {"usd": Decimal("1e-12"), "until": exact}
    admin(gateway, "POST", "/budgets/acme/raise", {"usd": 0})


def test_the_list_has_every_budget_and_supports_pages(gateway: GatewayProcess) -> None:
    """The list uses the terms of policy files. An ended key has no budget."""
    for name in ("a1", "z9", "gone"):
        admin(gateway, "POST", "/keys", {"tenant": "acme", "id": name, "budget": {"max_budget": 2.50}})
    admin(gateway, "DELETE", "/keys/acme/gone")
    whole = shown(gateway, "/budgets")
    names = [(one["tenant"], one["key"]) for one in whole]
    assert names[:3] == [("acme", None), ("acme", "a1"), ("acme", "z9")]
    assert ("globex", "only") in names
    assert not [name for name in names if name[0] == "initech" or name == ("globex", None)]
    assert [one["key"] for one in shown(gateway, "/budgets?tenant=acme")] == [None, "a1", "z9"]
    assert shown(gateway, "/budgets/initech") == shown(gateway, "/budgets?tenant=nobody") == []
    acme, unused = whole[:2]
    terms = ("max_budget", "soft_budget", "budget_duration", "calendar_aligned", "on_soft", "on_hard")
    assert [acme[name] for name in terms] == [Decimal("0.5"), Decimal("0.4"), "1mo", True, "warn", "reject"]
    assert [unused[name] for name in ("spent_usd", "reserved_usd", "left_usd", "soft_budget")] == [
        0, 0, Decimal("2.5"), None
    ]  # fmt: skip
    assert datetime.fromisoformat(acme["ends"]).day == 1
    seen: list[tuple[str, str | None]] = []
    after: str | None = ""
    while after is not None:
        page = admin(gateway, "GET", f"/budgets?limit=2&after={after}").json()
        assert len(page["budgets"]) <= 2
        seen += [(one["tenant"], one["key"]) for one in page["budgets"]]
        after = page["next"]
    assert seen == names


PAST, FAR = at(time.time() - 60), at(time.time() + 400 * 86_400)


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        ("acme", {}, 400, "usd", "'usd': missing"),
        ("acme", {"usd": "5"}, 400, "usd", "without quotes"),
        ("acme", {"usd": -5}, 400, "usd", "must be between 0 and 1000000 USD"),
        ("acme", {"usd": 5, "for": 7}, 400, "for", "needs its unit"),
        ("acme", {"usd": 5, "for": "400d"}, 400, "for", "must be between 1s and 366d"),
        ("acme", {"usd": 5, "until": "soon"}, 400, "until", "must be a date like 20"),
        ("acme", {"usd": 5, "until": 1900000000}, 400, "until", "must be a date like 2026-12-01"),
        ("acme", {"usd": 5, "until": PAST}, 400, "until", "is in the past"),
        ("acme", {"usd": 5, "until": FAR}, 400, "until", "at most 366 days away"),
        ("acme", {"usd": 5, "for": "1d", "until": "2999-01-01"}, 400, "until", "'for' sets the end too"),
        ("acme", {"usd": 0, "for": "1d"}, 400, "for", "ends the raise at once"),
        ("acme", {"usd": 5, "reason": "two\nlines"}, 400, "reason", "must be one line"),
        ("acme", {"usd": 5, "reason": "x" * 501}, 400, "reason", "at most 500 characters"),
        ("acme", {"usd": 5, "untill": "2999-01-01"}, 400, "untill", "Did you mean 'until'?"),
        ("acme", {"usd": 5, "tenant": "globex"}, 400, "tenant", "unknown key; known here: usd, for, until, reason"),
        ("acme", [5], 400, None, "must be a JSON object"),
        ("acmee", {"usd": 5}, 404, "tenant", "No policy file defines tenant 'acmee'. Did you mean 'acme'?"),
        ("initech", {"usd": 5}, 404, "tenant", "Tenant 'initech' has no budget. Set `budget` in"),
        ("globex", {"usd": 5}, 404, "tenant", "Tenant 'globex' has no budget."),
        (
            "acme/keys/only",
            {"usd": 5},
            404,
            "id",
            "Key 'only' of tenant 'acme' has no budget. Set `key_budget`",
        ),
        ("globex/keys/onyl", {"usd": 5}, 404, "id", "no valid key 'onyl'. Did you mean 'only'?"),
    ],
)
def test_a_raise_that_cannot_be_is_refused_and_leaves_no_trace(
    gateway: GatewayProcess, path: str, body: Any, status: int, param: str | None, words: str
) -> None:
    trail = admin(gateway, "GET", "/audit?limit=1").json()
    answer = admin(gateway, "POST", f"/budgets/{path}/raise", body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["param"] == param
    assert admin(gateway, "GET", "/audit?limit=1").json() == trail


def test_unreadable_budgets_are_reported(gateway: GatewayProcess) -> None:
    assert admin(gateway, "GET", "/budgets/acmee").json()["error"]["message"].endswith("Did you mean 'acme'?")
    assert "unknown parameter" in admin(gateway, "GET", "/budgets/acme?tenant=globex").json()["error"]["message"]
    assert admin(gateway, "GET", "/budgets?limit=501").status_code == 400
    for method, path in (("GET", "/budgets"), ("GET", "/budgets/acme"), ("POST", "/budgets/acme/raise")):
        for shown_key in ("Bearer wrong", f"Bearer {KEY}"):
            refused = httpx.request(method, gateway.admin_url + path, headers={"Authorization": shown_key})
            assert refused.status_code == 401
