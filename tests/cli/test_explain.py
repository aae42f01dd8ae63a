"""`check --explain` tells what a gateway would do: the same routes, plan and refusals, without one."""

from __future__ import annotations

import json
import re
import shutil
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.check import check
from gateway.config.settings import OVERRIDES
from gateway.config.yaml_source import read
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, running_gateway
from tests.readiness import wait_until_looked_at

REPOSITORY = Path(__file__).parents[2]
ACME = f"""\
tenant: acme
keys:
  - {{id: prod, sha256: {sha256(KEY.encode()).hexdigest()}, limits: {{rpm_limit: 5}}}}
  - {{id: small-only, sha256: {"a" * 64}, models: [other]}}
limits: {{rpm_limit: 600, tpm_limit: 400000}}
budget: {{max_budget: 100, soft_budget: 80.5, on_soft: shorten}}
key_budget: {{max_budget: 1, budget_duration: 7d, calendar_aligned: false}}
overrides: {{modes: [student], guidance_tokens: 50}}
routes:
  - model: chat
    mode: teacher
    teacher: big
    when: {{header: {{x-team: blue}}}}
  - model: chat
    mode: guided
    teacher: big
    students: [{{model: small, weight: 3}}, {{model: big, weight: 1}}]
    default_max_tokens: 100
    when: {{contains: refund}}
  - {{model: chat, mode: student, student: small, when: {{max_tokens: {{gte: 80}}}}}}
  - {{model: chat, mode: shadow, teacher: big, student: small, when: {{tools: false}}, shadow: {{sample: 0.25}}}}
  - {{model: other, mode: student, student: small}}
  - {{model: vectors, mode: embeddings, student: small}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable in OVERRIDES:
        monkeypatch.delenv(variable, raising=False)
    shutil.copy(REPOSITORY / "config.yaml", tmp_path)
    config = (tmp_path / "config.yaml").read_text()
    for name, limit in (("limits", 1), ("key_limits", 60)):
        assert f"  {name}: {{}}" in config
        config = config.replace(f"  {name}: {{}}", f"  {name}: {{rpm_limit: {limit}}}")
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "acme.yaml").write_text(ACME)
    return tmp_path


def run(*arguments: str, body: object = None, raw: str | None = None) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `check --explain`, with a body on stdin."""
    app = typer.Typer()
    app.command()(check)
    given = raw if raw is not None else json.dumps(body if body is not None else chat())
    result = CliRunner().invoke(app, ["--explain", "-", *arguments], input=given)
    return result.exit_code, result.stdout, result.stderr


