"""The limit on open files and connections of this process."""

from __future__ import annotations

import resource


def raise_limit(target: int) -> int:
    """Raise the soft limit to `target`, at most to the hard limit. Return the new limit.

    The usual soft limit of 1024 exists for programs that use select(). The gateway does not use it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= target:
        return target
    limit = target if hard == resource.RLIM_INFINITY else min(target, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError):
        return soft
    return limit
