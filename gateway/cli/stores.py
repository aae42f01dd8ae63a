"""Redis and the usage database for commands that work without a running gateway."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import uvloop
from redis.exceptions import RedisError

from gateway.cli.lazy import config_option
from gateway.errors import StartupError
from gateway.policy.config_files import ConfigFiles
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from gateway.usage.engine import UsageDatabaseError
from gateway.usage.store import UsageStore, store_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet

ConfigOption: TypeAlias = Annotated[
    Path, config_option(help="The gateway's configuration file, for Redis and the usage database.")
]
_REDIS_S = 60.0  # large reads and writes in one call


class Stores(NamedTuple):
    """Redis, which is reachable, and the usage database, which opens at its first use."""

    client: RedisClient
    keys: RedisKeys
    usage: UsageStore


def settings_of(config: Path) -> Settings:
    """Return the settings; see `configuration_of`."""
    return configuration_of(config)[0]


def configuration_of(config: Path) -> tuple[Settings, PolicySet]:
    """Return settings and policies. Raises ConfigError, and StartupError where the file does not exist."""
    if not config.exists():
        raise StartupError(f"There is no {config}. Name the configuration file with --config.")
    settings, policies, _ = ConfigFiles.open(config)
    return settings, policies


@asynccontextmanager
async def usage_store(settings: Settings, *, replica: bool = False) -> AsyncIterator[UsageStore]:
    """Yield the usage database that config.yaml names, with its replica for reads if asked. Raises StartupError."""
    store = store_of(settings, replica=replica)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def stores(settings: Settings) -> AsyncIterator[Stores]:
    """Yield Redis and the usage database that config.yaml names. Raises StartupError where Redis is unavailable."""
    url = settings.redis.url.get_secret_value()
    if url == "embedded":
        raise StartupError(
            "redis.url is embedded, and only the gateway itself can reach that Redis. Start a Redis and set redis.url."
        )
    async with AsyncExitStack() as stack:
        client = RedisClient(url, timeout_s=max(_REDIS_S, settings.redis.timeout_s), metrics=Metrics())
        stack.push_async_callback(client.close)
        await client.require(embedded=False)
        store = await stack.enter_async_context(usage_store(settings))
        yield Stores(client, RedisKeys(settings.redis.prefix), store)


def result_of(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine and return its result.

    Raises StartupError if Redis or the database is unavailable. The message never contains a URL.
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
