"""Tags through a running gateway: receipts, conditions, usage by tag and exports."""

from __future__ import annotations

import csv
import io
import json
import os
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest

from tests.cli import in_process
from tests.cli.in_process import ADMIN_KEY
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADERS = {"Authorization": f"Bearer {KEY}", "x-api-key": KEY}
WHY = [{"role": "user", "content": "Why?"}]
NIGHTLY = STUDENT_ONLY | {"model": "chat", "when": {"tags": ["nightly", "batch"]}}
SHADOWED = {"model": "chat-shadowed", "mode": "shadow", "teacher": "big", "student": "small"}


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("tags")
    (folder / "admin.key").write_text(ADMIN_KEY)
    with (
        FakeEngine(says("The answer to your question", "length")).running() as engine,
        running_gateway(
            folder,
            redis_url=redis_url,
            redis={"prefix": f"tags{os.urandom(4).hex()}", "timeout": "5s"},
            usage={"run": "host"},
            admin={"key": "file:admin.key"},
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[
                NIGHTLY, guided(), SHADOWED, {"model": "vectors", "mode": "embeddings", "student": "small"},
            ],
        ) as process,
    ):  # fmt: skip
        wait_until_looked_at(process.admin_url)
        yield process


def ask(gate: GatewayProcess, path: str = "chat/completions", tags: str | None = None, **body: Any) -> httpx.Response:
    headers = HEADERS if tags is None else {**HEADERS, "X-GKT-Tags": tags}
    content = body if "input" in body or "prompt" in body else {"messages": WHY} | body
    return httpx.post(f"{gate.url}/v1/{path}", json={"model": "chat"} | content, headers=headers, timeout=30)


def receipt(gate: GatewayProcess, reply: httpx.Response) -> dict[str, Any]:
    """Return the receipt. A reply may arrive before its receipt is stored."""
    assert reply.status_code == 200, reply.text
    while True:
        found = httpx.get(f"{gate.url}/v1/receipts/{reply.headers['x-request-id']}", headers=HEADERS, timeout=10)
        if found.status_code != 404:
            body: dict[str, Any] = found.json()
            return body


def usage(gate: GatewayProcess, *options: str) -> in_process.Done:
    return in_process.run("usage", "show", "--url", gate.admin_url, *options)


def test_an_offline_answer_has_the_tags_of_its_report(gate: GatewayProcess) -> None:
    report = {"id": str(uuid4()), "model": "chat", "input_tokens": 9, "output_tokens": 3, "student": "small"}
    replies = [
        httpx.post(f"{gate.url}/v1/guidance/usage", json={**report, **more}, headers=HEADERS, timeout=30).json()
        for more in ({"metadata": {"tags": ["phone", "b"]}}, {"id": str(uuid4())})
    ]
    assert [reply.get("tags") for reply in replies] == [["phone", "b"], None], replies


def rows_by_tag(gate: GatewayProcess, tags: set[str], requests: int) -> dict[str, dict[str, Any]]:
    """Return the rows of these tags, once their requests are counted."""
    rows: dict[str, dict[str, Any]] = {}
    while sum(row["requests"] for row in rows.values()) < requests:
        done = usage(gate, "--by", "tag", "--format", "json")
        assert done.returncode == 0, done.stderr
        rows = {row["tag"]: row for row in json.loads(done.stdout)["rows"] if row["tag"] in tags}
    return rows


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
def test_each_api_takes_tags_in_the_header(gate: GatewayProcess, path: str, body: dict[str, Any]) -> None:
    assert receipt(gate, ask(gate, path, "team:search, x", **body))["tags"] == ["team:search", "x"]
    assert "tags" not in receipt(gate, ask(gate, path, **body))


@pytest.mark.parametrize("metadata", [{"tags": ["a", "b"]}, {"tags": "a,b", "other": "c"}])
def test_metadata_has_tags(gate: GatewayProcess, metadata: dict[str, Any]) -> None:
    assert receipt(gate, ask(gate, metadata=metadata))["tags"] == ["a", "b"]
    assert receipt(gate, ask(gate, tags="h", metadata=metadata))["tags"] == ["h", "a", "b"]


