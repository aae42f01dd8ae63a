"""Entries of an outbox, the order of their ids, and batches of them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")

NOTHING = "0-0"
"""An id below the id of every entry."""


class OutboxEntry(NamedTuple):
    """An entry of an outbox. `tenant` is the name of a tenant or of a slice, `raw` the receipt as JSON."""

    tenant: str
    id: str
    raw: bytes


def id_parts(entry_id: str) -> tuple[int, int]:
    """Return an entry id as a pair (milliseconds, sequence number). Pairs sort in the order of entries."""
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq or 0)


def added_ms(entry_id: str) -> int:
    """Return when an entry was added, in Unix milliseconds by Redis' clock."""
    return id_parts(entry_id)[0]


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in sequences of `size`; the last one may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
