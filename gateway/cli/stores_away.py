"""What commands say where Redis or the archive is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import uvloop
from redis.exceptions import RedisError

from gateway.archive.database import ArchiveError
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Coroutine


def result_of(work: Coroutine[Any, Any, Any]) -> Any:
    """What comes of it; what is away is said in one line, which never holds an address. Raises StartupError."""
    try:
        return uvloop.run(work)
    except RedisError as error:
        raise StartupError(f"Redis failed ({type(error).__name__}). Try again.") from None
    except ArchiveError as error:
        inner = getattr(error, "orig", None) or error
        raise StartupError(
            f"The archive cannot be read or written ({type(inner).__name__}). Is it running? archive.url in "
            "config.yaml or GKT_ARCHIVE_URL says where it is."
        ) from None
