"""Register the key ids of tokens that have a budget, so that operators can list the budgets.

No file has these key ids: they begin with the id of a rule, and callers bring the rest. A process registers a key id
in the background when its budget admits or refuses a request. Redis keeps it until the end of the budget's present
period, or of its raise, and at most `MAX_LISTED` for each tenant.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from gateway.accounting.budgets import period_end
from gateway.accounting.scopes import key_of
from gateway.policy.identities import is_token_key
from gateway.redis.background import run_on_work
from gateway.redis.script import RedisScript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gateway.accounting.scopes import BudgetTerms, Scope
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys

MAX_LISTED = 5_000
_AGAIN_S = 600
"""A key id in use is registered again after this time, for a Redis that lost it and for periods without an end."""
_MAX_KNOWN = 50_000
_SENT_AT_ONCE = 500
_LINGER_S, _RETRY_S = 0.2, 5.0


class TokenBudgets:
    """The registered key ids of tokens. `clock` returns Unix seconds."""

    def __init__(self, redis: RedisClient, keys: RedisKeys, clock: Callable[[], float] = time.time) -> None:
        self._redis, self._keys, self._clock = redis, keys, clock
        self._script = RedisScript(redis.commands, "gateway.accounting", "token_budgets.lua")
        self._due: dict[tuple[str, str], float] = {}  # the next registration of a key id, by tenant and key id
        self._unsent: dict[tuple[str, str], int] = {}  # with the end of the period
        self._work = asyncio.Event()

    def record(self, tenant: str, scopes: Iterable[Scope]) -> None:
        """Record the use of the budget of a token. Other budgets are ignored. Does not wait."""
        for scope in scopes:
            if scope.budget is not None and (key_id := key_of(scope.name)) is not None and is_token_key(key_id):
                self._record(tenant, key_id, scope.budget)

    def _record(self, tenant: str, key_id: str, terms: BudgetTerms) -> None:
        name, now = (tenant, key_id), self._clock()
        if now < self._due.get(name, 0.0):
            return
        if len(self._due) >= _MAX_KNOWN:
            self._due.clear()
        ends_s = period_end(terms.unit, terms.count, int(now)) if terms.aligned else int(now) + terms.seconds
        self._due[name] = min(now + _AGAIN_S, ends_s)
        if len(self._unsent) < _MAX_KNOWN:
            self._unsent[name] = ends_s
            self._work.set()

    async def run(self) -> None:
        """Register recorded key ids until canceled."""
        await run_on_work(
            self._redis,
            self._work,
            self.register,
            linger_s=_LINGER_S,
            retry_s=_RETRY_S,
            failure="token_budgets_not_registered",
        )

    async def register(self) -> None:
        """Register the recorded key ids. Those that fail are kept for the next call. Raises RedisError and OSError."""
        names, failure = list(self._unsent), None
        for batch in (names[at : at + _SENT_AT_ONCE] for at in range(0, len(names), _SENT_AT_ONCE)):
            sent: dict[str, dict[str, int]] = {}
            for tenant, key_id in batch:
                sent.setdefault(tenant, {})[key_id] = self._unsent[tenant, key_id]
            calls = [([self._keys.token_budgets(one)], _arguments(found)) for one, found in sent.items()]
            for (tenant, found), reply in zip(sent.items(), await self._script.run_each(calls), strict=True):
                if isinstance(reply, Exception):  # the nodes of a cluster fail separately
                    failure = reply
                    continue
                for key_id, ends_s in found.items():
                    if self._unsent[tenant, key_id] == ends_s:
                        del self._unsent[tenant, key_id]
        if failure is not None:
            raise failure

    async def keep(self, tenant: str, key_id: str, until_s: int) -> None:
        """Register a key id until the end of its raise. Raises RedisError and OSError."""
        await self._script.run([([self._keys.token_budgets(tenant)], _arguments({key_id: until_s}))])

    async def listed(self, tenants: Sequence[str]) -> dict[str, list[str]]:
        """Return the registered key ids of each tenant, without tenants whose node of a cluster failed.

        Raises RedisError and OSError where Redis is no cluster, or no node answers.
        """
        redis, now_s, found = self._redis, int(self._clock()), dict[str, list[str]]()
        is_partial = redis.is_cluster and redis.up
        keys = {tenant: self._keys.token_budgets(tenant) for tenant in tenants}
        up = {tenant: key for tenant, key in keys.items() if not is_partial or redis.is_up(key)}
        reads = (redis.commands.zrangebyscore(key, now_s, "+inf", start=0, num=MAX_LISTED) for key in up.values())
        replies: list[Any] = await asyncio.gather(*reads, return_exceptions=is_partial)
        for tenant, reply in zip(up, replies, strict=True):
            if not isinstance(reply, BaseException):
                found[tenant] = [one.decode() for one in reply]
            elif not isinstance(reply, RedisError | OSError):
                raise reply from None
        return found


def _arguments(ends_s: Mapping[str, int]) -> list[int | str]:
    return [MAX_LISTED, *(argument for key_id, end_s in ends_s.items() for argument in (end_s, key_id))]
