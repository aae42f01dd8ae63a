"""Find stop strings, which end a text. Pure; imports nothing from the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def first_stop(
    text: str, stop: Sequence[str], *, ends_after: int = 0, begins_before: int | None = None
) -> tuple[int, int] | None:
    """Find the stop string that is completed first; of those completed together, the longest.

    Args:
        ends_after: only occurrences that end after this character count.
        begins_before: only occurrences that begin before this character count; None: anywhere.

    Returns:
        Start and end in characters, or None.
    """
    found: list[tuple[int, int]] = []
    for one in filter(None, stop):
        last = len(text) if begins_before is None else begins_before - 1 + len(one)
        start = text.find(one, max(0, ends_after - len(one) + 1), max(0, last))
        if start >= 0:
            found.append((start + len(one), start))
    if not found:
        return None
    end, start = min(found)
    return start, end
