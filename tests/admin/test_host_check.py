"""The admin listener serves its own names and IP addresses only, so that no site reads it by DNS rebinding."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.admin.test_oidc import PUBLIC
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN_KEY = "an-admin-key-for-tests"
SHOWS_KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}
OPEN_PATHS = ["/metrics", "/queue", "/readyz", "/healthz", "/login", "/nothing"]


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    issuer = {"name": "corp", "issuer": "https://login.example.com", "audience": "gkt"}
    oidc = {"issuer": "corp", "client_id": "gkt-dashboard", "client_secret": "env:HOST_OIDC_SECRET",
            "public_url": PUBLIC, "roles": {"viewer": {"groups": "staff"}}}  # fmt: skip
    with (
        FakeEngine(says("Hi")).running() as engine,
        running_gateway(
            tmp_path_factory.mktemp("hosts"),
            redis_url=redis_url,
            models=[model("big", "tgi", engine.url), model("small", "openai", f"{engine.url}/v1", continuation="none")],
            routes=[STUDENT_ONLY],
            admin={"key": "env:HOST_ADMIN_KEY", "hosts": ["Ops.Example.com", "gkt-gateway-admin"], "oidc": oidc},
            identity={"issuers": [issuer]},
            environ={"HOST_ADMIN_KEY": ADMIN_KEY, "HOST_OIDC_SECRET": "a-client-secret"},
        ) as process,
    ):
        yield process


@pytest.mark.parametrize("path", OPEN_PATHS)
@pytest.mark.parametrize(
    "host",
    ["rebound.example.net", "rebound.example.net:8081", "example.com", "127.0.0.1.nip.io", "localhost.evil.net", "x"],
)
def test_another_name_is_421_on_every_route(gate: GatewayProcess, path: str, host: str) -> None:
    """The error says what to configure. Callers' keys and the admin key make no difference."""
    for headers in ({}, SHOWS_KEY, {"Authorization": f"Bearer {KEY}"}):
        reply = httpx.get(gate.admin_url + path, headers={"Host": host, **headers})
        assert reply.status_code == 421
        error = reply.json()["error"]
        assert error["code"] == "host_unknown"
        assert host.partition(":")[0] in error["message"]
        assert "admin.hosts in config.yaml" in error["message"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.1:8081", "10.1.2.3:8081", "[::1]:8081", "[2001:db8::5]", "localhost", "LOCALHOST:9",
        "localhost.:8081", "gkt.localhost", "ops.example.com", "OPS.example.com.:443", "gkt-gateway-admin:8081",
        PUBLIC.partition("://")[2],
    ],
)  # fmt: skip
def test_own_names_and_addresses_are_served(gate: GatewayProcess, host: str) -> None:
    """Prometheus and Kubernetes use addresses of pods."""
    for path in ("/metrics", "/queue", "/readyz"):
        assert httpx.get(gate.admin_url + path, headers={"Host": host}).status_code == 200
    assert httpx.get(f"{gate.admin_url}/audit", headers={"Host": host, **SHOWS_KEY}).status_code == 200


def test_a_load_balancer_may_omit_the_host(gate: GatewayProcess) -> None:
    """HAProxy's health checks use HTTP/1.0 without it. No browser does."""
    at, _, port = gate.admin_url.removeprefix("http://").partition(":")
    with closing(socket.create_connection((at, int(port)), timeout=10)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert connection.recv(65_536).split(b" ", 2)[1] == b"200"


def test_callers_may_use_any_name(gate: GatewayProcess) -> None:
    """Their listener shows nothing without a key."""
    reply = httpx.get(f"{gate.url}/healthz", headers={"Host": "rebound.example.net"})
    assert reply.status_code == 200
