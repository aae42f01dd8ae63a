"""The archive's tables, for SQL. What a receipt says in full stands beside the columns, as JSON.

Money is whole picodollars (1e-12 USD): sums of it are exact in any database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, Table, Text

from gateway.ledger.savings import savings_of
from gateway.rollups.rollup import pico

if TYPE_CHECKING:
    from gateway.ledger.receipt import EngineShare, Receipt

SCHEMA = 1
"""The version of the tables, one more with each change."""

_NUL = b"\\u0000"

METADATA = MetaData()

VERSION = Table("gkt_archive", METADATA, Column("version", Integer, primary_key=True, autoincrement=False))

RECEIPTS = Table(
    "receipts",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("created", BigInteger, nullable=False),  # Unix seconds
    Column("tenant", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("finish_reason", Text),
    Column("unguided", Text),
    Column("shadow_of", Text),
    Column("budget", Text),
    Column("teacher", Text),
    Column("teacher_input_tokens", BigInteger, nullable=False),
    Column("teacher_cached_tokens", BigInteger, nullable=False),
    Column("teacher_output_tokens", BigInteger, nullable=False),
    Column("teacher_cost_pico", BigInteger, nullable=False),
    Column("student", Text),
    Column("student_input_tokens", BigInteger, nullable=False),
    Column("student_cached_tokens", BigInteger, nullable=False),
    Column("student_output_tokens", BigInteger, nullable=False),
    Column("student_cost_pico", BigInteger, nullable=False),
    Column("failed_cost_pico", BigInteger, nullable=False),
    Column("kept_tokens", BigInteger, nullable=False),
    Column("batch_size", BigInteger),
    Column("cost_pico", BigInteger, nullable=False),
    Column("baseline_model", Text, nullable=False),
    Column("baseline_pico", BigInteger, nullable=False),
    Column("baseline_estimated", Boolean, nullable=False),
    # The savings that count; on rows of earlier versions baseline minus cost. The receipt has the class.
    Column("savings_pico", BigInteger, nullable=False),
    Column("admission_ms", Float),
    Column("batch_wait_ms", Float),
    Column("teacher_ms", Float),
    Column("first_token_ms", Float),
    Column("total_ms", Float, nullable=False),
    Column("entry_ms", BigInteger, nullable=False),  # the entry of the outbox that it came with last
    Column("entry_seq", BigInteger, nullable=False),
    Column("receipt", Text, nullable=False),
    # The abandoned one in whose place it came, and with which entry that did.
    Column("instead", Text),
    Column("instead_ms", BigInteger),
    Column("instead_seq", BigInteger),
    Index("receipts_by_tenant", "tenant", "created", "id"),
    Index("receipts_by_time", "created", "id"),
)

UNREADABLE = Table(
    "unreadable",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("entry_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("entry_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("why", Text, nullable=False),
    Column("receipt", Text, nullable=False),
)
"""Receipts that this version cannot read, or the database does not take: kept as they came."""

COLUMNS = tuple(column.name for column in RECEIPTS.columns)
ENTRY = ("entry_ms", "entry_seq")
INSTEAD = ("instead", "instead_ms", "instead_seq")
CONTENT = tuple(name for name in COLUMNS if name not in {"id", *ENTRY, *INSTEAD})
"""What a true receipt brings in an abandoned one's place."""


def entry_parts(entry: str) -> tuple[int, int]:
    """A stream's entry id as two numbers, which have its order."""
    ms, _, seq = entry.partition("-")
    return int(ms), int(seq or 0)


def entry_id(ms: int, seq: int) -> str:
    """The reverse."""
    return f"{ms}-{seq}"


def row_of(receipt: Receipt, raw: bytes, entry: str) -> dict[str, Any]:
    """The row of a receipt.

    Args:
        raw: its JSON, as it was settled.
        entry: of its tenant's outbox.
    """
    entry_ms, entry_seq = entry_parts(entry)
    failed = [attempt.share for attempt in receipt.attempts if attempt.share is not None]
    cost, timings = pico(receipt.cost_usd), receipt.timings
    # A shadow spares nothing: its request was answered, and paid for, as well.
    baseline = pico(receipt.baseline_usd) if receipt.shadow_of is None else 0
    row: dict[str, Any] = {
        "id": receipt.id,
        "created": receipt.created,
        "tenant": receipt.tenant,
        "key": receipt.key,
        "route": receipt.route,
        "mode": receipt.mode,
        "status": receipt.status,
        "stream": receipt.stream,
        "finish_reason": receipt.finish_reason,
        "unguided": receipt.unguided,
        "shadow_of": receipt.shadow_of,
        "budget": receipt.budget,
        **_share("teacher", receipt.teacher),
        **_with_probe(_share("student", receipt.student), receipt.probe),
        "failed_cost_pico": sum(pico(share.cost_usd) for share in failed),
        "kept_tokens": receipt.guidance.kept_tokens if receipt.guidance is not None else 0,
        "batch_size": receipt.batch.size if receipt.batch is not None else None,
        "cost_pico": cost,
        "baseline_model": receipt.baseline_model,
        "baseline_pico": baseline,
        "baseline_estimated": receipt.baseline_estimated,
        "savings_pico": pico(savings_of(receipt).usd),
        "admission_ms": timings.admission_ms,
        "batch_wait_ms": timings.batch_wait_ms,
        "teacher_ms": timings.teacher_ms,
        "first_token_ms": timings.first_token_ms,
        "total_ms": timings.total_ms,
        "entry_ms": entry_ms,
        "entry_seq": entry_seq,
        "receipt": raw.decode(),
        **dict.fromkeys(INSTEAD),
    }
    if _NUL in raw:
        # PostgreSQL has no place for it in a text. The JSON writes it in another way, and stays as it is.
        return {name: value.replace("\0", "\ufffd") if isinstance(value, str) else value for name, value in row.items()}
    return row


def _with_probe(row: dict[str, Any], probe: EngineShare | None) -> dict[str, Any]:
    """The student's columns with what it was asked before the teacher."""
    asked = _share("student", probe)
    return (
        row
        if probe is None
        else {name: value + asked[name] if name != "student" else value for name, value in row.items()}
    )


def _share(role: str, share: EngineShare | None) -> dict[str, Any]:
    """As rollups count it: what another request paid for is not this one's."""
    counted = share if share is not None and not share.shared else None
    return {
        role: share.model if share is not None else None,
        f"{role}_input_tokens": counted.input_tokens - counted.cached_input_tokens if counted else 0,
        f"{role}_cached_tokens": counted.cached_input_tokens if counted else 0,
        f"{role}_output_tokens": counted.output_tokens if counted else 0,
        f"{role}_cost_pico": pico(share.cost_usd) if share is not None else 0,
    }
