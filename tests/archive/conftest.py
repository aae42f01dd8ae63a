"""One PostgreSQL for the run, and an archive in it or in SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.archive.archives import new_database
from tests.postgres import running_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def archive_url(request: pytest.FixtureRequest) -> str:
    """As config.yaml would say it."""
    return "sqlite" if request.param == "sqlite" else new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"
