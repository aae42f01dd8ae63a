"""What `gkt-gateway backup` and `gkt-gateway restore` share: Redis and the archive, and what they print."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from gateway.archive.building import archive_of
from gateway.errors import StartupError
from gateway.metrics import Metrics
from gateway.policy.files import PolicyFiles
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.archive.archive import Archive
    from gateway.backup.records import Counts
    from gateway.config import Settings

ConfigOption: TypeAlias = Annotated[
    Path, typer.Option("--config", "-c", help="The gateway's configuration file, for Redis and the archive.")
]
CONFIG = Path("config.yaml")
# Much is read, and written, at once.
_REDIS_S = 60.0


@dataclass(frozen=True, slots=True)
class Stores:
    """Attributes:
    archive: None where there is none, or it is to be left out.
    """

    client: RedisClient
    keys: RedisKeys
    archive: Archive | None


def settings_of(config: Path) -> Settings:
    """Raises ConfigError, and StartupError where there is no such file."""
    if not config.exists():
        raise StartupError(f"There is no {config}. Name it with --config.")
    settings, _, _ = PolicyFiles.open(config)
    return settings


@asynccontextmanager
async def stores(settings: Settings, *, archive: bool) -> AsyncIterator[Stores]:
    """Redis, which is there, and the archive that config.yaml names, if it is wanted. Raises StartupError.

    Whoever uses the archive opens it, which makes one where there is none.
    """
    url = settings.redis.url.get_secret_value()
    if url == "embedded":
        raise StartupError(
            "redis.url is embedded: that Redis is the gateway's alone, and gone with it. Name one that this command "
            "can reach as well."
        )
    async with AsyncExitStack() as stack:
        client = RedisClient(url, timeout_s=max(_REDIS_S, settings.redis.timeout_s), metrics=Metrics())
        stack.push_async_callback(client.close)
        await client.require(embedded=False)
        found = archive_of(settings) if archive else None
        if found is not None:
            stack.push_async_callback(found.close)
        yield Stores(client, RedisKeys(settings.redis.prefix), found)


def lines_of(counts: Counts, *, redis: bool = True, archive: bool = True) -> str:
    """What there is, for people: a line each.

    Args:
        redis, archive: whether what is in it is told.
    """
    told: dict[str, int | str] = {}
    if redis:
        told = {
            "callers' keys": counts.keys,
            "budgets": counts.budgets,
            "receipts that wait in Redis": counts.waiting,
            "keys of Redis with sums": counts.sums,
        }
    if archive:
        told["receipts of the archive"] = "left out" if counts.receipts is None else counts.receipts
    return "\n".join(f"  {name:<28} {many}" for name, many in told.items())


def moment(unix_s: int) -> str:
    """A time as ISO 8601, in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
