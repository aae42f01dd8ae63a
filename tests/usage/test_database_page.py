"""docs/deployment.md#usage-database against the database."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.usage.engine import VERSION_TABLE
from gateway.usage.tables import METADATA, RECEIPTS
from tests.usage.databases import database, entries, opened, receipt

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text("utf-8")
SECTION = PAGE.partition("\n## Usage database\n")[2].partition("\n## ")[0]
QUERIES = re.findall(r"```sql\n(.*?)```", SECTION, re.DOTALL)
NOVEMBER = 1_793_491_200


def _first_cells() -> Iterable[str]:
    return (
        name for row in re.findall(r"^\| (`[^|]+) \|", SECTION, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    )


def test_every_table_and_every_column_of_receipts_is_described() -> None:
    assert sorted(_first_cells()) == sorted([*METADATA.tables, VERSION_TABLE, *(one.name for one in RECEIPTS.columns)])


def test_the_queries_of_the_page_run_and_the_first_returns_the_cost(address: str) -> None:
    receipts = [receipt(NOVEMBER + place) for place in range(3)]
    other = "SQLite" if address.startswith("postgresql") else "PostgreSQL"
    queries = [query for query in QUERIES if f"-- {other}" not in query]
    assert len(queries) == len(QUERIES) - 1 >= 4
    with opened(address) as engine:
        database(engine, now=NOVEMBER + 60).add(entries([*receipts, receipt(NOVEMBER - 1)]))
        with engine.reading() as connection:
            found = [connection.exec_driver_sql(query).all() for query in queries]
    ((tenant, requests, cost_usd, *_),) = found[0]
    assert (tenant, requests) == ("acme", 3)
    assert float(cost_usd) == pytest.approx(float(sum(one.cost_usd for one in receipts)))
    assert [str(row[0]) for row in found[1]] == ["2026-10-31", "2026-11-01"]
