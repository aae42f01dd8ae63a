"""Labels through a running gateway: receipts, usage, limits, budgets, alerts and policy edits."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest

from gateway.accounting.labels import HASH_DIGITS
from gateway.policy.labels import NONE, OTHER
from tests.cli import in_process
from tests.cli.in_process import ADMIN_KEY
from tests.fakes import FakeEngine, says
from tests.gateway_process import (
    KEY,
    OTHER_KEY,
    STUDENT_ONLY,
    GatewayProcess,
    guided,
    model,
    running_gateway,
    sha256,
    write_policy,
)  # fmt: skip
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYED = "gk-test-of-acme-with-labels"
WHY = [{"role": "user", "content": "Why?"}]
SHADOWED = {"model": "chat-shadowed", "mode": "shadow", "teacher": "big", "student": "small"}
CHEAP = STUDENT_ONLY | {"model": "chat", "default_max_tokens": 20, "retries": {"num_retries": 0}}
LABELS = {
    "team": {"header": "x-team", "metadata": "team"},
    "environment": {"header": "x-env", "values": ["prod", "staging"], "invalid": "reject"},
    "end_user": {"user": True, "hash": True},
    "app": {},
}
LIMITED = {
    "team": {
        "header": "x-team",
        "max_values": 100,
        "budget": {"max_budget": 0.75},
        "exceptions": {"research": {"budget": {"max_budget": 500}}, "fast": {"limits": {"rpm_limit": 3}}},
    },
    "required": {"header": "x-required", "required": True},
    "cost_center": {"hash": True, "budget": {"max_budget": 1000}},
}
OF_GLOBEX = [{"id": "only", "sha256": sha256(OTHER_KEY), "labels": {"cost_center": "number-4711"}}]


def keys(tenant_key: str, **more: dict[str, str]) -> list[dict[str, Any]]:
    return [{"id": "only", "sha256": sha256(tenant_key)}, *(
        {"id": name, "sha256": sha256(KEYED), "labels": labels} for name, labels in more.items()
    )]  # fmt: skip


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Run a gateway on which a token of the tenant globex costs a tenth of a cent."""
    folder = tmp_path_factory.mktemp("labels")
    (folder / "admin.key").write_text(ADMIN_KEY)
    expensive = {"price": {"input_per_1m": 1000, "output_per_1m": 1000}}
    with (
        FakeEngine(says("The answer to your question", "length")).running() as engine,
        running_gateway(
            folder,
            redis_url=redis_url,
            redis={"prefix": f"labels{os.urandom(4).hex()}", "timeout": "5s"},
            usage={"run": "host"},
            admin={"key": "file:admin.key"},
            labels={"hash_key": "file:admin.key"},
            metrics={"labels": ["team"], "max_label_values": 2},
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
                model("dear", "openai", f"{engine.url}/v1", continuation="trailing", echo=False) | expensive,
            ],
            routes=[
                {**STUDENT_ONLY, "model": "chat", "when": {"labels": {"team": "students"}}},
                guided(), SHADOWED, {"model": "vectors", "mode": "embeddings", "student": "small"},
            ],
            tenants={
                "acme": {"labels": LABELS, "keys": keys(KEY, web={"app": "web", "team": "fixed"})},
                "globex": {
                    "labels": LIMITED,
                    "keys": OF_GLOBEX,
                    "routes": [CHEAP | {"student": "dear", "baseline": "dear"}],
                },
            },
        ) as process,
    ):  # fmt: skip
        wait_until_looked_at(process.admin_url)
        yield process


def ask(
    gate: GatewayProcess, path: str = "chat/completions", *, key: str = KEY, headers: dict[str, str] | None = None,
    **body: Any,
) -> httpx.Response:  # fmt: skip
    content = body if "input" in body or "prompt" in body else {"messages": WHY} | body
    sent = {"Authorization": f"Bearer {key}", "x-api-key": key} | (headers or {})
    return httpx.post(f"{gate.url}/v1/{path}", json={"model": "chat"} | content, headers=sent, timeout=30)


