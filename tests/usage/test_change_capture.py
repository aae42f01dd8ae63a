"""Change data capture of the usage database, as docs/cost.md describes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from tests.postgres import new_database
from tests.usage.databases import NOW, database, entry, opened, receipt

if TYPE_CHECKING:
    from tests.postgres import Postgres

PAGE = Path(__file__).parents[2] / "docs" / "cost.md"
SLOT = """
    SELECT data FROM pg_logical_slot_get_binary_changes(
        'gkt', NULL, NULL, 'proto_version', '1', 'publication_names', 'gkt'
    )
"""


def test_a_logical_slot_has_the_published_columns_of_each_receipt(postgres: Postgres) -> None:
    """The slot has inserts of the partitioned table by its own name, and no packed receipt."""
    url = new_database(postgres)
    (publication,) = re.findall(r"```sql\n(CREATE PUBLICATION gkt .*?;)\n```", PAGE.read_text("utf-8"), re.DOTALL)
    with opened(url.replace("postgresql:", "postgresql+psycopg:", 1)) as engine:
        engine.open()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(publication)
            connection.execute("SELECT pg_create_logical_replication_slot('gkt', 'pgoutput')")
            try:
                one = receipt(NOW)
                database(engine).add([entry(one)])
                changes = b"".join(row[0] for row in connection.execute(SLOT))
            finally:
                connection.execute("SELECT pg_drop_replication_slot('gkt')")
                connection.execute("DROP PUBLICATION gkt")
    assert b"usage_receipts\x00" in changes
    assert changes.count(one.id.encode()) == 1
    for value in (one.tenant, one.route, one.status, str(int(one.cost_usd * 10**12))):
        assert value.encode() in changes
    assert b"savings_pico" in changes
    assert b"\x00receipt\x00" not in changes
