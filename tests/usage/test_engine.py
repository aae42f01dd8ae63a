"""Any process can open, migrate and reopen the usage database first."""

from __future__ import annotations

import re
import sqlite3
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import gateway.usage.engine
from gateway.errors import StartupError
from gateway.usage.engine import HEAD, VERSION_TABLE, UsageDatabaseError, UsageEngine
from gateway.usage.tables import METADATA
from tests.postgres import new_database
from tests.usage.databases import database, entry, held, opened, receipt

if TYPE_CHECKING:
    from tests.postgres import Postgres


_NO_PARTITIONS = {"include_name": lambda name, kind, _: kind != "table" or not name.endswith("_default")}


def versions(engine: UsageEngine) -> list[str]:
    with engine.reading() as connection:
        return list(connection.scalars(text(f"SELECT version_num FROM {VERSION_TABLE}")))


def test_migrations_make_the_tables(address: str) -> None:
    with opened(address) as engine:
        assert not engine.exists()
        engine.open()
        assert engine.exists()
        assert versions(engine) == [HEAD]
        with engine.reading() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, **_NO_PARTITIONS})
            assert compare_metadata(context, METADATA) == []


def test_the_newest_migration_is_known() -> None:
    """`open` compares versions without Alembic, and by their digits."""
    folder = Path(gateway.usage.engine.__file__).with_name("migrations")
    script = ScriptDirectory(str(folder))
    assert script.get_heads() == [HEAD]
    assert all(re.fullmatch("[0-9]{4}", one.revision) for one in script.walk_revisions())


def test_checking_for_a_database_creates_none(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/data/usage.db") as engine:
        assert not engine.exists()
    assert list(tmp_path.iterdir()) == []


def test_concurrent_processes_open_the_database(address: str) -> None:
    failures: list[Exception] = []
    start = threading.Barrier(4)

    def work() -> None:
        try:
            with opened(address) as engine:
                start.wait()
                database(engine).add([entry(receipt())])
        except Exception as error:  # noqa: BLE001 - the test fails with it
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []
    with opened(address) as engine:
        assert len(held(engine)) == 4
        assert versions(engine) == [HEAD]


def test_a_newer_database_is_refused(address: str) -> None:
    with opened(address) as engine, engine.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with opened(address) as engine, pytest.raises(StartupError, match="has version 9999, and this gateway supports"):
        engine.open()


def test_a_migration_that_fails_leaves_nothing(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.create_index", lambda *_: 1 / 0)
        with opened(address) as engine, pytest.raises(ZeroDivisionError):
            engine.open()
    with opened(address) as engine:
        assert not engine.exists()
        database(engine).add([entry(receipt())])


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "data" / "usage.db"
    with opened(f"sqlite:///{file}") as engine:
        database(engine).add([entry(receipt())])
        modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in file.parent.iterdir()}
        assert modes == dict.fromkeys(("usage.db", "usage.db-wal", "usage.db-shm"), 384)
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        with engine.reading() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
            assert connection.scalar(text("PRAGMA synchronous")) == 2


def test_a_replaced_file_is_reopened(tmp_path: Path) -> None:
    file = tmp_path / "usage.db"
    with opened(f"sqlite:///{file}") as engine, opened(f"sqlite:///{file}") as reader:
        database(engine).add([entry(before := receipt())])
        assert [one.id for one in held(reader)] == [before.id]
        for one in tmp_path.iterdir():
            one.unlink()
        after = receipt()
        database(engine).add([entry(after)])
        assert [one.id for one in held(engine)] == [after.id]
        assert [one.id for one in held(reader)] == [after.id]


def test_tables_that_are_gone_are_made_again(address: str) -> None:
    """The database was dropped and created again."""
    with opened(address) as engine:
        database(engine).add([entry(receipt())])
        with engine.writing() as connection:
            METADATA.drop_all(connection)
            connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
        after = receipt()
        with pytest.raises(SQLAlchemyError):
            database(engine).add([entry(after)])
        database(engine).add([entry(after)])
        assert [one.id for one in held(engine)] == [after.id]


@pytest.mark.long
def test_a_server_that_comes_back_is_used_again(postgres: Postgres) -> None:
    address = new_database(postgres).replace("postgresql:", "postgresql+psycopg:", 1)
    with opened(address) as engine:
        database(engine).add([entry(receipt())])
        postgres.stop()
        try:
            with pytest.raises(UsageDatabaseError):
                database(engine).add([entry(receipt())])
        finally:
            postgres.start()
        database(engine).add([entry(receipt())])
        assert len(held(engine)) == 2


def test_a_lock_that_is_held_for_too_long_only_delays(address: str) -> None:
    """Another worker, a backup or a person has the lock. The entries are written afterwards."""
    with opened(address) as holder, opened(address, wait_s=1) as waiter:
        database(holder).add([entry(receipt())])
        waiter.open()
        late = [entry(receipt())]
        with holder.writing(), pytest.raises(UsageDatabaseError):
            database(waiter).add(late)
        assert database(waiter).add(late).inserted == 1
        assert len(held(holder)) == 2


def test_a_new_file_that_is_locked_is_opened_later(tmp_path: Path) -> None:
    lock = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    with opened(f"sqlite:///{tmp_path}/usage.db", wait_s=1) as engine:
        with pytest.raises(UsageDatabaseError):
            database(engine).add([entry(receipt())])
        lock.close()
        assert database(engine).add([entry(receipt())]).inserted == 1


@pytest.mark.parametrize("address", ["postgresql+psycopg://u:secret@[::1/db", "nothing://u:secret@host/db"])
def test_an_invalid_address_is_not_quoted(address: str) -> None:
    with pytest.raises(StartupError) as raised:
        UsageEngine(address).open()
    assert "secret" not in str(raised.value)
