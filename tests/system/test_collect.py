"""Requests of a route with `collect`: what the gateway keeps, `gkt-gateway eval collect`, and the audit trail."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis as redis_client

from tests.cli.in_process import ADMIN_KEY, run
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROUTE = STUDENT_ONLY | {"retries": {"num_retries": 0}}
ALL = {"sample": 1, "max_requests": 20}
TURNS = [
    {"role": "system", "content": "Answer as a sailor."},
    {"role": "user", "content": "Where do boats lie?"},
    {"role": "assistant", "content": "In the harbor."},
    {"role": "user", "content": "And in winter?"},
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[GatewayProcess]:
    """Run a gateway that collects all requests of two routes of acme, and none of globex."""
    folder = tmp_path_factory.mktemp("collect")
    (folder / "admin.key").write_text(ADMIN_KEY)
    routes = [
        ROUTE | {"model": "kept", "collect": ALL},
        ROUTE | {"model": "few", "collect": ALL | {"max_requests": 3}},
        ROUTE | {"model": "short", "collect": ALL | {"ttl": "3s"}},
        ROUTE | {"model": "plain"},
    ]
    with (
        FakeEngine(says("Hello there.")).running() as engine,
        running_gateway(
            folder,
            redis_url=redis_url,
            redis={"prefix": f"c{os.urandom(4).hex()}"},
            admin={"key": "file:admin.key"},
            models=[model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
                    model("big", "openai", f"{engine.url}/v1")],
            routes=[ROUTE | {"model": "plain"}, ROUTE | {"model": "kept"}],
            tenants={"acme": {"routes": routes}},
        ) as process,
    ):  # fmt: skip
        yield process


@pytest.fixture(autouse=True)
def _erased(gateway: GatewayProcess) -> None:
    admin(gateway, "DELETE", "/collected/acme")


def ask(gateway: GatewayProcess, route: str = "kept", key: str = KEY, **more: Any) -> str:
    """Send a request and return its id."""
    body = {"model": route, "messages": TURNS, **more}
    headers = {"Authorization": f"Bearer {key}", "X-Secret": "headercanary"}
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert reply.status_code == 200, reply.text
    return reply.headers["x-request-id"]


def admin(gateway: GatewayProcess, method: str, path: str, **headers: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", **headers}
    return httpx.request(method, gateway.admin_url + path, headers=headers, timeout=20)


def sample_of(gateway: GatewayProcess, route: str, seen: int) -> dict[str, Any]:
    """Return the state of a sample, once it was drawn from so many requests."""
    give_up = time.monotonic() + 10
    while True:
        routes = admin(gateway, "GET", "/collected/acme").json()["routes"]
        found: dict[str, Any] = next((one for one in routes if one["route"] == route), {"seen": 0})
        if found["seen"] >= seen:
            return found
        assert time.monotonic() < give_up, found
        time.sleep(0.02)


def collect(gateway: GatewayProcess, *arguments: str) -> Any:
    return run("eval", "collect", *arguments, "--url", gateway.admin_url)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_written_to_a_file_without_headers(
    gateway: GatewayProcess, tmp_path: Path, *, stream: bool
) -> None:
    request_id = ask(gateway, stream=stream, max_tokens=50, stop=["END"])
    sample_of(gateway, "kept", 1)
    file = tmp_path / "requests.jsonl"
    done = collect(gateway, str(file), "--tenant", "acme")
    assert done.returncode == 0, done.stderr
    assert "route kept: a sample of 1 of 1 request since " in done.stderr
    line = json.loads(file.read_text())
    assert line.pop("created") > 1_700_000_000
    assert line == {"id": request_id, "route": "kept", "messages": TURNS, "max_tokens": 50, "stop": ["END"]}
    assert file.stat().st_mode & 0o777 == 0o600


def test_no_request_is_collected_without_consent(gateway: GatewayProcess, redis_url: str) -> None:
    """Other routes of the tenant, other tenants, and requests with `store: false`."""
    ask(gateway, "plain")
    ask(gateway, key=OTHER_KEY)
    ask(gateway, store=False)
    ask(gateway, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    sample = sample_of(gateway, "kept", 2)
    assert (sample["requests"], sample["skipped"]) == (0, {"opted_out": 1, "tools": 1})
    assert [one["route"] for one in admin(gateway, "GET", "/collected/acme").json()["routes"]] == ["kept"]
    assert admin(gateway, "GET", "/collected/globex").json()["routes"] == []
    with redis_client.Redis.from_url(redis_url) as redis:
        keys = [key for key in redis.scan_iter("*collected*") if b"kept" in key]
        assert keys
        assert not any(b"sailor" in (redis.dump(key) or b"") for key in keys)


def test_texts_and_headers_are_in_no_log_and_no_metric(gateway: GatewayProcess) -> None:
    ask(gateway)
    sample_of(gateway, "kept", 1)
    assert "sailor" in admin(gateway, "GET", "/collected/acme/requests?route=kept").text
    assert "headercanary" not in admin(gateway, "GET", "/collected/acme/requests?route=kept").text
    assert "sailor" not in gateway.raw_log
    assert "sailor" not in httpx.get(f"{gateway.admin_url}/metrics").text


def test_a_sample_is_bounded_and_pages_are_disjoint(gateway: GatewayProcess, tmp_path: Path) -> None:
    ids = {ask(gateway, "few") for _ in range(8)}
    assert sample_of(gateway, "few", 8)["requests"] == 3
    first = admin(gateway, "GET", "/collected/acme/requests?route=few&limit=2").json()
    second = admin(gateway, "GET", f"/collected/acme/requests?route=few&limit=2&after={first['next']}").json()
    kept = [one["id"] for one in (*first["requests"], *second["requests"])]
    assert len(kept) == len(set(kept)) == 3
    assert ids.issuperset(kept)
    assert second["next"] is None
    file = tmp_path / "two.jsonl"
    assert collect(gateway, str(file), "-t", "acme", "--route", "few", "--limit", "2").returncode == 0
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == kept[:2]


def test_requests_are_deleted_after_their_time(gateway: GatewayProcess) -> None:
    ask(gateway, "short")
    sample_of(gateway, "short", 1)
    give_up = time.monotonic() + 10
    while admin(gateway, "GET", "/collected/acme").json()["routes"]:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert admin(gateway, "GET", "/collected/acme/requests?route=short").status_code == 404


def test_delete_erases_a_route_or_a_tenant_and_is_audited(gateway: GatewayProcess, tmp_path: Path) -> None:
    ask(gateway)
    ask(gateway, "few")
    sample_of(gateway, "kept", 1)
    sample_of(gateway, "few", 1)
    file = tmp_path / "requests.jsonl"
    assert collect(gateway, str(file), "-t", "acme", "--route", "kept", "--actor", "dora").returncode == 0
    done = collect(gateway, "-t", "acme", "--route", "kept", "--delete", "--actor", "dora")
    assert "deleted: 1 request of route kept" in done.stderr
    assert [one["route"] for one in admin(gateway, "GET", "/collected/acme").json()["routes"]] == ["few"]
    entries = admin(gateway, "GET", "/audit?limit=2").json()["entries"]
    assert [(one["actor"], one["action"], one["tenant"], one["subject"]) for one in entries] == [
        ("dora", "collected.delete", "acme", "kept"),
        ("dora", "collected.read", "acme", "kept"),
    ]
    assert "sailor" not in json.dumps(entries)
    assert collect(gateway, "-t", "acme", "--delete").returncode == 0
    assert admin(gateway, "GET", "/collected/acme").json()["routes"] == []
    assert "There was nothing to delete." in collect(gateway, "-t", "acme", "--delete").stderr


def test_errors_name_the_field_and_the_fix(gateway: GatewayProcess, tmp_path: Path) -> None:
    ask(gateway)
    sample_of(gateway, "kept", 1)
    for path, status, message in (
        ("/collected/acm", 404, "No policy file defines tenant 'acm'. Did you mean 'acme'?"),
        ("/collected/acme/requests", 400, "'route': missing"),
        ("/collected/acme/requests?route=kep", 404, "Did you mean 'kept'?"),
        ("/collected/acme/requests?route=kept&after=x", 400, "'after': expected the value of `next`"),
        ("/collected/acme/requests?route=kept&limit=0", 400, "'limit': expected a whole number"),
        ("/collected/acme?limit=1", 400, "'limit': unknown parameter"),
    ):
        reply = admin(gateway, "GET", path)
        assert (reply.status_code, message in reply.json()["error"]["message"]) == (status, True), reply.text
    assert httpx.get(f"{gateway.admin_url}/collected/acme/requests?route=kept").status_code == 401
    file = tmp_path / "requests.jsonl"
    file.write_text("mine")
    for arguments, message in (
        ((str(file), "-t", "acme"), "add --overwrite"),
        ((str(tmp_path / "none" / "file"), "-t", "acme"), "Name another file"),
        ((str(file), "-t", "globex"), "It collects those of routes with `collect`"),
        (("-t", "acme"), "delete the requests with --delete"),
        (
            (str(file), "-t", "acme", "--limit", "1", "--delete"),
            "would delete the requests beyond --limit, too: omit one",
        ),
    ):
        done = collect(gateway, *arguments)
        assert done.returncode != 0
        assert message in " ".join(done.stderr.replace("│", " ").split()), done.stderr
    assert file.read_text() == "mine"
    assert collect(gateway, str(file), "-t", "acme", "--overwrite").returncode == 0
    assert "sailor" in file.read_text()
