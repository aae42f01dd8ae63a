"""The SQL in docs/deployment.md#usage-database works on a real database."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.usage.databases import database, entries, opened, receipt

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text("utf-8")
SECTION = PAGE.partition("\n## Usage database\n")[2].partition("\n## ")[0]
QUERIES = re.findall(r"```sql\n(.*?)```", SECTION, re.DOTALL)


def test_the_queries_of_the_page_work(address: str) -> None:
    """The first query returns the costs by tenant."""
    told = [receipt(1_793_491_200 + place) for place in range(3)]
    other = "SQLite" if "postgresql" in address else "PostgreSQL"
    with opened(address) as engine:
        database(engine).add(entries(told))
        with engine.reading() as connection:
            found = [connection.execute(text(query)).all() for query in QUERIES if f"-- {other}" not in query]
    assert len(found) == len(QUERIES) - 1 >= 3
    ((tenant, requests, cost_usd, *_),) = found[0]
    assert (tenant, requests) == ("acme", 3)
    assert float(cost_usd) == pytest.approx(float(sum(one.cost_usd for one in told)))
    assert str(found[1][0][0]) == "2026-11-01"
