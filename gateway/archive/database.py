"""The archive's database: SQLite or PostgreSQL, by SQLAlchemy. All of it blocks: for threads alone.

A receipt stands in it once, by its id, however often it is brought. An abandoned one never takes a true one's place; a
true one takes an abandoned one's.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import and_, case, create_engine, delete, event, func, insert, inspect, or_, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as NoConnection

from gateway.archive.tables import (
    CONTENT,
    ENTRY,
    INSTEAD,
    METADATA,
    RECEIPTS,
    SCHEMA,
    UNREADABLE,
    VERSION,
    entry_id,
    entry_parts,
    row_of,
)
from gateway.archive_address import shown
from gateway.errors import StartupError
from gateway.ledger.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy import ColumnElement, Connection, Engine

ArchiveError = (SQLAlchemyError, OSError)
"""What a database that is away, full or broken raises."""

_BUSY_S = 5
_BUSY_LOOK_S = 0.02
_CONNECT_S = 5
_STATEMENT_MS = 30_000
_DELETED_AT_ONCE = 1_000
_PREPARE_LOCK = 0x676B745F64620001  # the key of PostgreSQL's advisory lock
# No receipt's fault: it is away, or read only, or its tables are not as they were.
_DOWN = (OperationalError, InterfaceError, NoConnection, ProgrammingError, InternalError)


class NewerArchive(StartupError):
    """The tables were made by a newer version of the gateway."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a tenant's outbox: the receipt in it is JSON."""

    tenant: str
    id: str
    raw: bytes


