"""Run a gateway inside the calling process, for the demo and for `gkt-gateway init`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.errors import StartupError
from gateway.server.listeners import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import aiohttp

    from gateway.config.models import ModelSettings
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet
    from gateway.server import GatewayAddresses

_PROBE_LIMIT_S = 120.0
_PROBE_EVERY_S = 0.1


@asynccontextmanager
async def gateway_in_process(settings: Settings, book: PolicySet, redis_url: str) -> AsyncIterator[GatewayAddresses]:
    """Serve until the context ends. Raises StartupError if the gateway does not start."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    listening: asyncio.Future[GatewayAddresses] = loop.create_future()
    serving = loop.create_task(
        serve(settings, book, redis_url, stop=stop, announce=listening.set_result), name="gateway"
    )
    try:
        first: set[asyncio.Future[Any]] = {serving, listening}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            await serving
        yield listening.result()
    finally:
        stop.set()
        await serving


async def wait_until_probed(session: aiohttp.ClientSession, admin: str, models: Sequence[ModelSettings]) -> None:
    """Wait until all engines of the `admin` listener's gateway are up and probed. Raises StartupError."""
    deadline = asyncio.get_running_loop().time() + _PROBE_LIMIT_S
    # The continuation of other engines is not probed.
    probed = {model.name for model in models if model.continuation != "none"}
    while True:
        async with session.get(f"{admin}/readyz") as reply:
            engines = (await reply.json())["engines"]
        if all(
            engine["up"] and (engine["continuation"] or engine["warnings"] or name not in probed)
            for name, engine in engines.items()
        ):
            return
        if asyncio.get_running_loop().time() > deadline:
            details = "; ".join(f"{engine['detail']}" for engine in engines.values())
            raise StartupError(f"The engines did not answer within {_PROBE_LIMIT_S:g} s: {details}")
        await asyncio.sleep(_PROBE_EVERY_S)