def test_an_invalid_header_is_400(gate: GatewayProcess) -> None:
    for path, body in (("chat/completions", {}), ("embeddings", {"model": "vectors", "input": "a"})):
        reply = ask(gate, path, "not a tag", **body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-gkt-tags")


def test_a_route_can_depend_on_tags(gate: GatewayProcess) -> None:
    modes = [ask(gate, tags=tags).headers["x-gkt-mode"] for tags in ("batch", "a,nightly", "a", "nightly-2")]
    assert modes == ["student", "student", "guided", "guided"]
    assert ask(gate, metadata={"tags": ["nightly"]}).headers["x-gkt-mode"] == "student"


def test_usage_by_tag_includes_shadows(gate: GatewayProcess) -> None:
    plain = [receipt(gate, ask(gate, tags="sum-a,sum-b")) for _ in range(2)]
    shadowed = receipt(gate, ask(gate, tags="sum-b", model="chat-shadowed"))
    rows = rows_by_tag(gate, {"sum-a", "sum-b"}, 2 + 2 + 1)
    own = sum(float(one["cost_usd"]) for one in (*plain, shadowed))
    while float(rows["sum-b"]["cost_usd"]) <= own * 1.01:  # the shadow is counted after its request
        rows = rows_by_tag(gate, {"sum-a", "sum-b"}, 2 + 2 + 1)
    assert (rows["sum-a"]["requests"], rows["sum-b"]["requests"]) == (2, 3), "a shadow is no request"
    assert float(rows["sum-a"]["cost_usd"]) == pytest.approx(sum(float(one["cost_usd"]) for one in plain))


def test_the_command_prints_tables_and_csv(gate: GatewayProcess) -> None:
    assert ask(gate, tags="printed").status_code == 200
    rows_by_tag(gate, {"printed"}, 1)
    table = usage(gate, "--by", "tenant,model,tag", "--tenant", "acme")
    assert table.returncode == 0
    assert "tenant" in table.stdout
    assert any(line.split()[:4] == ["acme", "chat", "printed", "1"] for line in table.stdout.splitlines()), table.stdout
    text = usage(gate, "--by", "tag", "--format", "csv").stdout
    (row,) = [row for row in csv.DictReader(io.StringIO(text)) if row["tag"] == "printed"]
    assert (row["requests"], row["errors"]) == ("1", "0")
    empty = usage(gate, "--by", "tag", "--key", "another")
    assert "No requests with tags in this time." in " ".join(empty.stdout.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--by", "tag,teacher"), "'by': tag cannot be combined with teacher: use tenant, key, route, mode."),
        (("--by", "tag", "--granularity", "hour"), "'granularity' does not apply to tag: omit it."),
        (("--by", "tag", "--tenant", "acm"), "No policy file defines tenant 'acm'"),
    ],
)
def test_a_query_that_cannot_be_answered_names_the_reason(
    gate: GatewayProcess, options: tuple[str, ...], message: str
) -> None:
    done = usage(gate, *options)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())


def test_callers_see_no_tags_of_other_keys(gate: GatewayProcess) -> None:
    """Tags are for operators. A caller has those on its own receipts."""
    reply = httpx.get(f"{gate.url}/v1/usage", params={"by": "tag"}, headers=HEADERS, timeout=30)
    assert (reply.status_code, "unknown dimension 'tag'" in reply.text) == (400, True)


def test_the_log_has_tags_and_metrics_have_none(gate: GatewayProcess) -> None:
    reply = ask(gate, tags="logged-tag")
    assert gate.wait_for_log("request", id=reply.headers["x-request-id"])["tags"] == ["logged-tag"]
    assert "logged-tag" not in httpx.get(f"{gate.admin_url}/metrics", timeout=10).text
