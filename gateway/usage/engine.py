"""Connect to the usage database, SQLite or PostgreSQL, and create its tables. All calls block: use threads."""

from __future__ import annotations

import sqlite3
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError

from gateway.config.database_url import without_credentials
from gateway.errors import StartupError
from gateway.usage.partitions import create_defaults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

UsageDatabaseError = (SQLAlchemyError, OSError)
"""Errors of an unavailable, full or damaged database."""

VERSION_TABLE = "usage_version"
HEAD = "0001"
"""The newest migration (migrations/versions). A version is a number of four digits."""

_MIGRATIONS = Path(__file__).with_name("migrations")
_BUSY_RETRY_S = 0.02
_CONNECT_S = 5
_CACHE_KIB = 16_384
# Keys of PostgreSQL's advisory locks.
_MIGRATE_LOCK = 0x676B745F64620001
_WRITE_LOCK = 0x676B745F64620002
_ALEMBIC = Lock()
"""Alembic has global state: one migration at a time in a process, also of different databases."""


class UsageEngine:
    """Connections to one database. They open when first used, and reopen after `close`.

    Args:
        address: a URL for SQLAlchemy.
        wait_s: limits the wait for a lock, and the time of a statement in PostgreSQL.
        connections: the most open connections.
        role: the name of the connections in PostgreSQL's `pg_stat_activity`.
        read_only: the database is a replica: `open` neither creates nor migrates tables.

    Raises StartupError if the driver is not installed or the address is invalid.
    """

    def __init__(
        self,
        address: str,
        *,
        wait_s: int = 30,
        connections: int = 8,
        role: str = "gkt-gateway",
        read_only: bool = False,
    ) -> None:
        self._address, self._wait_s = address, wait_s
        self._connections, self._role, self._read_only = connections, role, read_only
        self.is_sqlite = address.startswith("sqlite:")
        self._file = Path(address.removeprefix("sqlite:///")) if self.is_sqlite else None
        self._file_id: tuple[int, int] | None = None
        self._engine: Engine | None = None
        self._open_lock = Lock()
        self._tables_checked = True

    def exists(self) -> bool:
        """Return whether the tables exist, without creating anything. Raises the same errors as `open`."""
        if self._engine is None and self._file is not None and not self._file.exists():
            return False
        engine = self._engine or self._connect()
        try:
            return inspect(engine).has_table(VERSION_TABLE)
        finally:
            if engine is not self._engine:
                engine.dispose()

    def close(self) -> None:
        """Close all connections that are not in use."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Begin a write transaction. All processes together run one at a time. Raises UsageDatabaseError."""
        engine = self.open()
        try:
            if not self._tables_checked:
                migrate(engine)
                self._tables_checked = True
            with _begin(engine, _WRITE_LOCK) as connection:
                yield connection
        except SQLAlchemyError:
            self._tables_checked = False  # the database may have been restored or replaced
            raise
        except Exception as error:
            driver_error = engine.dialect.loaded_dbapi.Error  # statements of sql.py go to the driver directly
            if not isinstance(error, driver_error):
                raise
            self._tables_checked = False
            raise DBAPIError.instance(None, None, error, driver_error, dialect=engine.dialect) from error

    def reading(self) -> Connection:
        """Begin a read transaction. Raises UsageDatabaseError."""
        return self.open().connect()

    def open(self) -> Engine:
        """Connect, and create or migrate the tables if this has not been done.

        Raises UsageDatabaseError. Raises StartupError if the driver is not installed, if a replica has no tables, or if
        a newer version of the gateway migrated them.
        """
        with self._open_lock:
            if self._engine is not None and self._file_id != _file_id(self._file):
                self.close()  # the file was removed or replaced
            if self._engine is None:
                engine = self._connect()
                try:
                    (_check_replica if self._read_only else migrate)(engine)
                except BaseException:
                    engine.dispose()
                    raise
                self._file_id = _file_id(self._file)
                self._engine = engine
            return self._engine

    def _connect(self) -> Engine:
        pool: dict[str, Any] = {"pool_size": self._connections, "max_overflow": 0}
        if self._file is not None:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file.touch(mode=0o600)
            engine = create_engine(self._address, connect_args={"timeout": self._wait_s}, **pool)
            event.listen(engine, "connect", lambda connection, _: _set_up_sqlite(connection, self._wait_s))
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        limits = f"-c statement_timeout={self._wait_s}s -c lock_timeout={self._wait_s}s"
        # A generic plan would lock all partitions, a custom plan only those of the days in the parameters.
        limits += " -c plan_cache_mode=force_custom_plan"
        if self._read_only:
            limits += " -c default_transaction_read_only=on"
        options = {"connect_timeout": _CONNECT_S, "application_name": self._role, "options": limits}
        keep_alive = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 15_000}
        pool |= {"pool_timeout": _CONNECT_S, "pool_pre_ping": True}
        try:
            return create_engine(self._address, connect_args=options | keep_alive, **pool)
        except (ImportError, NoSuchModuleError):
            raise StartupError(
                "A usage database in PostgreSQL needs the extra `postgres`: pip install 'gkt-gateway[postgres]', or "
                "set 'url: sqlite' under usage in config.yaml."
            ) from None
        except (SQLAlchemyError, ValueError):
            # SQLAlchemy's error quotes the address, which may contain a password.
            raise StartupError("usage.url cannot be parsed: correct it in config.yaml or GKT_USAGE_URL.") from None

    def __str__(self) -> str:
        return without_credentials(self._address)


