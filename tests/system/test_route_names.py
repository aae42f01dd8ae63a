"""Aliases and the route `*` through a running gateway: each API, receipts, metrics, usage and switches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN_KEY = "an-admin-key-for-tests"
VECTORS = {"model": "vectors", "aliases": ["text-embedding-3-small"], "mode": "embeddings", "student": "small"}
SPLIT = {
    "by": "caller",
    "variants": {"a": {"share": 0.5}, "b": {"share": 0.5, "guidance": {"tokens": 20}}},
}


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with (
        FakeEngine(says("The answer to your question", "length")).running() as engine,
        running_gateway(
            tmp_path_factory.mktemp("names"),
            redis_url=redis_url,
            redis={"timeout": "5s"},
            environ={"GKT_ADMIN_KEY": ADMIN_KEY},
            admin={"key": "env:GKT_ADMIN_KEY"},
            usage={"run": "host"},
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[
                guided() | {"aliases": ["gpt-4o"], "split": SPLIT},
                {"model": "*", "mode": "student", "student": "small"},
                VECTORS,
            ],
        ) as process,
    ):
        wait_until_looked_at(process.admin_url)
        yield process


def call(gate: GatewayProcess, path: str, name: str, **body: Any) -> httpx.Response:
    reply = httpx.post(
        f"{gate.url}/v1/{path}",
        json={"model": name, **body},
        headers={"Authorization": f"Bearer {KEY}", "x-api-key": KEY},
        timeout=30,
    )
    assert reply.status_code == 200, reply.text
    return reply


def admin(gate: GatewayProcess, method: str, path: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.request(method, f"{gate.admin_url}{path}", headers=headers, timeout=30, **options)


def receipt(gate: GatewayProcess, request_id: str) -> dict[str, Any]:
    """Return the receipt. A reply may arrive before its receipt is stored."""
    while True:
        reply = httpx.get(
            f"{gate.url}/v1/receipts/{request_id}", headers={"Authorization": f"Bearer {KEY}"}, timeout=10
        )
        if reply.status_code != 404:
            body: dict[str, Any] = reply.json()
            return body


CHAT = {"messages": [{"role": "user", "content": "Why is the sky blue?"}]}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", CHAT),
    ("completions", {"prompt": "The sky is", "max_tokens": 30}),
    ("responses", {"input": "Why is the sky blue?"}),
    ("messages", {**CHAT, "max_tokens": 50}),
]


@pytest.mark.parametrize(("path", "body"), CALLS)
@pytest.mark.parametrize(("name", "route", "mode"), [("gpt-4o", "chat", "guided"), ("claude-x", "*", "student")])
def test_each_api_has_the_route_and_its_reply_the_name(
    gate: GatewayProcess, path: str, body: dict[str, Any], name: str, route: str, mode: str
) -> None:
    reply = call(gate, path, name, **body)
    assert (reply.json()["model"], reply.headers["x-gkt-mode"]) == (name, mode)
    found = receipt(gate, reply.headers["x-request-id"])
    assert (found["route"], found["mode"]) == (route, mode)
    assert ("split" in found) == (route == "chat")


def test_streams_have_the_name(gate: GatewayProcess) -> None:
    text = call(gate, "chat/completions", "claude-y", **CHAT, stream=True).text
    assert '"model":"claude-y"' in text
    assert '"model":"*"' not in text


def test_embeddings_have_aliases(gate: GatewayProcess) -> None:
    reply = call(gate, "embeddings", "text-embedding-3-small", input="a")
    assert reply.json()["model"] == "text-embedding-3-small"
    assert receipt(gate, reply.headers["x-request-id"])["route"] == "vectors"


def test_guidance_for_devices_has_aliases(gate: GatewayProcess) -> None:
    reply = call(gate, "guidance", "gpt-4o", **CHAT)
    assert reply.json()["model"] == "gpt-4o"
    assert receipt(gate, reply.headers["x-request-id"])["route"] == "chat"


def test_names_and_aliases_are_listed(gate: GatewayProcess) -> None:
    with httpx.Client(base_url=f"{gate.url}/v1", headers={"Authorization": f"Bearer {KEY}"}) as client:
        listed = [one["id"] for one in client.get("/models").json()["data"]]
        assert listed == ["chat", "gpt-4o", "vectors", "text-embedding-3-small"]
        assert client.get("/models/gpt-4o").json()["id"] == "gpt-4o"
        assert client.get("/models/any/other").json()["id"] == "any/other"


def test_names_of_callers_make_no_series_and_no_rows(gate: GatewayProcess) -> None:
    ids = [call(gate, "chat/completions", f"made-up-{n}", **CHAT).headers["x-request-id"] for n in range(5)]
    assert {receipt(gate, one)["route"] for one in ids} == {"*"}
    metrics = httpx.get(f"{gate.admin_url}/metrics", timeout=10).text
    assert 'route="*"' in metrics
    assert "made-up" not in metrics
    rows: list[dict[str, Any]] = []
    while sum(row["requests"] for row in rows if row["route"] == "*") < len(ids):
        reply = admin(gate, "GET", "/usage", params={"by": "route", "since": "1h"})
        assert reply.status_code in {200, 503}, reply.text
        rows = reply.json()["rows"] if reply.status_code == 200 else []
    assert {row["route"] for row in rows} <= {"chat", "*", "vectors"}


def test_a_switch_of_the_route_applies_to_its_aliases(gate: GatewayProcess) -> None:
    refused = admin(gate, "POST", "/guidance/off", json={"tenant": "acme", "route": "gpt-4o"})
    assert refused.status_code == 404
    assert "It is an alias of route 'chat': send that name." in refused.text
    assert admin(gate, "POST", "/guidance/off", json={"tenant": "acme", "route": "chat"}).status_code == 200
    try:
        reply = call(gate, "chat/completions", "gpt-4o", **CHAT)
        assert reply.headers["x-gkt-unguided"] == "switched_off"
    finally:
        assert admin(gate, "POST", "/guidance/on", json={"tenant": "acme", "route": "chat"}).status_code == 200


def test_keys_may_name_aliases_and_all_other_names(gate: GatewayProcess) -> None:
    for number, models in enumerate((["gpt-4o"], ["*"])):
        made = admin(gate, "POST", "/keys", json={"tenant": "acme", "id": f"k{number}", "models": models})
        assert made.status_code == 201, made.text
    wrong = admin(gate, "POST", "/keys", json={"tenant": "acme", "id": "k9", "models": ["gpt-4"]})
    assert (wrong.status_code, "Did you mean 'gpt-4o'?" in wrong.text) == (400, True)
