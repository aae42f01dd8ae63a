"""Read budgets for the admin API, as far as the nodes of a Redis Cluster answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.api.keys import BUDGETS, KEY_FOLLOWER, REDIS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from gateway.accounting.budgets import Account, Balance

log = structlog.get_logger()


async def readable_balances(app: web.Application, accounts: Sequence[Account]) -> list[Balance | None]:
    """Return the state of each budget. In a cluster, None takes the place of budgets whose node failed.

    Raises RedisError and OSError where Redis is no cluster, or no node answers.
    """
    redis, budgets = app[REDIS], app[BUDGETS]
    if not redis.is_cluster or not redis.up:
        return [*await budgets.read(accounts)]
    found: list[Balance | None] = [None] * len(accounts)
    keys = [[budgets.key_of(part) for part in account.parts] for account in accounts]
    up = [index for index, of_account in enumerate(keys) if all(map(redis.is_up, of_account))]
    try:
        read: Sequence[Balance | BaseException] = await budgets.read([accounts[index] for index in up])
    except (RedisError, OSError):
        # A node that was up before failed. Read the budgets one by one.
        each = await asyncio.gather(*(budgets.read([accounts[index]]) for index in up), return_exceptions=True)
        read = [one if isinstance(one, BaseException) else one[0] for one in each]
    for index, balance in zip(up, read, strict=True):
        if not isinstance(balance, BaseException):
            found[index] = balance
        elif not isinstance(balance, RedisError | OSError):
            raise balance from None
    return found


async def read_key_changes(app: web.Application) -> bool:
    """Read the last changes of API keys. Return False where their node of a cluster failed: known keys are listed.

    Raises RedisError and OSError where Redis is no cluster, or no node answers.
    """
    try:
        await app[KEY_FOLLOWER].catch_up()
    except (RedisError, OSError) as error:
        if not app[REDIS].is_cluster or not app[REDIS].up:
            raise
        log.warning("keys_not_read", error=type(error).__name__)
        return False
    return True
