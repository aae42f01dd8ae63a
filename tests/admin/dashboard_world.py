"""A gateway without reachable engines, whose usage database a test fills with receipts and comparisons."""

from __future__ import annotations

import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from gateway.config.database_url import sqlalchemy_url
from gateway.quality.comparison import SCALE, Comparison
from gateway.usage.database import UsageDatabase, add_comparisons
from gateway.usage.entries import OutboxEntry
from gateway.usage.sums import Retention
from tests.gateway_process import STUDENT_ONLY, GatewayProcess, guided, model, running_gateway
from tests.usage.databases import opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.accounting.receipt import Receipt

ADMIN_KEY = "an-admin-key-for-tests"
NOWHERE = [model(name, "openai", "http://127.0.0.1:9/v1", continuation="trailing") for name in ("big", "small")]
DAY_S = 86_400
RETENTION = Retention(minute=6 * 3600, hour=14 * DAY_S, day=400 * DAY_S)
"""The gateway's own retention: the gateway deletes other sums."""


class DashboardWorld:
    """The gateway and its usage database."""

    def __init__(self, gateway: GatewayProcess, address: str) -> None:
        self.gateway = gateway
        self._address = address

    def reply(self, path: str, **query: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        return httpx.get(f"{self.gateway.admin_url}{path}", params=query, headers=headers, timeout=120)

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Return a successful reply."""
        reply = self.reply(path, **query)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def error(self, path: str, **query: str) -> tuple[int, str, str]:
        """Return the status, the parameter and the message of a refused request."""
        reply = self.reply(path, **query)
        found = reply.json()["error"]
        return reply.status_code, found.get("param"), found["message"]

    def add(self, *receipts: Receipt) -> None:
        with opened(self._address) as engine:
            UsageDatabase(engine, RETENTION).add(OutboxEntry(one.tenant, "1-0", one.to_json()) for one in receipts)

    def compare(self, *agreements: float, ago_s: float = 0, tenant: str = "acme", route: str = "chat") -> None:
        """Add comparisons of guided answers of that age."""
        created = int(time.time() - ago_s)
        compared = [
            Comparison(f"req_{secrets.token_hex(12)}", created, tenant, "words", "64", route, round(one * SCALE), 0)
            for one in agreements
        ]
        with opened(self._address) as engine, engine.writing() as connection:
            add_comparisons(connection, compared)


@contextmanager
def dashboard_world(
    folder: Path, redis_url: str, *, usage_url: str = "sqlite", **config: Any
) -> Iterator[DashboardWorld]:
    """Run the gateway of a tenant `acme` with a guided route `chat`."""
    settings: dict[str, Any] = {
        "redis": {"prefix": f"t{secrets.token_hex(4)}", "timeout": "300ms"},
        "admin": {"key": "env:THE_ADMIN_KEY"},
        "environ": {"THE_ADMIN_KEY": ADMIN_KEY, "THE_USAGE_URL": usage_url},
        "usage": {"url": "env:THE_USAGE_URL"},
        "models": NOWHERE,
        "routes": [guided(), STUDENT_ONLY],
    }
    with running_gateway(folder, redis_url=redis_url, **settings | config) as gateway:
        yield DashboardWorld(gateway, sqlalchemy_url(usage_url, folder / "data"))