def migrate(engine: Engine) -> None:
    """Create the tables, or migrate them to this version, in one transaction. A lock serializes processes.

    Raises StartupError if a newer version of the gateway has migrated the tables.
    """
    with engine.connect() as connection:
        if _version(connection) == HEAD:
            return
    with _begin(engine, _MIGRATE_LOCK) as connection:
        if _version(connection) == HEAD:  # another process created them meanwhile
            return
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # a large table takes long
        from alembic import command  # imported here: the import takes a second, and is rarely needed
        from alembic.config import Config

        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with _ALEMBIC:
            command.upgrade(config, "head")
        create_defaults(connection)


def _check_replica(engine: Engine) -> None:
    """Raise StartupError if a replica has no tables, or those of a newer version of the gateway."""
    with engine.connect() as connection:
        if _version(connection) is None:
            raise StartupError(
                "usage.read_url has no usage tables: set it to a replica of the database of usage.url, or remove it."
            )


def _version(connection: Connection) -> str | None:
    """Return the version of the tables, or None if there are no tables. Raises StartupError if it is too new."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    stored = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 - a constant
    version = None if stored is None else str(stored)
    if version is not None and version > HEAD:
        raise StartupError(
            f"The usage database has version {version}, and this gateway supports versions up to {HEAD}: start the "
            "version of the gateway that created it, or set another usage.url."
        )
    return version


@contextmanager
def _begin(engine: Engine, lock: int) -> Iterator[Connection]:
    with engine.execution_options(writes=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (lock,))
        yield connection


def _file_id(file: Path | None) -> tuple[int, int] | None:
    """Return device and inode of a file, or None if the file does not exist."""
    if file is not None:
        with suppress(FileNotFoundError):
            stat = file.stat()
            return stat.st_dev, stat.st_ino
    return None


def _set_up_sqlite(connection: Any, wait_s: int) -> None:
    # FULL: a commit is on disk when it returns. Afterwards entries are acknowledged in Redis.
    connection.isolation_level = None
    for pragma in ("synchronous=FULL", f"busy_timeout={wait_s * 1000}", f"cache_size=-{_CACHE_KIB}"):
        connection.execute(f"PRAGMA {pragma}").close()
    deadline = time.monotonic() + wait_s
    while True:
        # The busy timeout does not cover this pragma if two processes set it at once.
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_RETRY_S)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    """Begin with IMMEDIATE to write, so that the lock is waited for here: after a read, SQLite fails at once."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