def chat(content: str = "Why?", model: str = "chat", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


def shown(*arguments: str, body: object = None) -> dict[str, list[str]]:
    """Return the cells of each row of the printed tables by the first cell. Rows of one name are joined."""
    rows: dict[str, list[str]] = {}
    for line in run(*arguments, body=body)[1].splitlines():
        name, *cells = re.split(r"\s{2,}", line.strip())
        rows.setdefault(name, []).extend(cells)
    return rows


def explained(*arguments: str, body: object = None) -> dict[str, Any]:
    code, out, err = run("--json", *arguments, body=body)
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    assert code == (1 if found["refused"] else 0)
    return found


def test_the_output_names_the_route_and_why_earlier_ones_do_not_match(folder: Path) -> None:
    found = explained(body=chat(max_tokens=80))
    assert found["routes"] == [
        {"index": 0, "place": "policies/acme.yaml:10", "takes": False, "why": "header x-team is not sent"},
        {"index": 1, "place": "policies/acme.yaml:14", "takes": False, "why": "contains: it is not there"},
        {"index": 2, "place": "policies/acme.yaml:20", "takes": True, "why": None},
        {"index": 3, "place": "policies/acme.yaml:21", "takes": False, "why": None},
    ]
    assert found["plan"]["mode"] == "student"
    assert explained("--header", "X-Team:  blue ", body=chat())["plan"]["mode"] == "teacher"


def test_the_output_contains_the_plan(folder: Path) -> None:
    plan = explained("--header", "x-gkt-guidance-tokens: 50", body=chat("my refund"))["plan"]
    guidance = plan.pop("guidance")
    assert plan == {
        "mode": "guided",
        "students": ["small", "big"],
        "unguided": None,
        "max_tokens": 100,
        "baseline": "big",
        "num_retries": 2,
        "show_cost": True,
        "shadow": None,
        "quality": None,
        "variant": None,
    }
    assert (guidance["teacher"], guidance["tokens"], guidance["placement"], guidance["deadline_s"]) == (
        "big",
        50,
        "prefix",
        2.0,
    )
    assert explained(body=chat("my refund", n=2))["plan"]["unguided"] == "n"
    assert explained(body=chat("my refund"))["unguided_fields"] == []
    shadow = explained(body=chat())["plan"]
    assert (shadow["mode"], shadow["shadow"]["mode"]) == ("teacher", "guided")
    assert explained(body={"model": "vectors", "input": "a"})["plan"]["mode"] == "embeddings"
    assert explained(body={"model": "other", "prompt": "a"})["request"]["kind"] == "text completion"


def test_fields_that_exclude_guidance_are_named(folder: Path) -> None:
    """Only fields that are the reason are named. A header names the reason alone."""
    body = chat("my refund", nvext={"guided_regex": "a+"}, grammar="g", zebra=1)
    found = explained(body=body)
    assert (found["plan"]["unguided"], found["plan"]["guidance"]) == ("structured_output", None)
    assert sorted(found["unguided_fields"]) == ["grammar", "nvext.guided_regex"]
    rows = shown(body=chat("my refund", zebra=1))
    assert (rows["plan.unguided"], rows["unguided_fields"]) == (["field_not_known"], ["zebra"])


def test_a_vocabulary_that_only_running_engines_show_is_an_assumption(folder: Path) -> None:
    assumption = "the engines differ in their vocabulary, or do not apply the fields to guidance"
    assert assumption in explained(body=chat("my refund", min_tokens=5))["assumed"]
    assert assumption not in explained(body=chat("my refund", min_tokens=5, n=2))["assumed"]
    assert assumption not in explained(body=chat("my refund"))["assumed"]


def test_the_output_names_the_limits_and_budgets_of_the_request(folder: Path) -> None:
    """The key's own before what its tenant says of keys, before the defaults."""
    found = explained("--key", "prod", body=chat())
    assert found["limits"] == {"tenant": {"rpm_limit": 600, "tpm_limit": 400000}, "key": {"rpm_limit": 5}}
    assert found["budgets"]["tenant"] == {
        "max_budget": "100",
        "soft_budget": "80.5",
        "budget_duration": "1mo",
        "calendar_aligned": True,
        "on_soft": "shorten",
        "on_hard": "reject",
    }
    assert (found["budgets"]["key"]["max_budget"], found["budgets"]["key"]["budget_duration"]) == ("1", "7d")
    assert explained(body=chat())["limits"]["key"] == {"rpm_limit": 60}


def test_the_output_has_the_parts_of_limits_that_a_request_must_fit(folder: Path) -> None:
    assert explained("--key", "prod", body=chat())["redis_slices"] == 1
    (folder / "policies" / "acme.yaml").write_text(ACME + "redis_slices: 2\n")
    assert explained("--key", "prod", body=chat())["redis_slices"] == 2


def test_the_output_contains_the_reservation(folder: Path) -> None:
    """The teacher alone at 0.90 USD: a token for each byte and what stands around, the whole limit, and three calls."""
    found = explained("--header", "x-team: blue", body=chat(max_tokens=1000))
    tokens = found["request"]["bytes"] + 512 + 1000
    assert Decimal(found["reserved_usd"]) == 3 * tokens * Decimal("0.0000009")


def test_without_a_limit_on_the_answer_the_reservation_is_the_engines_maximum(folder: Path) -> None:
    (folder / "policies" / "acme.yaml").write_text(
        "{tenant: acme, routes: [{model: free, mode: student, student: a, retries: {num_retries: 0}}]}"
    )
    (folder / "config.yaml").write_text(
        "models: [{name: a, protocol: openai, api_base: http://a, max_output_tokens: 9000, "
        "price: {input_per_1m: 1, output_per_1m: 1}}]"
    )
    found = explained(body=chat(model="free"))
    assert Decimal(found["reserved_usd"]) == (found["request"]["bytes"] + 512 + 9000) * Decimal("0.000001")


def test_a_request_that_the_gateway_rejects_is_rejected_with_the_reasons(folder: Path) -> None:
    code, out, _ = run(body=chat(max_tokens=3, tools=[{"type": "function", "function": {"name": "f"}}]))
    assert code == 1
    assert re.search(r"routes\[2\] +policies/acme.yaml:20 +no: max_tokens is 3, not at least 80 *\n", out)
    assert "rejected with 404: No route for 'chat' takes this request." in out
    found = explained("--header", "x-gkt-mode: teacher", body=chat("my refund"))
    assert (found["refused"]["status"], found["refused"]["param"], found["plan"]) == (400, "x-gkt-mode", None)
    found = explained("--key", "small-only", body=chat())
    assert found["refused"]["code"] == "model_not_found"
    assert {route["why"] for route in found["routes"]} == {"this key may not use the model"}
    assert explained(body=chat(model="gpt-4"))["routes"] == []


def test_the_maximum_of_the_route_is_explained(folder: Path) -> None:
    """A raw prompt above it is rejected."""
    policy = folder / "policies/acme.yaml"
    limited = ACME.replace("model: other, mode: student,", "model: other, mode: student, max_tokens_limit: 50,")
    policy.write_text(limited)
    for sent, expected in (({"max_tokens": 500}, 50), ({"max_tokens": 20}, 20), ({}, 50)):
        assert explained(body=chat(model="other", **sent))["plan"]["max_tokens"] == expected
    refused = explained(body={"model": "other", "prompt": "a", "max_tokens": 51})["refused"]
    assert (refused["status"], refused["param"]) == (400, "max_tokens")


@pytest.mark.parametrize("body", [chat(model="other", priority=1), {"model": "vectors", "input": "a", "priority": 1}])
def test_a_field_that_the_policy_does_not_allow_is_explained(folder: Path, body: dict[str, Any]) -> None:
    refused = explained(body=body)["refused"]
    assert (refused["status"], refused["param"]) == (400, "priority")


def test_the_text_has_the_values_of_the_json(folder: Path) -> None:
    rows, found = shown(body=chat()), explained(body=chat())
    assert rows["routes[3]"] == ["policies/acme.yaml:21", "match"]
    assert rows["plan.mode"] == [found["plan"]["mode"]]
    assert rows["plan.shadow.guidance.teacher"] == ["big"]
    assert rows["plan.show_cost"] == ["true"]
    assert rows["budgets.tenant.soft_budget"] == ["80.5"]
    assert rows["reserved_usd"] == [found["reserved_usd"]]
    assert rows["assumed"] == found["assumed"]
    assert "the request is in the sample of shadow requests, 0.25 of all" in rows["assumed"]
    rows = shown(body=chat("my refund"))
    assert rows["plan.students"] == ["small", "big"]
    assert "students are tried in the order of the file; the gateway draws the first one by weight" in rows["assumed"]


def test_the_bounds_of_an_automatic_deadline_are_explained(folder: Path) -> None:
    assert explained(body=chat("my refund"))["plan"]["guidance"]["auto_deadline"] is None
    policy = folder / "policies/acme.yaml"
    policy.write_text(
        policy.read_text().replace("    mode: guided\n", "    mode: guided\n    guidance: {deadline: auto}\n")
    )
    assert explained(body=chat("my refund"))["plan"]["guidance"]["auto_deadline"] == {"min_s": 0.5, "max_s": 15.0}


@pytest.mark.parametrize(
    ("arguments", "raw", "message"),
    [
        (["--tenant", "acmee"], None, "--tenant: there is no tenant 'acmee'. Did you mean 'acme'?"),
        (["--key", "prdo"], None, "--key: the policy of tenant acme has no key 'prdo'. Did you mean 'prod'?"),
        (["--key", "zzz"], None, "--key: the policy of tenant acme has no key 'zzz'; it has prod, small-only"),
        (["--header", "x-team=blue"], None, "--header: write a name, a colon and a value, like 'x-team: blue'"),
        (["--header", "X-GKT-Tags: a b"], None, "--header: rejected with 400: 'x-gkt-tags': expected at most 10 tags"),
        ([], "{", "-: not valid JSON"),
        ([], "[]", "-: has no messages, prompt or input: the file must have a request body"),
        ([], '{"messages": []}', "-: rejected with 400: 'messages': expected a list"),
    ],
)
def test_errors_of_explain_are_one_line(folder: Path, arguments: list[str], raw: str | None, message: str) -> None:
    code, out, err = run(*arguments, raw=raw)
    assert (code, out) == (1, "")
    assert err.startswith(f"gkt-gateway: {message}")
    assert err.count("\n") == 1


def test_the_tenant_is_required_if_there_are_several(folder: Path) -> None:
    other = ACME.replace("tenant: acme", "tenant: globex").replace("a" * 64, "b" * 64)
    (folder / "policies" / "globex.yaml").write_text(other.replace(sha256(KEY.encode()).hexdigest(), "c" * 64))
    assert run()[2] == "gkt-gateway: --tenant: set the tenant of the request: one of acme, globex\n"
    assert explained("--tenant", "globex", body=chat())["routes"][0]["place"] == "policies/globex.yaml:10"


def test_a_file_that_is_not_there_and_options_that_need_one(folder: Path) -> None:
    app = typer.Typer()
    app.command()(check)
    result = CliRunner().invoke(app, ["--explain", "none.json"])
    assert (result.exit_code, result.stderr) == (
        1,
        "gkt-gateway: none.json: cannot be read: no such file or directory\n",
    )
    assert "--json needs --explain FILE" in CliRunner().invoke(app, ["--json"]).stderr


def test_issues_of_the_files_come_first(folder: Path) -> None:
    policy = folder / "policies" / "acme.yaml"
    policy.write_text(policy.read_text().replace("contains:", "contians:"))
    code, out, err = run()
    assert (code, out) == (1, "")
    assert "policies/acme.yaml:19: routes[1].when.contians: unknown key. Did you mean 'contains'?" in err


REQUESTS: list[tuple[dict[str, Any], dict[str, str]]] = [
    (chat("my refund"), {}),
    (chat(), {"x-team": "blue"}),
    (chat(max_tokens=80), {}),
    (chat(max_tokens=79), {}),
    (chat(max_tokens=79, tools=[{"type": "function", "function": {"name": "f"}}]), {}),
    (chat("my refund"), {"x-gkt-mode": "student"}),
    (chat("my refund"), {"x-gkt-mode": "teacher"}),
    (chat(model="gpt-4"), {}),
]


def test_a_gateway_acts_as_explained(folder: Path, redis_url: str) -> None:
    """The gateway uses the same mode, or rejects the request with the same message."""
    with FakeEngine(says("The answer to your question", "length")).running() as engine:
        config = (folder / "config.yaml").read_text()
        config = config.replace("http://127.0.0.1:8090 ", f"{engine.url} ")
        config = config.replace("http://127.0.0.1:8091/v1", f"{engine.url}/v1")
        (folder / "config.yaml").write_text(config.replace("continuation: auto", "continuation: trailing"))
        expected = [
            explained(
                *(part for name, value in headers.items() for part in ("--header", f"{name}: {value}")), body=body
            )
            for body, headers in REQUESTS
        ]
        models = [
            {"name": "big", "protocol": "tgi", "api_base": engine.url,
             "price": {"input_per_1m": 1, "output_per_1m": 1}},
            {"name": "small", "protocol": "openai", "api_base": f"{engine.url}/v1", "continuation": "trailing",
             "price": {"input_per_1m": 1, "output_per_1m": 1}},
        ]  # fmt: skip
        overrides = {"acme": {"overrides": {"modes": ["student"], "guidance_tokens": 50}}}
        where = folder / "running"
        with running_gateway(
            where, redis_url=redis_url, models=models, routes=routes(folder), tenants=overrides
        ) as process:
            wait_until_looked_at(process.admin_url)
            for (body, headers), plan in zip(REQUESTS, expected, strict=True):
                answer = httpx.post(
                    f"{process.url}/v1/chat/completions",
                    json=body,
                    headers={"Authorization": f"Bearer {KEY}", **headers},
                    timeout=20,
                )
                if plan["refused"]:
                    error = answer.json()["error"]
                    assert (answer.status_code, error["message"]) == (
                        plan["refused"]["status"],
                        plan["refused"]["message"],
                    )
                else:
                    assert (answer.status_code, answer.headers["x-gkt-mode"]) == (200, plan["plan"]["mode"])


def routes(folder: Path) -> list[dict[str, Any]]:
    source, _ = read(folder / "policies" / "acme.yaml")
    assert source is not None
    found: list[dict[str, Any]] = json.loads(json.dumps(source.items("routes"), default=float))
    return found


def test_the_labels_of_a_request_and_their_limits_are_explained(folder: Path) -> None:
    policy = folder / "policies" / "acme.yaml"
    policy.write_text(
        f"""{policy.read_text()}
labels:
  team: {{header: x-team, metadata: team, required: true, budget: {{max_budget: 7}},
         exceptions: {{blue: {{limits: {{rpm_limit: 9}}}}}}}}
  user: {{user: true, hash: true}}
"""
    )
    sent = ("--header", "x-team: blue")
    found = explained(*sent, body=chat(user="ann"))
    assert found["labels"]["team"].pop("budget")["max_budget"] == "7"
    assert found["labels"]["team"] == {"value": "blue", "source": "header", "limits": {"rpm_limit": 9}}
    assert found["labels"]["user"]["source"] == "user"
    assert len(found["labels"]["user"]["value"]) == 24
    assert "labels have fewer values this month than max_values" in found["assumed"]
    assert explained(body=chat(metadata={"team": "red"}))["labels"]["team"]["value"] == "red"
    refused = explained(body=chat())["refused"]
    assert (refused["status"], refused["param"]) == (400, "x-team")
    rows = shown(*sent, body=chat(user="ann"))
    assert (rows["labels.team.source"], rows["labels.team.limits.rpm_limit"]) == (["header"], ["9"])
    claims = "the caller has a key: no label comes from a claim of a token"
    assert claims not in found["assumed"]
    policy.write_text(policy.read_text().replace("team: {header", "team: {claim: org.team, header"))
    found = explained(*sent)
    assert found["labels"]["team"]["source"] == "header"
    assert claims in found["assumed"]


def test_a_budget_of_a_label_limits_the_answer(folder: Path) -> None:
    policy = folder / "policies" / "acme.yaml"
    text = "\n".join(line for line in policy.read_text().splitlines() if "budget:" not in line)
    policy.write_text(text)
    assert explained(body=chat())["plan"]["max_tokens"] is None
    policy.write_text(f"{text}\nlabels: {{team: {{header: x-team, budget: {{max_budget: 7}}}}}}\n")
    assert explained(body=chat())["plan"]["max_tokens"] == 1024
