"""How many files and connections this process may have open at once."""

from __future__ import annotations

import resource


def allow(wanted: int) -> int:
    """Raise the soft limit towards `wanted`, as far as the hard one lets; returns what it is then.

    A soft limit of 1024 is usual: it is so low for programs that use select(), which no part of the gateway does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
        return soft
    return most
