"""Rolling sums, as exchange.lua stores them (`ring` there). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def ring_sum(held: Mapping[bytes, bytes], name: str, *, now_us: int, length_us: int, last: int) -> int:
    """Return the sum of the slots of `name` that have not expired.

    Args:
        held: the hash, with a field `<letter><slot>` for each name and slot.
        length_us: the length of a slot.
        last: the number of slots after its own in which an amount still counts.
    """
    letter, oldest = name[0].encode(), now_us // length_us - last
    return sum(
        int(amount)
        for field, amount in held.items()
        if field[:1] == letter and field[1:].isdigit() and int(field[1:]) >= oldest
    )
