"""Queries use a replica while it works, and the primary otherwise. Connections are limited."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from ruamel.yaml import YAML
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from gateway.errors import StartupError, UsageUnavailable
from gateway.usage.access import shares_of
from gateway.usage.replica import ReplicaLag, UsageEngines, engines_of, replica_engine
from gateway.usage.state import WorkerStateReader
from gateway.usage.store import UsageStore
from gateway.usage.threads import QueryThreads
from tests.postgres import Postgres, new_database, running_postgres
from tests.usage.databases import FOREVER, database, entry, held, opened, receipt
from tests.usage.outboxes import open_outboxes
from tests.usage.test_worker_process import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection


def address_of(server: Postgres) -> str:
    return new_database(server).replace("postgresql:", "postgresql+psycopg:", 1)


def role_of(connection: Connection) -> str:
    with connection:
        return str(connection.execute(text("SHOW application_name")).scalar_one())


def test_a_failed_replica_is_replaced_by_the_primary_and_tried_again(postgres: Postgres, tmp_path: Path) -> None:
    now = 0.0
    address = address_of(postgres)
    with opened(address, role="primary") as primary:
        primary.open()
        away = replica_engine(f"postgresql+psycopg://gkt@/usage?host={tmp_path}", 2)
        engines = UsageEngines(primary, away, lambda: now)
        with capture_logs() as logs:
            assert role_of(engines.reading()) == "primary"
            assert role_of(engines.reading()) == "primary"
        assert [one["event"] for one in logs] == ["usage_replica_unavailable"]
        assert logs[0]["error"] == "OperationalError"
        engines._replica = replica_engine(address, 2, "replica")
        assert role_of(engines.reading()) == "primary"
        now = 31.0
        with capture_logs() as logs:
            assert role_of(engines.reading()) == "replica"
        assert [one["event"] for one in logs] == ["usage_replica_available"]
        engines.close()


def test_one_thread_tries_a_hanging_replica_again(postgres: Postgres, tmp_path: Path) -> None:
    now = 0.0
    with opened(address_of(postgres), role="primary") as primary:
        primary.open()
        engines = UsageEngines(
            primary, replica_engine(f"postgresql+psycopg://gkt@/usage?host={tmp_path}", 2), lambda: now
        )
        with capture_logs():
            engines.reading().close()
        now, tried = 31.0, []

        def fail() -> Connection:
            tried.append(now)
            assert role_of(engines.reading()) == "primary"  # another thread meanwhile
            raise OSError

        engines._replica = SimpleNamespace(reading=fail)  # type: ignore[assignment]
        with capture_logs():
            assert role_of(engines.reading()) == "primary"
        assert tried == [31.0]


def test_a_replica_never_gets_tables(postgres: Postgres) -> None:
    empty = replica_engine(address_of(postgres), 2)
    with pytest.raises(StartupError, match=r"usage\.read_url has no usage tables: set it to a replica"):
        empty.open()
    assert not empty.exists()
    empty.close()


async def test_a_process_opens_no_more_connections_than_configured(postgres: Postgres) -> None:
    address = address_of(postgres)
    with opened(address) as primary:
        primary.open()
        scans, short, _ = shares_of(3)
        engines = engines_of(address, None, 3)
        threads = QueryThreads(engines.reading, short=short, scans=scans)
        sleep, most = text("SELECT pg_sleep(0.05)"), 0
        work = [threads.scan(lambda queries: queries.connection.execute(sleep)) for _ in range(6)]
        work += [threads.query(lambda queries: queries.connection.execute(sleep)) for _ in range(6)]
        running = asyncio.gather(*work)
        counted = text("SELECT COUNT(*) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()")
        while not running.done():
            with primary.reading() as connection:
                most = max(most, connection.execute(counted).scalar_one())
            await asyncio.sleep(0.01)
        await running
        assert 0 < most <= 3
        threads.close()
        engines.close()


@pytest.mark.parametrize("connections", range(3, 101))
def test_each_kind_of_query_has_its_connections(connections: int) -> None:
    shares = shares_of(connections)
    assert sum(shares) == connections
    assert min(shares) >= 1


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Postgres, Postgres]]:
    """A primary and its streaming replica."""
    with running_postgres() as primary:
        folder = Path(tempfile.mkdtemp(prefix="gkt-pg-"))
        try:
            replica = primary.replica(folder)
            try:
                yield primary, replica
            finally:
                replica.stop()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
async def test_a_real_replica_answers_queries(pair: tuple[Postgres, Postgres]) -> None:
    primary, replica = pair
    address = address_of(primary)
    read = address.replace(str(primary.folder), str(replica.folder))
    store = UsageStore(address, FOREVER, replica=read)
    assert store.replica is not None
    try:
        one = receipt()
        with opened(address) as writer:
            database(writer).add([entry(one)])
            for _ in range(500):
                if [raw async for batch in store.receipts() for raw in batch] == [one.to_json()]:
                    break
                await asyncio.sleep(0.02)
            else:
                pytest.fail("the receipt did not arrive at the replica")
            assert store.replica.lag_s() >= 0
            engine = replica_engine(read, 2)
            with engine.reading() as connection, pytest.raises(Exception, match="read-only transaction"):
                connection.execute(text("DELETE FROM usage_receipts"))
            assert [raw.id for raw in held(engine)] == [one.id]
            engine.close()
            replica.stop()
            with capture_logs() as logs:
                assert [raw async for batch in store.receipts() for raw in batch] == [one.to_json()]
            assert [entry_["event"] for entry_ in logs] == ["usage_replica_unavailable"]
            replica.start()
    finally:
        await store.close()


@pytest.mark.long
async def test_a_replica_without_its_primary_lags(pair: tuple[Postgres, Postgres]) -> None:
    primary, replica = pair
    address = address_of(primary)
    engines = engines_of(address, address.replace(str(primary.folder), str(replica.folder)), 2)

    async def until(condition: Callable[[], bool]) -> None:
        for _ in range(500):
            if condition():
                return
            await asyncio.sleep(0.02)
        pytest.fail("the lag did not change")

    def has_tables() -> bool:
        with suppress(StartupError, OperationalError):
            return engines.lag_s() == 0
        return False

    try:
        with opened(address) as writer:
            writer.open()
            await until(has_tables)
        measured = ReplicaLag(replica_engine(address.replace(str(primary.folder), str(replica.folder)), 1))
        await measured.measure()
        assert measured.lag_s() == 0
        primary.stop()
        try:
            await until(lambda: engines.lag_s() > 0)
            await measured.measure()
            assert measured.lag_s() > 0
            await measured.close()
        finally:
            primary.start()
        await until(lambda: engines.lag_s() == 0)
    finally:
        engines.close()


async def test_the_lag_of_a_replica_that_is_away_grows(postgres: Postgres, tmp_path: Path) -> None:
    """The failure is logged once."""
    now, address = 100.0, address_of(postgres)
    with opened(address) as primary:
        primary.open()
    lag = ReplicaLag(replica_engine(address, 1), lambda: now)
    await lag.measure()
    assert lag.lag_s() == 0
    now = 160.0
    assert lag.lag_s() == 0
    await lag.measure()
    reachable = lag._replica
    lag._replica = replica_engine(f"postgresql+psycopg://gkt@/usage?host={tmp_path}", 1)
    with capture_logs() as logs:
        for now in (175.0, 190.0):
            await lag.measure()
            assert lag.lag_s() == now - 160
    assert [one["event"] for one in logs] == ["usage_replica_not_measured"]
    lag._replica = reachable
    await lag.measure()
    assert lag.lag_s() == 0
    await lag.close()


async def test_the_worker_publishes_the_lag_for_the_metric(redis_url: str, address: str) -> None:
    async with open_outboxes(redis_url, address) as outboxes:
        board = WorkerStateReader(outboxes.redis, outboxes.keys.ledger(), outboxes.metrics, "here")
        lags = {"ann": lambda: 1.5, "bob": lambda: 420.0, "eve": None}
        for name, lag in lags.items():
            await (await outboxes.worker(name, replica_lag=lag)).publish_once()
        assert (await board.read()).replica_lag_s == 420.0
        assert outboxes.metrics.registry.get_sample_value("gkt_usage_replica_lag_seconds") == 420.0


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_a_worker_process_measures_the_replica(postgres: Postgres, redis_url: str, tmp_path: Path) -> None:
    address = address_of(postgres)
    async with open_outboxes(redis_url, address) as outboxes:
        workers = Workers(tmp_path, redis_url, outboxes, address.replace("+psycopg", ""))
        yaml = YAML()
        config = yaml.load(workers.config)
        config["usage"]["read_url"] = f"postgresql://gkt@/usage?host={tmp_path}"
        yaml.dump(config, workers.config)

        async def lags() -> bool:
            return ((await workers.state()).replica_lag_s or 0.0) > 0

        try:
            workers.start()
            await workers.until(lags)
            await workers.until(workers.is_up)
            assert "usage_replica_not_measured" in workers.log.read_text()
        finally:
            workers.close()


async def test_both_unavailable_is_an_error(tmp_path: Path) -> None:
    engines = engines_of(
        f"postgresql+psycopg://gkt@/usage?host={tmp_path}", f"postgresql+psycopg://gkt@/b?host={tmp_path}", 3
    )
    threads = QueryThreads(engines.reading)
    with capture_logs(), pytest.raises(UsageUnavailable):
        await threads.query(lambda queries: queries.uptime([]))
    threads.close()
    engines.close()
