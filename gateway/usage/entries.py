"""The ids of a stream's entries, and their order. Pure."""

from __future__ import annotations

NOTHING = "0-0"
"""Before every entry."""
EVERYTHING = f"{2**64 - 1}-{2**64 - 1}"
"""After every entry."""


def parts(entry: str) -> tuple[int, int]:
    """An id as it is ordered."""
    ms, _, seq = entry.partition("-")
    return int(ms), int(seq or 0)


def after(entry: str) -> str:
    """The id that comes next."""
    ms, seq = parts(entry)
    return f"{ms}-{seq + 1}" if seq < 2**64 - 1 else f"{ms + 1}-0"


def before(entry: str) -> str:
    """The id that comes last before this one."""
    ms, seq = parts(entry)
    if seq:
        return f"{ms}-{seq - 1}"
    return f"{ms - 1}-{2**64 - 1}" if ms else NOTHING


def made_ms(entry: str) -> int:
    """When it was made, by Redis' clock, in Unix milliseconds."""
    return parts(entry)[0]
