"""Add up and trim once, as a gateway of the previous version without an archive, with that version's code.

`python previous_janitor.py URL PREFIX`
"""

from __future__ import annotations

import asyncio
import sys

from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from gateway.rollups.janitor import Janitor
from gateway.rollups.roller import Roller
from gateway.rollups.rollups import Retention, Rollups

_KEPT = Retention(3_600.0, 86_400.0, 86_400.0)


async def main(url: str, prefix: str) -> None:
    client, keys = RedisClient(url, timeout_s=60, metrics=Metrics()), RedisKeys(prefix)
    roller = Roller(client, client.commands, keys, Rollups(client.commands, keys, _KEPT), "old")
    while await roller.roll():
        pass
    await Janitor(client, client.commands, keys, roller.state, most=200_000, archived=False, retention=_KEPT).tidy()
    await client.close()


asyncio.run(main(*sys.argv[1:]))
