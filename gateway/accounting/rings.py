"""Counts that leave after a time, as exchange.lua keeps them (`ring` there). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def counted(held: Mapping[bytes, bytes], name: str, *, now_us: int, length_us: int, last: int) -> int:
    """What of a name still counts: the sum of its slots, without those that have left.

    Args:
        held: the hash, of `<letter><slot>` for each name and slot.
        length_us: how long a slot is.
        last: how many slots a count stays beyond its own.
    """
    letter, oldest = name[0].encode(), now_us // length_us - last
    return sum(
        int(amount)
        for field, amount in held.items()
        if field[:1] == letter and field[1:].isdigit() and int(field[1:]) >= oldest
    )
