"""GET /budgets while a node of a real cluster is down: readable budgets are listed, and the others are named."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.redis.keys import RedisKeys
from gateway.redis.slots import slot_of
from tests.fakes import FakeEngine, says
from tests.gateway_process import COMMAND, STUDENT_ONLY, model, running_gateway
from tests.redis_groups import cluster_group, until
from tests.system.test_redis_failover import spread_prefix

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

ADMIN_KEY = "an-admin-key-for-tests"


async def test_readable_budgets_are_listed_and_the_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text(ADMIN_KEY)
    async with cluster_group() as group:
        prefix = await spread_prefix(group)
        with (
            FakeEngine(says("Hello there.")).running() as engine,
            running_gateway(
                tmp_path,
                redis_url=group.url,
                redis={"prefix": prefix},
                admin={"key": "file:admin.key"},
                models=[model("small", "openai", f"{engine.url}/v1")],
                routes=[STUDENT_ONLY | {"baseline": "small"}],
                tenants={
                    "acme": {"budget": {"max_budget": 5}, "key_budget": {"max_budget": 1}},
                    "globex": {"budget": {"max_budget": 7}},
                },
            ) as process,
        ):

            def get(path: str) -> httpx.Response:
                return httpx.get(process.admin_url + path, headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=30)

            def listed() -> tuple[list[Any], list[Any]]:
                body = get("/budgets").json()
                named = [[(one["tenant"], one["key"]) for one in body[part]] for part in ("budgets", "unreadable")]
                return named[0], named[1]

            whole, none = await asyncio.to_thread(listed)
            assert none == []
            of_acme = [one for one in whole if one[0] == "acme"]
            assert len(of_acme) == 2
            assert ("globex", None) in whole
            victim = await group.owner(slot_of(RedisKeys(prefix).tenant_base("acme")))
            stopped = [victim, *await group.replicas(victim)]
            for server in stopped:
                server.send(signal.SIGSTOP)
            try:
                # At first, no breaker is open: the read fails. Then the budgets of the node are not read.
                for _ in range(2):
                    readable, unreadable = await asyncio.to_thread(listed)
                    assert readable == [one for one in whole if one[0] != "acme"]
                    assert unreadable == of_acme

                    async def is_known() -> bool:
                        found = await asyncio.to_thread(get, "/readyz")
                        return bool(found.json()["redis"]["problems"])

                    await until(is_known)
                reply = await asyncio.to_thread(get, "/budgets")
                keyring = await group.owner(slot_of(RedisKeys(prefix).keyring_base), await group.living())
                assert reply.json()["keys_current"] is (keyring is not victim)
                one = await asyncio.to_thread(get, "/budgets/acme")
                assert one.status_code == 503
                assert "tenant 'acme'" in one.json()["error"]["message"]
                table, text = [await asyncio.to_thread(command, process.admin_url, *more) for more in ((), ("--json",))]
            finally:
                for server in stopped:
                    server.send(signal.SIGCONT)
            assert table.returncode == text.returncode == 1
            assert "A node of Redis does not answer. 2 budgets cannot be read: acme, acme/" in table.stderr
            assert "globex" in table.stdout
            assert len(json.loads(text.stdout)["unreadable"]) == 2

            async def is_whole() -> bool:
                return await asyncio.to_thread(listed) == (whole, [])

            await until(is_whole)


def command(url: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *COMMAND, "budgets", "list", "--url", url, *more],
        env={**os.environ, "GKT_ADMIN_KEY": ADMIN_KEY},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
