"""The entries of an outbox, their ids and their order. Pure."""

from __future__ import annotations

from typing import NamedTuple

NOTHING = "0-0"
"""Before every entry."""


class OutboxEntry(NamedTuple):
    """One entry of a tenant's outbox; `raw` is the receipt as JSON."""

    tenant: str
    id: str
    raw: bytes


def parts(entry: str) -> tuple[int, int]:
    """Return an id as a pair that sorts as entries do."""
    ms, _, seq = entry.partition("-")
    return int(ms), int(seq or 0)


def before(entry: str) -> str:
    """Return the largest id below this one."""
    ms, seq = parts(entry)
    if seq:
        return f"{ms}-{seq - 1}"
    return f"{ms - 1}-{2**64 - 1}" if ms else NOTHING


def added_ms(entry: str) -> int:
    """Return when an entry was added, by Redis' clock, in Unix milliseconds."""
    return parts(entry)[0]
