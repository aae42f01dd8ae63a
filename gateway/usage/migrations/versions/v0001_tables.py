"""Create the tables."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Text, text

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "usage_receipts",
        Column("day", Integer, primary_key=True, autoincrement=False),
        Column("id", Text, primary_key=True),
        Column("created", BigInteger, nullable=False),
        Column("tenant", Text, primary_key=True),
        Column("key", Text, nullable=False),
        Column("route", Text, nullable=False),
        Column("mode", Text, nullable=False),
        Column("status", Text, nullable=False),
        Column("teacher", Text, nullable=False),
        Column("student", Text, nullable=False),
        Column("cost_pico", BigInteger, nullable=False),
        Column("baseline_pico", BigInteger, nullable=False),
        Column("savings_pico", BigInteger, nullable=False),
        Column("receipt", LargeBinary, nullable=False),
        sqlite_with_rowid=False,
        postgresql_partition_by="RANGE (day)",
    )
    op.create_index("usage_receipts_by_tenant", "usage_receipts", ["tenant", "created"])
    of_devices = text("mode = 'edge'")
    op.create_index(
        "usage_receipts_of_devices",
        "usage_receipts",
        ["created"],
        sqlite_where=of_devices,
        postgresql_where=of_devices,
    )
    op.create_table(
        "usage_sums",
        Column("seconds", Integer, primary_key=True, autoincrement=False),
        Column("start", BigInteger, primary_key=True, autoincrement=False),
        Column("tenant", Text, primary_key=True),
        Column("key", Text, primary_key=True),
        Column("route", Text, primary_key=True),
        Column("mode", Text, primary_key=True),
        Column("teacher", Text, primary_key=True),
        Column("student", Text, primary_key=True),
        Column("row", LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_comparisons",
        Column("day", Integer, primary_key=True, autoincrement=False),
        Column("id", Text, primary_key=True),
        Column("created", BigInteger, nullable=False),
        Column("tenant", Text, nullable=False),
        Column("compare", Text, nullable=False),
        Column("length", Text, nullable=False),
        Column("route", Text, nullable=False),
        Column("guided", Integer, nullable=False),
        Column("student", Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_uptime",
        Column("day", Integer, primary_key=True, autoincrement=False),
        Column("engine", Text, primary_key=True),
        Column("hourly_pico", BigInteger, nullable=False),
        Column("minutes_up", Integer, nullable=False),
        Column("minutes_seen", Integer, nullable=False),
        Column("last_up", BigInteger, nullable=False),
        Column("last_seen", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_unreadable",
        Column("tenant", Text, primary_key=True),
        Column("entry", Text, primary_key=True),
        Column("error", Text, nullable=False),
        Column("receipt", LargeBinary, nullable=False),
    )
    op.create_table(
        "usage_outcomes",
        Column("day", Integer, primary_key=True, autoincrement=False),
        Column("id", Text, primary_key=True),
        Column("created", BigInteger, nullable=False),
        Column("tenant", Text, primary_key=True),
        Column("route", Text, nullable=False),
        Column("variant", Text, nullable=False),
        Column("unit", Text, nullable=False),
        Column("source", Text, primary_key=True),
        Column("score", Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("usage_outcomes_by_route", "usage_outcomes", ["tenant", "route", "day"])
    op.create_table(
        "usage_tags",
        Column("day", Integer, primary_key=True, autoincrement=False),
        Column("id", Text, primary_key=True),
        Column("tenant", Text, primary_key=True),
        Column("tag", Text, primary_key=True),
        Column("created", BigInteger, nullable=False),
        Column("key", Text, nullable=False),
        Column("route", Text, nullable=False),
        Column("mode", Text, nullable=False),
        Column("requests", Integer, nullable=False),
        Column("errors", Integer, nullable=False),
        Column("input_tokens", BigInteger, nullable=False),
        Column("output_tokens", BigInteger, nullable=False),
        Column("cost_pico", BigInteger, nullable=False),
        Column("baseline_pico", BigInteger, nullable=False),
        Column("savings_pico", BigInteger, nullable=False),
        sqlite_with_rowid=False,
        postgresql_partition_by="RANGE (day)",
    )
    op.create_index("usage_tags_by_tenant", "usage_tags", ["tenant", "created"])
    op.create_table(
        "usage_labels",
        Column("day", Integer, primary_key=True, autoincrement=False),
        Column("id", Text, primary_key=True),
        Column("tenant", Text, primary_key=True),
        Column("label", Text, primary_key=True),
        Column("value", Text, nullable=False),
        Column("created", BigInteger, nullable=False),
        Column("key", Text, nullable=False),
        Column("route", Text, nullable=False),
        Column("mode", Text, nullable=False),
        Column("requests", Integer, nullable=False),
        Column("errors", Integer, nullable=False),
        Column("input_tokens", BigInteger, nullable=False),
        Column("output_tokens", BigInteger, nullable=False),
        Column("cost_pico", BigInteger, nullable=False),
        Column("baseline_pico", BigInteger, nullable=False),
        Column("savings_pico", BigInteger, nullable=False),
        sqlite_with_rowid=False,
        postgresql_partition_by="RANGE (day)",
    )
    op.create_index("usage_labels_by_label", "usage_labels", ["tenant", "label", "created"])
