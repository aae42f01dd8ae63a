"""The counts that `gkt-gateway backup` and `gkt-gateway restore` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.backup.records import BackupCounts


def lines_of(counts: BackupCounts, *, redis: bool = True, usage: bool = True) -> str:
    """Return a line for each count.

    Args:
        redis, usage: whether those of Redis and of the usage database are among them.
    """
    told: dict[str, int | str] = {}
    if redis:
        told = {
            "callers' keys": counts.keys,
            "budgets": counts.budgets,
            "receipts that wait in Redis": counts.waiting,
            "other keys of Redis": counts.sums,
        }
    if usage:
        told["receipts"] = "left out" if counts.receipts is None else counts.receipts
        if counts.rows:
            told["rows beside receipts"] = counts.rows
    return "\n".join(f"  {name:<28} {many}" for name, many in told.items())