class ArchiveDatabase:
    """Args:
    address: as SQLAlchemy takes it.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._engine: Engine | None = None
        self._opening = Lock()
        self._file = Path(address.removeprefix("sqlite:///")) if address.startswith("sqlite:") else None
        self._file_id: tuple[int, int] | None = None
        self._unsure = False  # its tables may be gone

    def open(self) -> None:
        """Connect, and make the tables where there are none. Nothing happens where that was done.

        Raises:
            ArchiveError: it is not there.
            NewerArchive: its tables are a newer version's.
            StartupError: what connects to such a database is not installed.
        """
        with self._opening:
            if self._engine is not None:
                return
            engine = self._connected()
            try:
                _prepare(engine)
            except BaseException:
                engine.dispose()
                raise
            self._file_id = _file_id(self._file)
            self._engine = engine

    def is_there(self) -> bool:
        """Whether somebody has opened it before; nothing is made. Raises as `open` does."""
        if self._engine is not None:
            return True
        if self._file is not None and not self._file.exists():
            return False
        engine = self._connected()
        try:
            return inspect(engine).has_table(VERSION.name)
        finally:
            engine.dispose()

    def close(self) -> None:
        """Nothing can be asked from here on, until it is opened again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    def write(self, entries: Sequence[Entry]) -> int:
        """Keep these receipts, all of them or none: how many cannot be read, which stand aside. Raises ArchiveError."""
        try:
            return self._keep(entries)
        except SQLAlchemyError:
            self._unsure = True
            raise

    def _keep(self, entries: Sequence[Entry]) -> int:
        rows: list[dict[str, Any]] = []
        aside: list[tuple[Entry, str]] = []
        for entry in entries:
            try:
                rows.append(row_of(Receipt.from_json(entry.raw), entry.raw, entry.id))
            except (msgspec.MsgspecError, ArithmeticError, UnicodeError) as error:
                aside.append((entry, type(error).__name__))
        try:
            with self._writing() as connection:
                _write(connection, rows)
                _put_aside(connection, aside)
        except _DOWN:
            raise
        except (DBAPIError, OverflowError):
            # One that the database does not take must not keep the others out.
            return len(aside) + self._write_one_by_one(entries)
        return len(aside)

    def find(self, tenant: str, receipt_id: str) -> bytes | None:
        """A tenant's receipt as JSON. Raises ArchiveError."""
        wanted = select(RECEIPTS.c.receipt).where(RECEIPTS.c.id == receipt_id, RECEIPTS.c.tenant == tenant)
        with self._ready().connect() as connection:
            found: str | None = connection.execute(wanted).scalar()
        return found.encode() if found is not None else None

    def delete_before(self, created: float) -> int:
        """Delete some of the receipts of requests that came before: how many. Raises ArchiveError."""
        old = select(RECEIPTS.c.id).where(RECEIPTS.c.created < int(created)).order_by(RECEIPTS.c.created)
        with self._writing() as connection:
            ids = connection.execute(old.limit(_DELETED_AT_ONCE)).scalars().all()
            if ids:
                connection.execute(delete(RECEIPTS).where(RECEIPTS.c.id.in_(ids)))
        return len(ids)

    def count(self, where: Where) -> int:
        """How many receipts there are. Raises ArchiveError."""
        with self._ready().connect() as connection:
            return int(
                connection.execute(select(func.count()).select_from(RECEIPTS).where(*where.terms())).scalar_one()
            )

    def span(self) -> tuple[int, int] | None:
        """When the first and the last receipt's request came, in Unix seconds. Raises ArchiveError."""
        with self._ready().connect() as connection:
            first, last = connection.execute(select(func.min(RECEIPTS.c.created), func.max(RECEIPTS.c.created))).one()
        return None if first is None else (int(first), int(last))

    def unreadable(self) -> int:
        """How many receipts stand aside. Raises ArchiveError."""
        with self._ready().connect() as connection:
            return int(connection.execute(select(func.count()).select_from(UNREADABLE)).scalar_one())

    def aside(self) -> list[Entry]:
        """Those that stand aside, as they came. Raises ArchiveError."""
        wanted = select(UNREADABLE).order_by(UNREADABLE.c.tenant, UNREADABLE.c.entry_ms, UNREADABLE.c.entry_seq)
        with self._ready().connect() as connection:
            found = connection.execute(wanted).all()
        return [Entry(row.tenant, entry_id(row.entry_ms, row.entry_seq), row.receipt.encode()) for row in found]

    def rows(self, where: Where, size: int) -> Iterator[list[Any]]:
        """All rows, by time, in lists of `size` at most. A transaction lasts for one list. Raises ArchiveError."""
        after: tuple[int, str] | None = None
        place = tuple_(RECEIPTS.c.created, RECEIPTS.c.id)
        while True:
            wanted = select(RECEIPTS).where(*where.terms()).order_by(RECEIPTS.c.created, RECEIPTS.c.id).limit(size)
            if after is not None:
                wanted = wanted.where(place > tuple_(*after))
            with self._ready().connect() as connection:
                found = list(connection.execute(wanted).all())
            if found:
                after = (found[-1].created, found[-1].id)
                yield found
            if len(found) < size:
                return

    def _write_one_by_one(self, entries: Sequence[Entry]) -> int:
        aside = 0
        for entry in entries:
            try:
                row = row_of(Receipt.from_json(entry.raw), entry.raw, entry.id)
                with self._writing() as connection:
                    _write(connection, [row])
            except _DOWN:
                raise
            except (DBAPIError, OverflowError, ArithmeticError, msgspec.MsgspecError, UnicodeError) as error:
                with self._writing() as connection:
                    _put_aside(connection, [(entry, type(error).__name__)])
                aside += isinstance(error, DBAPIError | OverflowError)
        return aside

    def _connected(self) -> Engine:
        if self._file is not None:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file.touch(mode=0o600)
            engine = create_engine(self._address, connect_args={"timeout": _BUSY_S}, pool_size=4)
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin)
            return engine
        options = {
            "connect_timeout": _CONNECT_S,
            "application_name": "gkt-gateway",
            "options": f"-c statement_timeout={_STATEMENT_MS} -c lock_timeout={_STATEMENT_MS}",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        }
        try:
            return create_engine(
                self._address, connect_args=options, pool_size=4, pool_timeout=_CONNECT_S, pool_pre_ping=True
            )
        except (ImportError, NoSuchModuleError):
            raise StartupError(
                "An archive in PostgreSQL needs the extra `postgres`: pip install '.[postgres]', or write "
                "'url: sqlite' under archive in config.yaml."
            ) from None
        except (SQLAlchemyError, ValueError):
            # It would quote what it cannot read.
            raise StartupError("archive.url cannot be read: correct it in config.yaml or GKT_ARCHIVE_URL.") from None

    def _writing(self) -> AbstractContextManager[Connection]:
        if self._engine is not None and self._file_id != _file_id(self._file):
            self.close()  # it was removed, or another one put in its place: what is written to it is nowhere
        engine = self._ready()
        if self._unsure:
            _prepare(engine)
            self._unsure = False
        return engine.execution_options(writes=True).begin()

    def _ready(self) -> Engine:
        engine = self._engine
        if engine is None:
            self.open()
            engine = self._engine
            if engine is None:
                raise OSError("the archive was closed")
        return engine

    def __str__(self) -> str:
        return shown(self._address)


