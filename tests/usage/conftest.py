"""Fixtures: a PostgreSQL for the run, and an empty usage database in it or in SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.postgres import new_database, running_postgres
from tests.usage.books import UsageBook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address for SQLAlchemy."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/usage.db"
    url = new_database(request.getfixturevalue("postgres"))
    return url.replace("postgresql:", "postgresql+psycopg:", 1)


@pytest.fixture
def book(address: str) -> Iterator[UsageBook]:
    """A usage database with its reader."""
    book = UsageBook(address)
    yield book
    book.close()


@pytest.fixture
def sqlite_book(tmp_path: Path) -> Iterator[UsageBook]:
    book = UsageBook(f"sqlite:///{tmp_path}/usage.db")
    yield book
    book.close()
