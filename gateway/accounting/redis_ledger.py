"""The ledger in Redis: requests are admitted, and then have their receipt, each in one script over a tenant's keys.

The script (exchange.lua) counts limits and budgets in the same breath.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.accounting.scopes import Scope
from gateway.accounting.verdict import (
    AdmissionEntry,
    ChargeEntry,
    ExchangeReply,
    ExchangeRequest,
    SettlementEntry,
    VariantEntry,
)
from gateway.pricing import picodollars
from gateway.redis.script import RedisScript
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.accounting.intent import Intent
    from gateway.accounting.receipt import Receipt
    from gateway.accounting.scopes import Charge
    from gateway.accounting.verdict import AdmissionVerdict, BudgetEvent
    from gateway.redis.keys import RedisKeys


MOST_UNASKED_USD = Decimal(100)
"""No budget bounds what a request reserves that went on without being asked for, and Redis counts to 9 million USD:
beyond, it would refuse the news of every other request with it."""
NAMED_FOR_S = 3600.0
"""How long a process knows that Redis knows of a tenant with receipts."""


class Variant(Record, frozen=True):
    """One way to answer a request. `kind`: 1 as planned, 2 with shorter guidance, 3 by the student alone."""

    kind: int
    intent: Intent


class AdmissionRequest(Record, frozen=True):
    """A request that asks to be admitted.

    Attributes:
        scopes: where it is counted.
        variants: how it may be answered, from the dearest down.
        force: whether it was let in already, and is only to be counted.
    """

    scopes: tuple[Scope, ...]
    variants: tuple[Variant, ...]
    force: bool = False

    @property
    def id(self) -> str:
        return self.variants[0].intent.id

    @property
    def tenant(self) -> str:
        return self.variants[0].intent.tenant

    def let_in(self) -> AdmissionRequest:
        """Return the candidate as one that was admitted as its first variant, and is only to be counted."""
        variant = self.variants[0]
        intent = variant.intent
        if intent.reserved_usd > MOST_UNASKED_USD:
            variant = Variant(variant.kind, msgspec.structs.replace(intent, reserved_usd=MOST_UNASKED_USD))
        return AdmissionRequest(self.scopes, (variant,), force=True)

    def following(self, kind: int) -> AdmissionRequest:
        """Return the candidate with the variant of that kind alone."""
        return AdmissionRequest(self.scopes, tuple([one for one in self.variants if one.kind == kind]), self.force)


class Settlement(Record, frozen=True):
    """A request that is over: its receipt, and what was reserved for it. No intent: it was not admitted here."""

    receipt: Receipt
    intent: Intent | None


@dataclass(frozen=True, slots=True)
class TenantEvent:
    """What came of a tenant's budget, or a key's: `scope` is whose."""

    tenant: str
    scope: Scope
    event: BudgetEvent


@dataclass(slots=True)
class ExchangeResult:
    """What an exchange brought.

    Attributes:
        verdicts: by request, with the scopes that a refusal counts and Redis TIME in microseconds.
        replaced: the ids of receipts that took the place of an abandoned one.
        left: tenant, scope and what is left of its budget in picodollars.
    """

    verdicts: dict[str, tuple[AdmissionVerdict, tuple[Scope, ...], int]] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)
    events: list[TenantEvent] = field(default_factory=list)
    left: list[tuple[str, Scope, int]] = field(default_factory=list)


class RedisLedger:
    """Args:
    owner: this process's id; no other process has it.
    ttl_s: how long Redis keeps a receipt.
    lease_s: after so long without a word, what a process held in parallel is free again.
    queries: where callers' receipts are read.
    """

    def __init__(
        self,
        redis: Redis,
        keys: RedisKeys,
        owner: str,
        ttl_s: float,
        lease_s: float,
        queries: Redis | None = None,
    ) -> None:
        self._redis = redis
        self._queries = redis if queries is None else queries
        self._keys = keys
        self._owner = owner
        self._ttl_s = max(1, round(ttl_s))
        self._lease_us = round(lease_s * 1_000_000)
        self._named_tenants: dict[str, float] = {}  # until when they need not be named again
        self._script = RedisScript(redis, "gateway.accounting", "exchange.lua")

    async def exchange(
        self, admitted: Sequence[AdmissionRequest], settled: Sequence[Settlement], beats: Iterable[str] = ()
    ) -> ExchangeResult:
        """Admit requests, and settle others, in one round trip. Raises RedisError and OSError.

        Args:
            beats: tenants that have requests under way here.
        """
        tenants: dict[str, list[_TenantNews]] = defaultdict(lambda: [_TenantNews()])
        for candidate in admitted:
            calls = tenants[candidate.tenant]
            # Around an edit of the policy two may go by different limits of one scope: each is counted by its own.
            if not calls[-1].agrees(candidate):
                calls.append(_TenantNews())
            calls[-1].add(candidate)
        for settlement in settled:
            tenants[settlement.receipt.tenant][0].settled.append(settlement)
        for tenant in beats:
            tenants[tenant][0].beat = True
        return await self._tell([(tenant, news) for tenant, calls in tenants.items() for news in calls], self._owner)

    async def settle(self, owner: str, settled: Sequence[Settlement]) -> ExchangeResult:
        """Settle requests of a process, this one or one that is gone. Raises RedisError and OSError."""
        tenants: dict[str, _TenantNews] = defaultdict(_TenantNews)
        for settlement in settled:
            tenants[settlement.receipt.tenant].settled.append(settlement)
        return await self._tell(list(tenants.items()), owner)

    async def abandon(self, tenant: str, owner: str, left: Mapping[str, Settlement]) -> set[str]:
        """Settle intents of a process that is gone, by id. Raises RedisError and OSError.

        Returns the ids that this call settled, and no other process did.
        """
        news = _TenantNews(settled=list(left.values()), gone=True)
        return (await self._tell([(tenant, news)], owner)).settled

    async def _tell(self, told_of: Sequence[tuple[str, _TenantNews]], owner: str) -> ExchangeResult:
        calls = []
        for tenant, news in told_of:
            news.number_scopes()
            raw = news.encoded(owner, self._ttl_s, self._lease_us)
            calls.append((self._named(tenant, owner, news), [raw]))
        await self._name_tenants({tenant for tenant, news in told_of if news.settled})
        brought = ExchangeResult()
        for (tenant, news), raw in zip(told_of, await self._script.run(calls), strict=True):
            told = msgspec.msgpack.decode(raw, type=ExchangeReply)
            scopes = tuple(news.scopes.values())
            for candidate, verdict in zip(news.admitted, told.verdicts, strict=True):
                brought.verdicts[candidate.id] = (verdict, scopes, told.now_us)
            brought.replaced += told.replaced
            brought.settled.update(told.settled)
            brought.left += [(tenant, scope, int(left)) for scope, left in zip(scopes, told.left, strict=False) if left]
            brought.events += [TenantEvent(tenant, scopes[event.scope - 1], event) for event in told.events]
        return brought

    async def _name_tenants(self, settled: set[str]) -> None:
        """Name tenants before their first receipt, so that usage workers read their outboxes.

        A tenant is named again after a while, since one that was quiet for long is forgotten (usage/inactive.py).
        """
        now = time.monotonic()
        if new := [tenant for tenant in settled if self._named_tenants.get(tenant, now) <= now]:
            told: Any = self._redis.sadd(self._keys.ledger().tenants, *new)
            await told
            self._named_tenants.update(dict.fromkeys(new, now + NAMED_FOR_S))

    def forget(self) -> None:
        """Take nothing for known in Redis: it may have lost what it was told."""
        self._named_tenants.clear()

    def _named(self, tenant: str, owner: str, news: _TenantNews) -> list[str]:
        keys = [self._keys.intents(tenant, owner), self._keys.owners(tenant), self._keys.outbox(tenant)]
        ids = [candidate.id for candidate in news.admitted] + [one.receipt.id for one in news.settled]
        keys += [self._keys.receipt(tenant, one) for one in ids]
        for scope in news.scopes:
            keys += self._keys.scope(tenant, scope)
        return keys

    async def receipt(self, tenant: str, receipt_id: str) -> bytes | None:
        """A receipt as JSON. Raises RedisError and OSError."""
        found = await self._queries.get(self._keys.receipt(tenant, receipt_id))
        return found.encode() if isinstance(found, str) else found

    async def gone_owners(self, tenants: Iterable[str], lease_s: float) -> list[tuple[str, str]]:
        """(tenant, process) where the process was not heard of for a lease and its heartbeat has lapsed.

        Raises RedisError and OSError.
        """
        tenants = list(tenants)
        seconds, microseconds = await self._redis.time()
        newest = seconds * 1_000_000 + microseconds - round(lease_s * 1_000_000)
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.zrangebyscore(self._keys.owners(tenant), "-inf", newest)
            found = await pipe.execute()
        quiet = [
            (tenant, owner)
            for tenant, owners in zip(tenants, found, strict=True)
            for raw in owners
            if (owner := raw.decode()) != self._owner
        ]
        asked = sorted({owner for _, owner in quiet})
        if not asked:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for owner in asked:
                pipe.exists(self._keys.heartbeat(owner))
            alive = dict(zip(asked, await pipe.execute(), strict=True))
        return [(tenant, owner) for tenant, owner in quiet if not alive[owner]]

    @property
    def ttl_s(self) -> int:
        """Return the seconds for which Redis keeps a receipt."""
        return self._ttl_s

    @property
    def owner(self) -> str:
        """This process's id."""
        return self._owner

    async def own_intents(self, tenants: Sequence[str], most: int) -> dict[str, list[str]]:
        """By tenant, the ids of some intents of this process. Raises RedisError and OSError."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.hrandfield(self._keys.intents(tenant, self._owner), most)
            found = await pipe.execute() if tenants else []
        return {tenant: [raw.decode() for raw in ids] for tenant, ids in zip(tenants, found, strict=True) if ids}

    async def own_intents_of(self, tenant: str, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Of these requests the intents as JSON, where there are any. Raises RedisError and OSError."""
        held: Any = await self._redis.hmget(self._keys.intents(tenant, self._owner), list(ids))
        return {one: raw.partition(b"\n")[2] for one, raw in zip(ids, held, strict=True) if raw is not None}

    async def intents(self, tenant: str, owner: str, most: int) -> Mapping[str, bytes]:
        """Some of a process's intents as JSON, by request id. Raises RedisError and OSError."""
        flat: Any = await self._redis.hrandfield(self._keys.intents(tenant, owner), most, withvalues=True)
        # Before the JSON stands when it was admitted.
        return {flat[i].decode(): flat[i + 1].partition(b"\n")[2] for i in range(0, len(flat), 2)}