@dataclass(frozen=True, slots=True)
class Where:
    """Which receipts: of requests that came in [since, until), in Unix seconds, and of one tenant."""

    since: float | None = None
    until: float | None = None
    tenant: str | None = None

    def terms(self) -> list[ColumnElement[bool]]:
        terms: list[ColumnElement[bool]] = []
        if self.since is not None:
            terms.append(RECEIPTS.c.created >= self.since)
        if self.until is not None:
            terms.append(RECEIPTS.c.created < self.until)
        if self.tenant is not None:
            terms.append(RECEIPTS.c.tenant == self.tenant)
        return terms


def _file_id(file: Path | None) -> tuple[int, int] | None:
    """Which file it is, whatever it is called; None where there is none."""
    try:
        found = file.stat() if file is not None else None
    except FileNotFoundError:
        found = None
    return None if found is None else (found.st_dev, found.st_ino)


def _set_up_sqlite(connection: Any, _: object) -> None:
    # A commit is on the disk when it returns: only then Redis is told that the receipts are archived.
    connection.isolation_level = None
    for pragma in ("synchronous=FULL", f"busy_timeout={_BUSY_S * 1000}"):
        connection.execute(f"PRAGMA {pragma}").close()
    give_up = time.monotonic() + _BUSY_S
    while True:
        # For this alone SQLite does not wait by itself, where two processes do it at once.
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(_BUSY_LOOK_S)
        else:
            return


def _begin(connection: Connection) -> None:
    """What is to write waits for its turn here: one that has read first could not wait any more."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare(engine: Engine) -> None:
    with engine.execution_options(writes=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            # CREATE TABLE IF NOT EXISTS fails where another process creates the table at the same time.
            connection.execute(select(func.pg_advisory_xact_lock(_PREPARE_LOCK)))
        METADATA.create_all(connection, tables=[VERSION])
        version = connection.execute(select(func.max(VERSION.c.version))).scalar()
        if version is not None and version > SCHEMA:
            raise NewerArchive(
                f"The archive's tables have version {version}, and this gateway knows {SCHEMA}: start the "
                "newer version of the gateway that made them, or name another archive.url."
            )
        METADATA.create_all(connection)
        if version is None:
            connection.execute(insert(VERSION).values(version=SCHEMA))


def _write(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Later entries after earlier ones, where several are of one receipt."""
    rest = sorted(rows, key=lambda row: (row["id"], row["entry_ms"], row["entry_seq"]))
    statement = _upsert(connection.dialect.name)
    while rest:
        first: dict[str, dict[str, Any]] = {}
        more = [row for row in rest if first.setdefault(row["id"], row) is not row]
        connection.execute(statement, list(first.values()))
        rest = more


@cache
def _upsert(dialect: str) -> Any:
    """A row, unless there is one of that id: then what both say together.

    - A true receipt takes the place of an abandoned one, which stands beside it from then on.
    - An abandoned one that comes late stands beside the true one at once.
    - What is brought again, after Redis had forgotten it, belongs to its newer entry.
    """
    statement = postgresql.insert(RECEIPTS) if dialect == "postgresql" else sqlite.insert(RECEIPTS)
    held, new = RECEIPTS.c, statement.excluded
    later = tuple_(new.entry_ms, new.entry_seq) > tuple_(held.entry_ms, held.entry_seq)
    replaces = and_(held.status == "abandoned", new.status != "abandoned", later)
    comes_late = and_(held.status != "abandoned", new.status == "abandoned", ~later, held.instead.is_(None))
    values: dict[str, Any] = {name: case((replaces, new[name]), else_=held[name]) for name in CONTENT}
    values |= {name: case((later, new[name]), else_=held[name]) for name in ENTRY}
    values |= {
        name: case((replaces, held[source]), (comes_late, new[source]), else_=held[name])
        for name, source in zip(INSTEAD, ("receipt", *ENTRY), strict=True)
    }
    return statement.on_conflict_do_update(index_elements=["id"], set_=values, where=or_(later, comes_late))


def _put_aside(connection: Connection, aside: Sequence[tuple[Entry, str]]) -> None:
    for entry, why in aside:
        ms, seq = entry_parts(entry.id)
        text = entry.raw.decode(errors="replace").replace("\0", "\ufffd")
        build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        values = {"tenant": entry.tenant, "entry_ms": ms, "entry_seq": seq, "why": why, "receipt": text}
        connection.execute(build(UNREADABLE).values(values).on_conflict_do_nothing())
