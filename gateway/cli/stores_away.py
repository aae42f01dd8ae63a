"""Errors of commands when Redis or the usage database is unavailable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import uvloop
from redis.exceptions import RedisError

from gateway.errors import StartupError
from gateway.usage.engine import UsageDatabaseError

if TYPE_CHECKING:
    from collections.abc import Coroutine


def result_of(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine and return its result.

    Raises:
        StartupError: Redis or the database is unavailable. The message never contains a URL.
    """
    try:
        return uvloop.run(work)
    except RedisError as error:
        raise StartupError(f"Redis failed ({type(error).__name__}). Try again.") from None
    except UsageDatabaseError as error:
        cause = getattr(error, "orig", None) or error
        raise StartupError(
            f"The usage database cannot be read or written ({type(cause).__name__}). Check that it is running and "
            "that usage.url in config.yaml or GKT_USAGE_URL is correct."
        ) from None