def receipt(gate: GatewayProcess, reply: httpx.Response, key: str = KEY) -> dict[str, Any]:
    """Return the receipt. A reply may arrive before its receipt is stored."""
    assert reply.status_code == 200, reply.text
    path = f"{gate.url}/v1/receipts/{reply.headers['x-request-id']}"
    while True:
        found = httpx.get(path, headers={"Authorization": f"Bearer {key}"}, timeout=10)
        if found.status_code not in (404, 503):  # not stored yet, or read too slowly on a busy machine
            body: dict[str, Any] = found.json()
            return body


def usage(gate: GatewayProcess, *options: str) -> in_process.Done:
    return in_process.run("usage", "show", "--url", gate.admin_url, *options)


def rows(gate: GatewayProcess, requests: int, *options: str) -> list[dict[str, Any]]:
    """Return the rows of a usage query, once they have this number of requests."""
    found: list[dict[str, Any]] = []
    while sum(row["requests"] for row in found) < requests:
        done = usage(gate, *options, "--format", "json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["rows"]
    return found


def admin(gate: GatewayProcess, method: str, path: str, body: Any = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.request(method, gate.admin_url + path, json=body, headers=headers, timeout=30)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {}),
        ("chat/completions", {"stream": True}),
        ("completions", {"prompt": "Why", "max_tokens": 30}),
        ("responses", {"input": "Why?"}),
        ("messages", {"max_tokens": 50}),
        ("embeddings", {"model": "vectors", "input": "Why?"}),
        ("guidance", {}),
    ],
)
def test_receipts_of_each_api_have_labels(gate: GatewayProcess, path: str, body: dict[str, Any]) -> None:
    labels = receipt(gate, ask(gate, path, headers={"X-Team": "search"}, **body))["labels"]
    assert labels == {"team": "search", "environment": NONE, "end_user": NONE, "app": NONE}
    user = {"metadata": {"user_id": "alice"}} if path == "messages" else {"user": "alice"}
    hashed = receipt(gate, ask(gate, path, headers={"x-team": "search"}, **body, **user))["labels"]["end_user"]
    assert len(hashed) == 24


def test_a_caller_cannot_replace_the_label_of_its_key(gate: GatewayProcess) -> None:
    spoofed = {"x-team": "other", "x-app": "mobile", "x-gkt-tags": "app:mobile"}
    reply = ask(gate, key=KEYED, headers=spoofed, metadata={"team": "other", "app": "mobile"})
    labels = receipt(gate, reply)["labels"]
    assert (labels["team"], labels["app"]) == ("fixed", "web")


@pytest.mark.parametrize("value", ["a\u202eb", "x" * 5_000, "(none)", "(other)", '"><script>', "a\tb"])
def test_hostile_values_are_other_or_plain_text(gate: GatewayProcess, value: str) -> None:
    labels = receipt(gate, ask(gate, metadata={"team": value}))["labels"]
    assert labels["team"] == (value if value == '"><script>' else OTHER)
    for other in (["a", "b"], {"a": "b"}, None):
        assert receipt(gate, ask(gate, metadata={"team": other}))["labels"]["team"] == (
            NONE if other is None else OTHER
        )