@dataclass(slots=True)
class _TenantNews:
    """What one call of the script is to tell of one tenant."""

    admitted: list[AdmissionRequest] = field(default_factory=list)
    settled: list[Settlement] = field(default_factory=list)
    beat: bool = False
    gone: bool = False
    scopes: dict[str, Scope] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def agrees(self, candidate: AdmissionRequest) -> bool:
        """Whether it goes by the same limits as those that ask already."""
        return all(self.scopes.get(scope.name, scope) == scope for scope in candidate.scopes)

    def add(self, candidate: AdmissionRequest) -> None:
        self.admitted.append(candidate)
        for scope in candidate.scopes:
            self.scopes[scope.name] = scope

    def number_scopes(self) -> None:
        """Every scope that any request touches. What settles needs no limits, so those of who asks went first."""
        for one in self.settled:
            for charge in one.intent.charges if one.intent is not None else ():
                self.scopes.setdefault(charge.scope, Scope(charge.scope, 0, 0, 0))
        self.numbers = {name: place for place, name in enumerate(self.scopes, 1)}

    def encoded(self, owner: str, ttl_s: int, lease_us: int) -> bytes:
        return msgspec.msgpack.encode(
            ExchangeRequest(
                owner=owner,
                ttl_s=ttl_s,
                lease_us=lease_us,
                scopes=list(self.scopes.values()),
                admitted=[self._admitted(candidate) for candidate in self.admitted],
                settled=[self._settled(one) for one in self.settled],
                beat=self.beat,
                gone=self.gone,
            )
        )

    def _admitted(self, candidate: AdmissionRequest) -> AdmissionEntry:
        variants = [
            VariantEntry(
                variant.kind,
                picodollars(variant.intent.reserved_usd),
                variant.intent.tokens,
                variant.intent.to_json().decode(),
            )
            for variant in candidate.variants
        ]
        numbers = [self.numbers[scope.name] for scope in candidate.scopes]
        return AdmissionEntry(candidate.id, numbers, variants, candidate.force)

    def _settled(self, one: Settlement) -> SettlementEntry:
        receipt, intent = one.receipt, one.intent
        return SettlementEntry(
            id=receipt.id,
            receipt=receipt.to_json().decode(),
            usd=picodollars(receipt.cost_usd),
            tokens=receipt.tokens,
            charges=[] if intent is None else [self._charge(charge) for charge in intent.charges],
            abandoned=self.gone,
        )

    def _charge(self, charge: Charge) -> ChargeEntry:
        return ChargeEntry(
            self.numbers[charge.scope], charge.window, charge.parallel, charge.budget, charge.unit, charge.count
        )
