"""The counts that `gkt-gateway backup` and `gkt-gateway restore` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.backup.records import BackupCounts


def format_counts(counts: BackupCounts, *, redis: bool = True, usage: bool = True) -> str:
    """Return a line for each count.

    Args:
        counts: the counts of a backup or of a deployment.
        redis: whether to include the counts of Redis.
        usage: whether to include the counts of the usage database.
    """
    by_name: dict[str, int | str] = {}
    if redis:
        by_name = {
            "API keys": counts.keys,
            "budgets": counts.budgets,
            "receipts waiting in Redis": counts.waiting,
            "other Redis keys": counts.sums,
        }
    if usage:
        by_name["receipts"] = "not included" if counts.receipts is None else counts.receipts
        if counts.rows:
            by_name["other rows"] = counts.rows
    return "\n".join(f"  {name:<28} {count}" for name, count in by_name.items())