def test_a_value_that_is_not_allowed_is_400(gate: GatewayProcess) -> None:
    reply = ask(gate, headers={"x-env": "secret-value"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-env")
    assert "expected one of prod, staging" in reply.json()["error"]["message"]
    assert "secret-value" not in reply.text


def test_a_required_label_is_400_without_it(gate: GatewayProcess) -> None:
    reply = ask(gate, key=OTHER_KEY)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-required")
    assert "requires the label 'required'. Send it in the header x-required." in reply.json()["error"]["message"]


def test_the_end_user_appears_nowhere(gate: GatewayProcess) -> None:
    name = f"alice-{uuid4().hex}"
    reply = ask(gate, user=name, headers={"x-team": "hash"})
    labels = receipt(gate, reply)["labels"]
    assert gate.wait_for_log("request", id=reply.headers["x-request-id"])["labels"] == labels
    rows(gate, 1, "--by", "label:end_user", "--label", "team=hash")
    shown = [
        admin(gate, "GET", "/usage?by=label:end_user").text,
        admin(gate, "GET", "/receipts?label=team%3Dhash").text,
    ]
    assert all(labels["end_user"] in text for text in shown)
    assert not any(name in text for text in (*shown, gate.raw_log, admin(gate, "GET", "/metrics").text))


def test_a_route_can_depend_on_labels(gate: GatewayProcess) -> None:
    modes = [ask(gate, headers={"x-team": team}).headers["x-gkt-mode"] for team in ("students", "search")]
    assert modes == ["student", "guided"]
    assert ask(gate, key=KEYED, headers={"x-team": "students"}).headers["x-gkt-mode"] == "guided"


def test_shadows_and_reports_have_the_labels(gate: GatewayProcess) -> None:
    one = receipt(gate, ask(gate, model="chat-shadowed", headers={"x-team": "shadows"}))
    options = "--by", "label:team,mode", "--label", "team=shadows"
    found = rows(gate, 1, *options)
    while len(found) < 2:  # the shadow is counted after its request
        found = rows(gate, 1, *options)
    assert {(row["label:team"], row["mode"], row["requests"]) for row in found} == {
        ("shadows", one["mode"], 1),
        ("shadows", "shadow", 0),
    }
    report = {"id": str(uuid4()), "model": "chat", "input_tokens": 9, "output_tokens": 3, "student": "small"}
    url, key = f"{gate.url}/v1/guidance/usage", {"Authorization": f"Bearer {KEY}"}
    offline = httpx.post(url, json=report | {"metadata": {"team": "phone"}}, headers=key, timeout=30).json()
    assert offline["labels"]["team"] == "phone"


def test_the_command_prints_tables_and_csv(gate: GatewayProcess) -> None:
    for env in ("prod", "staging", "prod"):
        assert ask(gate, headers={"x-team": "printed", "x-env": env}).status_code == 200
    options = "--by", "label:team,label:environment", "--label", "team=printed"
    found = rows(gate, 3, *options)
    assert {row["label:environment"]: row["requests"] for row in found} == {"prod": 2, "staging": 1}
    table = usage(gate, *options).stdout
    assert any(line.split()[:3] == ["printed", "prod", "2"] for line in table.splitlines()), table
    assert any(line.split()[:2] == ["total", "3"] for line in table.splitlines()), table
    text = usage(gate, "--by", "label:environment", "--label", "team=printed", "--format", "csv").stdout
    assert {row["label:environment"]: row["requests"] for row in csv.DictReader(io.StringIO(text))} == {
        "prod": "2", "staging": "1"
    }  # fmt: skip
    hourly = json.loads(usage(gate, "--by", "", "--label", "team=printed", "-g", "day", "--format", "json").stdout)
    assert sum(row["requests"] for row in hourly["rows"]) == hourly["total"]["requests"] == 3
    empty = usage(gate, "--by", "label:team", "--key", "another").stdout
    assert "No requests with this label in this time." in " ".join(empty.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--by", "label:team,teacher"),
            "'by': a label cannot be combined with teacher: use tenant, key, route, mode.",
        ),
        (("--by", "label:Team"), "'by': unknown dimension 'label:Team'"),
        (("--label", "team"), "'label': expected a label's name, = and a value, like team=research."),
    ],
)
def test_a_query_that_cannot_be_answered_names_the_reason(
    gate: GatewayProcess, options: tuple[str, ...], message: str
) -> None:
    done = usage(gate, *options)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())


def test_callers_see_the_labels_of_their_tenant(gate: GatewayProcess) -> None:
    assert ask(gate, headers={"x-team": "own"}).status_code == 200
    rows(gate, 1, "--by", "label:team", "--label", "team=own")

    def seen(key: str, **query: str) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {key}"}
        reply = httpx.get(f"{gate.url}/v1/usage", params=query, headers=headers, timeout=30)
        assert reply.status_code == 200, reply.text
        found: list[dict[str, Any]] = reply.json()["rows"]
        return found

    (row,) = seen(KEY, by="label:team", label="team=own")
    assert (row["label:team"], row["requests"]) == ("own", 1)
    assert float(row["cost_usd"]) > 0
    assert seen(OTHER_KEY, by="label:team", label="team=own") == []
    assert [one["requests"] for one in seen(KEY, label="team=own", by="route")] == [1]


