"""One PostgreSQL for the run, and a usage database in it or in SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.archive_address import address_of
from tests.archive.archives import new_database
from tests.postgres import running_postgres
from tests.usage.databases import UsageBook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def book(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UsageBook]:
    """A usage database."""
    url = "sqlite" if request.param == "sqlite" else new_database(request.getfixturevalue("postgres"))
    book = UsageBook(address_of(url, tmp_path))
    yield book
    book.close()


@pytest.fixture
def sqlite_book(tmp_path: Path) -> Iterator[UsageBook]:
    book = UsageBook(address_of("sqlite", tmp_path))
    yield book
    book.close()
