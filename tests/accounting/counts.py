"""Limits on a real Redis whose counts can be moved into the past, and requests that use them."""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from gateway.accounting.redis_ledger import RedisLedger, Settlement
from gateway.accounting.scopes import Scope
from gateway.redis.keys import RedisKeys
from tests.accounting.receipt_builders import candidate, closed, guided, intent

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.accounting.intent import Intent
    from gateway.accounting.verdict import AdmissionVerdict

LEASE_S = 1.0
SLOT_US = 100_000


class Counted:
    """The ledgers of three processes on one Redis."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}")
        self.processes = {name: RedisLedger(redis, self.keys, name, 100, LEASE_S) for name in ("ann", "bob", "carl")}

    async def ask(
        self, *scopes: Scope, tokens: int = 10, by: str = "ann", one: Intent | None = None
    ) -> AdmissionVerdict:
        one = msgspec.structs.replace(one or intent(by), tokens=tokens)
        brought = await self.processes[by].exchange([candidate(one, *scopes)], [])
        self.last = msgspec.structs.replace(one, charges=tuple(scope.charge for scope in scopes))
        return brought.verdicts[one.id][0]

    async def settle(self, one: Intent, *, tokens: int, by: str = "ann") -> None:
        share = closed(guided()).student
        assert share is not None
        used = msgspec.structs.replace(share, input_tokens=tokens, output_tokens=0)
        receipt = msgspec.structs.replace(
            closed(guided()), id=one.id, teacher=None, student=used, cost_usd=Decimal("0.001")
        )
        await self.processes[by].exchange([], [Settlement(receipt, one)])

    async def grow_older(self, scope: Scope, seconds: float, namespace: str = "acme") -> None:
        """Move all counts into the past."""
        window = self.keys.scope(namespace, scope.name)[0]
        slots = round(seconds * 1_000_000 / SLOT_US)
        held = {name.decode(): value for name, value in (await self.redis.hgetall(window)).items()}
        moved = {_earlier(name, slots): value for name, value in held.items()}
        moved["from"] = str(int(held["from"]) - slots).encode()
        await self.redis.delete(window)
        await self.redis.hset(window, mapping=moved)


def _earlier(name: str, slots: int) -> str:
    return f"{name[0]}{int(name[1:]) - slots}" if name[1:].isdigit() else name


def tenant(*, rpm: int = 0, tpm: int = 0, parallel: int = 0) -> Scope:
    return Scope("tenant", rpm, tpm, parallel)


def key(*, rpm: int = 0, tpm: int = 0, parallel: int = 0, name: str = "key:prod") -> Scope:
    return Scope(name, rpm, tpm, parallel)