def test_metrics_have_the_first_values_of_listed_labels(gate: GatewayProcess) -> None:
    for team in ("m1", "m2", "m3"):
        receipt(gate, ask(gate, headers={"x-team": team}))
    text = ""
    while 'gkt_label_requests_total{label="team",tenant="acme",value="(other)"}' not in text:
        text = admin(gate, "GET", "/metrics").text
    assert text.count("gkt_label_cost_usd_total{") <= 2 + 2  # two values, and the others of each tenant
    assert 'label="environment"' not in text


def globex(gate: GatewayProcess, team: str | None) -> httpx.Response:
    headers = {"x-required": "yes"} | ({} if team is None else {"x-team": team})
    return ask(gate, key=OTHER_KEY, headers=headers)


def spend(gate: GatewayProcess, team: str | None) -> httpx.Response:
    """Send requests until the budget has no room, and return the refusal."""
    for _ in range(100):
        reply = globex(gate, team)
        if reply.status_code != 200:
            return reply
    raise AssertionError("the budget is never spent")


def test_a_spent_budget_refuses_its_value_until_it_is_raised(gate: GatewayProcess) -> None:
    refused = spend(gate, "sales")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (429, "insufficient_quota")
    assert error["message"].startswith("The budget of team 'sales', $0.75 per month, has $")
    other = globex(gate, "support")
    assert other.status_code == 200, (refused.text, other.text)
    assert globex(gate, "research").status_code == 200
    event = gate.wait_for_log("budget", value="sales")
    assert (event["kind"], event["budget"], event["label"], event["key"]) == ("budget_hard", "label", "team", None)

    def listed() -> dict[str, dict[str, Any]]:
        reply = admin(gate, "GET", "/budgets/globex/labels?label=team")
        assert reply.status_code == 200, reply.text
        return {one["value"]: one for one in reply.json()["budgets"]}

    found = listed()
    while "sales" not in found:  # values are registered in the background
        found = listed()
    assert (found["sales"]["label"], found["sales"]["max_budget"], found["research"]["max_budget"]) == (
        "team",
        0.75,
        500,
    )
    options = ("raise", "globex", "--label", "team=sales", "--usd", "5", "--for", "1h", "--reason", "launch")
    done = in_process.run("budgets", *options, "--url", gate.admin_url)
    assert done.returncode == 0, done.stderr
    assert "raised: label team=sales of globex has 5.75 USD" in " ".join(done.stdout.split())
    assert globex(gate, "sales").status_code == 200
    shown = in_process.run("budgets", "list", "--tenant", "globex", "--label", "team", "--url", gate.admin_url).stdout
    assert "team=sales" in shown
    (entry, *_) = admin(gate, "GET", "/audit?limit=1").json()["entries"]
    assert (entry["action"], entry["subject"], entry["after"]["reason"]) == (
        "budget.raise",
        "label:team=sales",
        "launch",
    )


def test_the_hashed_label_of_a_key_is_listed_with_its_spending(gate: GatewayProcess) -> None:
    hashed = receipt(gate, globex(gate, "hashing"), OTHER_KEY)["labels"]["cost_center"]
    reply = admin(gate, "GET", "/budgets/globex/labels?label=cost_center")
    assert "number-4711" not in reply.text
    spent = {one["value"]: one["spent_usd"] for one in reply.json()["budgets"]}
    assert spent[hashed] > 0


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/budgets/globex/labels/tem/raise", {"value": "a", "usd": 1}, "has no label 'tem'. Did you mean 'team'?"),
        ("/budgets/globex/labels/required/raise", {"value": "a", "usd": 1}, "has no budget for this value"),
        ("/budgets/globx/labels/team/raise", {"value": "a", "usd": 1}, "No policy file defines tenant 'globx'"),
        ("/budgets/globex/labels/team/raise", {"usd": 1}, "'value'"),
    ],
)
def test_a_raise_without_a_budget_names_the_reason(
    gate: GatewayProcess, path: str, body: dict[str, Any], message: str
) -> None:
    reply = admin(gate, "POST", path, body)
    assert reply.status_code in (400, 404)
    assert message in reply.json()["error"]["message"]


