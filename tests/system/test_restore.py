"""The guide's section on backups, rehearsed: back up an installation, and restore it into an empty one."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import sqlite3
import subprocess
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import pytest_asyncio

from gateway.local.redis import EmbeddedRedis
from tests.cli import in_process
from tests.cli.installation import Installation
from tests.postgres import running_postgres
from tests.redis_clients import opened_by_url
from tests.redis_groups import RedisServer, cluster_group

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.postgres import Postgres

GUIDE = (Path(__file__).parents[2] / "docs/deployment.md").read_text("utf-8").partition("\n## Backups\n")[2]
DUMP = 'pg_dump --format=custom --file=usage.dump "$GKT_USAGE_URL"'
RESTORE = 'pg_restore --dbname="$GKT_USAGE_URL" usage.dump'


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def empty_redis_url() -> AsyncIterator[str]:
    async with EmbeddedRedis() as redis:
        yield redis.url


def new_database(server: Postgres) -> str:
    """Return the URL of an empty database."""
    name = f"d{secrets.token_hex(6)}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.url.replace("/postgres?", f"/{name}?")


def shell(script: str, folder: Path, url: str) -> None:
    """Run a command of the guide."""
    assert script in GUIDE
    environment = {"PATH": "/usr/bin:/bin", "GKT_USAGE_URL": url}
    done = subprocess.run(
        ["/bin/sh", "-euc", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def back_up(here: Installation, folder: Path) -> None:
    """Copy the usage database, and what only Redis has."""
    done = here.keys_run("export", "-o", folder / "keys.jsonl")
    assert done.returncode == 0, done
    if here.address.startswith("sqlite"):
        # What `.backup` of SQLite's shell does.
        with (
            closing(sqlite3.connect(here.data / "usage.db")) as source,
            closing(sqlite3.connect(folder / "usage.db")) as to,
        ):
            source.backup(to)
    else:
        shell(DUMP, folder, here.usage_url)


def restore(there: Installation, folder: Path) -> None:
    """Restore into an empty Redis or one with a copy of the data, and an empty database."""
    if there.address.startswith("sqlite"):
        there.data.mkdir()
        shutil.copy(folder / "usage.db", there.data / "usage.db")
    else:
        shell(RESTORE, folder, there.usage_url)
    done = there.keys_run("import", folder / "keys.jsonl")
    assert done.returncode == 0, done
    there.rebuilt()


def spent(place: Installation) -> list[str]:
    """Return the spend of the tenant, of a key over a rolling period, and of a team."""
    return place.spent(*place.scopes(team="search"))


@pytest.mark.parametrize("usage", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def test_an_empty_installation_gets_keys_budgets_and_sums(
    tmp_path: Path, redis_url: str, empty_redis_url: str, usage: str, request: pytest.FixtureRequest
) -> None:
    """Under another prefix of another Redis, without a copy of Redis."""
    urls = ["sqlite"] * 2
    if usage == "postgres":
        server = request.getfixturevalue("postgres")
        urls = [new_database(server), new_database(server)]
    here = Installation(tmp_path / "here", redis_url, urls[0])
    there = Installation(tmp_path / "there", empty_redis_url, urls[1])
    here.fill()
    here.trade(["0.25", "0.000000000001"], team="search")
    here.trade(["0.5"], team="ads")
    here.work()
    back_up(here, tmp_path)
    restore(there, tmp_path)
    assert asyncio.run(there.state()) == asyncio.run(here.state())
    assert there.tables() == here.tables()
    assert spent(there) == spent(here) == ["0.750000000001", "0.750000000001", "0.250000000001"]
    assert in_process.run("usage", "verify", "--config", str(there.config)).returncode == 0


@asynccontextmanager
async def copied(server: RedisServer, folder: Path) -> AsyncIterator[RedisServer]:
    """Run a server with the data of another one."""
    async with server.client() as redis:
        await redis.save()
    copy = RedisServer(folder)
    shutil.copy(server.folder / "dump.rdb", folder)
    await copy.start()
    try:
        yield copy
    finally:
        await copy.stop()


async def test_a_copy_of_redis_gets_later_keys_and_spend(tmp_path: Path) -> None:
    """The copy has a request in progress and a waiting receipt. Keys and the database were saved later."""
    server = RedisServer(tmp_path / "server")
    await server.start()
    here = Installation(tmp_path / "here", server.url)
    try:
        await asyncio.to_thread(here.fill)
        await asyncio.to_thread(here.trade, ["0.25"], team="search")
        async with copied(server, tmp_path / "copy") as copy:
            there = Installation(tmp_path / "there", copy.url, prefix=here.keys.prefix)
            assert await asyncio.to_thread(spent, there) == ["0.25"] * 3
            await here.create("later")
            await asyncio.to_thread(here.trade, ["0.5"], team="search")
            await asyncio.to_thread(here.work)
            await asyncio.to_thread(back_up, here, tmp_path)
            await asyncio.to_thread(restore, there, tmp_path)
            assert await there.state() == await here.state()
            assert await asyncio.to_thread(spent, there) == ["0.75"] * 3
            await asyncio.to_thread(there.work)
            assert await asyncio.to_thread(there.tables) == await asyncio.to_thread(here.tables)
    finally:
        await server.stop()


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_cluster_takes_over_from_one_server(tmp_path: Path, empty_redis_url: str) -> None:
    """The usage database stays. Requests continue to count."""
    here = Installation(tmp_path / "here", empty_redis_url)
    await asyncio.to_thread(here.fill)
    await asyncio.to_thread(here.trade, ["0.25", "0.5"], team="search")
    await asyncio.to_thread(here.work)
    before = await here.state()
    done = await asyncio.to_thread(here.keys_run, "export", "-o", tmp_path / "keys.jsonl")
    assert done.returncode == 0, done
    async with cluster_group() as group:
        with opened_by_url():
            here.edit_config(here.url, group.url)
            here.url = group.url
            done = await asyncio.to_thread(here.keys_run, "import", tmp_path / "keys.jsonl")
            assert done.returncode == 0, done
            await asyncio.to_thread(here.rebuilt)
            assert await here.state() == before
            await asyncio.to_thread(here.trade, ["0.125"], team="search")
            assert await asyncio.to_thread(spent, here) == ["0.875"] * 3


def test_the_tables_of_sqlite_are_copied_to_postgresql(tmp_path: Path, redis_url: str, postgres: Postgres) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("no shell of SQLite on this machine: scripts/system installs it")
    here = Installation(tmp_path / "here", redis_url)
    there = Installation(tmp_path / "there", redis_url, new_database(postgres))
    here.trade(["0.25", "0.5"], team="search")
    here.work()
    there.tables()  # creates them
    (loop,) = re.findall(r"^for table in .*?^done$", GUIDE, re.MULTILINE | re.DOTALL)
    shell(loop, here.data, there.usage_url)
    assert there.tables() == here.tables()
    done = in_process.run("usage", "verify", "--config", str(there.config))
    assert (done.returncode, "0 sums differ" in done.stdout) == (0, True)
