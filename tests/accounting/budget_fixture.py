"""Budgets on a real Redis, and requests that reserve from them."""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from gateway.accounting.redis_ledger import AdmissionRequest, ExchangeResult, RedisLedger, Settlement, Variant
from gateway.accounting.scopes import BudgetTerms, Scope
from gateway.config.limits import BudgetDuration
from gateway.pricing import dollars, picodollars
from gateway.redis.keys import RedisKeys
from tests.accounting.receipt_builders import closed, guided, intent

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from gateway.accounting.intent import Intent
    from gateway.accounting.verdict import AdmissionVerdict


def budget(
    max_usd: str,
    *,
    soft: str | None = None,
    period: BudgetDuration | None = None,
    aligned: bool = True,
    on_soft: str = "warn",
    on_hard: str = "reject",
    name: str = "tenant",
) -> Scope:
    period = period or BudgetDuration(1, "mo")
    terms = BudgetTerms(
        picodollars(Decimal(max_usd)),
        "" if soft is None else picodollars(Decimal(soft)),
        period.unit,
        period.count,
        period.seconds,
        aligned,
        on_soft,
        on_hard,
    )
    return Scope(name, 0, 0, 0, terms)


class BudgetFixture:
    """The ledgers of three processes on one Redis."""

    def __init__(self, redis: Redis, keys: RedisKeys | None = None) -> None:
        self.redis = redis
        self.keys = keys or RedisKeys(f"t{secrets.token_hex(6)}")
        self.processes = {name: RedisLedger(redis, self.keys, name, 100, 10) for name in ("ann", "bob", "carl")}
        self.events: list[tuple[str, str]] = []

    def request(self, usd: str, *scopes: Scope, by: str = "ann") -> Intent:
        charges = tuple(scope.charge for scope in scopes)
        return msgspec.structs.replace(intent(by), reserved_usd=Decimal(usd), charges=charges)

    async def tell(
        self, *requests: AdmissionRequest, settled: tuple[Settlement, ...] = (), by: str = "ann"
    ) -> ExchangeResult:
        result = await self.processes[by].exchange(requests, settled)
        self.events += [(one.scope.name, one.event.kind) for one in result.events]
        return result

    async def ask(self, usd: str, *scopes: Scope, by: str = "ann", force: bool = False) -> AdmissionVerdict:
        self.last = self.request(usd, *scopes, by=by)
        result = await self.tell(AdmissionRequest(scopes, (Variant(1, self.last),), force), by=by)
        return result.verdicts[self.last.id][0]

    async def choose(self, usd: dict[int, str], *scopes: Scope) -> int:
        """Return the kind of plan that is admitted, given the cost of each kind; 0: none."""
        base = self.request("0", *scopes)
        variants = tuple(
            Variant(kind, msgspec.structs.replace(base, reserved_usd=Decimal(max_usd))) for kind, max_usd in usd.items()
        )
        verdict = (await self.tell(AdmissionRequest(scopes, variants))).verdicts[base.id][0]
        if verdict.variant:
            self.last = next(one.intent for one in variants if one.kind == verdict.variant)
        return verdict.variant

    async def settle(self, one: Intent, usd: str, *, by: str = "ann") -> list[str]:
        receipt = msgspec.structs.replace(closed(guided()), id=one.id, cost_usd=Decimal(usd))
        return (await self.tell(settled=(Settlement(receipt, one),), by=by)).replaced

    async def money(self, scope: Scope) -> tuple[Decimal, Decimal]:
        """Return the spent and the reserved amount."""
        spent, reserved = await self.redis.hmget(self.keys.scope("acme", scope.name)[2], "spent", "reserved")
        return dollars((spent or b"0").decode()), dollars((reserved or b"0").decode())


async def older(redis: Redis, ring: str, slots: int) -> None:
    """Move the counts of a rolling budget into the past."""
    held = {name.decode(): value for name, value in (await redis.hgetall(ring)).items()}
    await redis.delete(ring)
    moved = {f"u{int(name[1:]) - slots}" if name[1:].isdigit() else name: value for name, value in held.items()}
    await redis.hset(ring, mapping=moved | {"from": str(int(held["from"]) - slots)})