def test_requests_without_the_label_share_one_budget(gate: GatewayProcess) -> None:
    """Callers cannot avoid a budget by omitting the label."""
    assert spend(gate, None).json()["error"]["message"].startswith("The budget of team '(none)', $0.75 per month")
    assert spend(gate, "x" * 100).json()["error"]["message"].startswith("The budget of team '(other)', $0.75 per month")


async def test_callers_at_once_do_not_exceed_the_budget(gate: GatewayProcess) -> None:
    headers = {"Authorization": f"Bearer {OTHER_KEY}", "x-required": "yes", "x-team": "crowd"}
    async with httpx.AsyncClient(timeout=60) as client:
        calls = (
            client.post(f"{gate.url}/v1/chat/completions", json={"model": "chat", "messages": WHY}, headers=headers)
            for _ in range(40)
        )
        statuses = {reply.status_code for reply in await asyncio.gather(*calls)}
    assert statuses == {200, 429}
    found: list[dict[str, Any]] = []
    while not found:  # values are registered in the background
        reply = admin(gate, "GET", "/budgets/globex/labels?label=team").json()["budgets"]
        found = [one for one in reply if one["value"] == "crowd"]
    (one,) = found
    assert 0 < one["spent_usd"] + one["reserved_usd"] <= 0.75


def test_a_limit_names_its_value(gate: GatewayProcess) -> None:
    replies = [globex(gate, "fast") for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    assert replies[0].headers["x-ratelimit-limit-requests"] == "3"
    assert replies[-1].json()["error"]["message"].startswith("The limit of team 'fast' is 3 requests per minute")


def test_invented_values_share_one_budget(gate: GatewayProcess) -> None:
    """A caller that invents values spends at most the budgets of the values within the bound."""
    replies = [globex(gate, f"invented-{number}") for number in range(150)]
    assert {reply.status_code for reply in replies} == {200, 429}
    refusals = [reply.json()["error"]["message"] for reply in replies if reply.status_code == 429]
    assert all("The budget of team '(other)'" in text for text in refusals)


def test_an_edit_of_the_policy_adds_and_removes_labels(gate: GatewayProcess) -> None:
    file = gate.config.parent / "policies" / "acme.yaml"
    routes = [guided(), SHADOWED, {"model": "vectors", "mode": "embeddings", "student": "small"}]

    def edit(labels: dict[str, Any]) -> None:
        write_policy(file, {"tenant": "acme", "keys": keys(KEY), "labels": labels, "routes": routes})

    def labels_become(expected: dict[str, str] | None) -> None:
        while receipt(gate, ask(gate, headers={"x-team": "edit"})).get("labels") != expected:
            pass

    edit({"team": {"header": "x-team"}, "more": {}})
    labels_become({"team": "edit", "more": NONE})
    edit({})
    labels_become(None)


def test_limits_show_the_labels_of_the_key_and_of_the_headers(gate: GatewayProcess) -> None:
    def shown(**headers: str) -> dict[str, Any]:
        sent = {"Authorization": f"Bearer {OTHER_KEY}", **headers}
        reply = httpx.get(f"{gate.url}/v1/limits", headers=sent, timeout=30)
        assert "4711" not in reply.text
        return {one.pop("label"): one for one in reply.json()["labels"]}

    found = shown(**{"x-team": "fast"})
    assert list(found) == ["team", "cost_center"], "the label 'required' has no limits"
    assert (found["team"]["value"], found["team"]["requests_per_minute"]["limit"]) == ("fast", 3)
    assert (found["team"]["budget"]["max_usd"], found["cost_center"]["budget"]["max_usd"]) == ("0.75", "1000")
    assert len(found["cost_center"]["value"]) == HASH_DIGITS
    assert shown()["team"]["value"] == NONE
    assert shown()["team"]["requests_per_minute"] is None
    reply = httpx.get(f"{gate.url}/v1/limits", headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
    assert "labels" not in reply.json()
