"""Admit and settle requests in Redis.

One call of exchange.lua per tenant reserves, settles and counts limits and budgets. A tenant with slices (slices.py)
has one call per slice. A namespace is the name of a tenant or of a slice.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec.structs import asdict, replace
from redis.exceptions import RedisError

from gateway.accounting.scopes import Scope
from gateway.accounting.verdict import ExchangeReply
from gateway.pricing import picodollars
from gateway.redis.keys import slice_names
from gateway.redis.script import RedisScript
from gateway.redis.slots import is_cluster
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.accounting.intent import Intent
    from gateway.accounting.receipt import Receipt
    from gateway.accounting.verdict import AdmissionVerdict, BudgetEvent
    from gateway.redis.keys import RedisKeys

MAX_FORCED_USD = Decimal(100)
"""The largest reservation of a request that continued without a verdict. Redis counts up to 9 million USD: a larger
reservation would make the script reject every other request of the exchange."""
NAMED_FOR_S = 3600.0
"""Seconds after which a process adds a tenant to Redis's set of tenants again."""


class Variant(Record, frozen=True):
    """A plan and its reservation. `kind`: 1 as planned, 2 with shorter guidance, 3 by the student alone."""

    kind: int
    intent: Intent


class AdmissionRequest(Record, frozen=True):
    """A request that waits for admission. With several `slices`, the scopes have the parts of one slice."""

    scopes: tuple[Scope, ...]
    variants: tuple[Variant, ...]  # the possible plans, the most expensive first
    force: bool = False  # whether the request was admitted already and is only to be counted
    slices: int = 1  # of the tenant

    @property
    def id(self) -> str:
        return self.variants[0].intent.id

    @property
    def tenant(self) -> str:
        return self.variants[0].intent.tenant

    @property
    def namespace(self) -> str:
        return self.variants[0].intent.namespace

    def forced(self) -> AdmissionRequest:
        """Return the request as one that was admitted with its first variant and is only to be counted."""
        variant = self.variants[0]
        intent = variant.intent
        if intent.reserved_usd > MAX_FORCED_USD:
            variant = Variant(variant.kind, replace(intent, reserved_usd=MAX_FORCED_USD))
        return AdmissionRequest(self.scopes, (variant,), force=True, slices=self.slices)

    def with_variant(self, kind: int) -> AdmissionRequest:
        """Return the request with the variant of that kind alone."""
        variants = tuple([one for one in self.variants if one.kind == kind])
        return AdmissionRequest(self.scopes, variants, self.force, self.slices)


class Settlement(Record, frozen=True):
    """An ended request: its receipt and its intent. The intent is None where this process did not admit the request."""

    receipt: Receipt
    intent: Intent | None

    @property
    def namespace(self) -> str:
        return self.receipt.tenant if self.intent is None else self.intent.namespace


class TenantEvent(NamedTuple):
    """An event of a budget, with the tenant and the scope that the budget belongs to."""

    tenant: str
    scope: Scope
    event: BudgetEvent


@dataclass(slots=True)
class ExchangeResult:
    """The result of an exchange.

    Attributes:
        verdicts: by request id, with the request's scopes and Redis TIME in microseconds.
        events: events of budgets without slices.
        left: namespace, scope and the remainder of its budget in picodollars.
        failed: the error of each namespace whose call failed. Redis may have stored the requests of the namespace.
    """

    verdicts: dict[str, tuple[AdmissionVerdict, tuple[Scope, ...], int]] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)  # ids of receipts that replaced an abandoned one
    settled: set[str] = field(default_factory=set)  # ids of abandoned requests that this exchange settled
    events: list[TenantEvent] = field(default_factory=list)
    left: list[tuple[str, Scope, int]] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)


class RedisLedger:
    """Run exchanges with Redis, and read intents and receipts.

    Args:
        ttl_s: seconds for which Redis keeps a receipt.
        lease_s: seconds without a heartbeat after which the parallel slots of a process are free.
        queries: the connection for reading callers' receipts.
        slices: returns the number of slices of a tenant that may have receipts.
    """

    def __init__(
        self,
        redis: Redis,
        keys: RedisKeys,
        process_id: str,
        ttl_s: float,
        lease_s: float,
        queries: Redis | None = None,
        slices: Callable[[str], int] = lambda _: 1,
    ) -> None:
        self._redis = redis
        self._queries = redis if queries is None else queries
        self._keys, self._slices = keys, slices
        self.process_id = process_id
        self.ttl_s = max(1, round(ttl_s))
        self._lease_us = round(lease_s * 1_000_000)
        self._named_tenants: dict[str, float] = {}  # namespace -> time at which to add it to the set of tenants again
        self._unnamed: set[str] = set()  # namespaces with a receipt that a cluster could not add to the set
        self._script = RedisScript(redis, "gateway.accounting", "exchange.lua")

    async def exchange(
        self, admitted: Sequence[AdmissionRequest], settled: Sequence[Settlement], beats: Iterable[str] = ()
    ) -> ExchangeResult:
        """Admit and settle requests in one round trip, and renew this process's lease for the namespaces in `beats`.
        Raises RedisError and OSError where Redis is no cluster: all failed."""
        tenants: dict[str, list[_TenantCall]] = defaultdict(lambda: [_TenantCall()])
        for candidate in admitted:
            of_tenant = tenants[candidate.namespace]
            # After a policy edit, two requests may have different limits for one scope. Each needs its own call.
            if not of_tenant[-1].agrees(candidate):
                of_tenant.append(_TenantCall())
            of_tenant[-1].add(candidate)
        for settlement in settled:
            tenants[settlement.namespace][0].settled.append(settlement)
        for tenant in beats:
            tenants[tenant][0].beat = True
        calls = [(tenant, call) for tenant, calls_of in tenants.items() for call in calls_of]
        result = await self._run(calls, self.process_id)
        if result.failed and not is_cluster(self._redis):
            raise next(iter(result.failed.values()))
        return result

    async def settle(self, process_id: str, settled: Sequence[Settlement]) -> ExchangeResult:
        """Settle requests of this process or of a dead one. Raises RedisError and OSError: all failed."""
        tenants: dict[str, _TenantCall] = defaultdict(_TenantCall)
        for settlement in settled:
            tenants[settlement.namespace].settled.append(settlement)
        return await self._run(list(tenants.items()), process_id)

    async def abandon(self, tenant: str, process_id: str, left: Mapping[str, Settlement]) -> set[str]:
        """Settle intents of a dead process, by id; return the ids that no other process settled. Raises RedisError and
        OSError."""
        call = _TenantCall(settled=list(left.values()), gone=True)
        result = await self._run([(tenant, call)], process_id)
        for error in result.failed.values():
            raise error
        return result.settled

    async def _run(self, tenant_calls: Sequence[tuple[str, _TenantCall]], process_id: str) -> ExchangeResult:
        calls = []
        for tenant, call in tenant_calls:
            call.number_scopes()
            raw = call.encoded(process_id, self.ttl_s, self._lease_us)
            calls.append((self._keys_of(tenant, process_id, call), [raw]))
        await self._name_tenants({tenant for tenant, call in tenant_calls if call.settled})
        result = ExchangeResult()
        for (tenant, call), raw in zip(tenant_calls, await self._script.run_each(calls), strict=True):
            if isinstance(raw, Exception):
                result.failed[tenant] = raw
                continue
            reply = msgspec.msgpack.decode(raw, type=ExchangeReply)
            scopes = tuple(call.scopes.values())
            for candidate, verdict in zip(call.admitted, reply.verdicts, strict=True):
                result.verdicts[candidate.id] = (verdict, scopes, reply.now_us)
            result.replaced += reply.replaced
            result.settled.update(reply.settled)
            result.left += [(tenant, scope, int(left)) for scope, left in zip(scopes, reply.left, strict=False) if left]
            if call.admitted and call.admitted[0].slices == 1:  # slice_events.py has the events of other budgets
                result.events += [TenantEvent(tenant, scopes[event.scope - 1], event) for event in reply.events]
        return result

    async def _name_tenants(self, settled: set[str]) -> None:
        """Add tenants to the set of tenants before their first receipt, so that usage workers read their outboxes. Each
        tenant is added again after `NAMED_FOR_S`, since inactive tenants are removed (usage/trimmer.py)."""
        now = time.monotonic()
        if new := [tenant for tenant in settled | self._unnamed if self._named_tenants.get(tenant, now) <= now]:
            reply: Any = self._redis.sadd(self._keys.ledger().tenants, *new)
            try:
                await reply
            except (RedisError, OSError):
                if not is_cluster(self._redis):
                    raise
                self._unnamed.update(new)  # receipts on other nodes do not wait for the node of this set
                return
            self._unnamed.difference_update(new)
            self._named_tenants.update(dict.fromkeys(new, now + NAMED_FOR_S))

    def key_of(self, tenant: str) -> str:
        """Return a key of a tenant or of a slice: all of them are on one node."""
        return self._keys.tenant_base(tenant)

    def forget_tenants(self) -> None:
        """Assume that Redis knows no tenants. A restarted Redis may have lost them."""
        self._named_tenants.clear()

    def _keys_of(self, tenant: str, process_id: str, call: _TenantCall) -> list[str]:
        keys = [self._keys.intents(tenant, process_id), self._keys.owners(tenant), self._keys.outbox(tenant)]
        receipt = self._keys.receipt(tenant, "")
        keys += [receipt + candidate.id for candidate in call.admitted]
        keys += [receipt + one.receipt.id for one in call.settled]
        for scope in call.scopes:
            keys += self._keys.scope(tenant, scope)
        return keys

    async def receipt(self, tenant: str, receipt_id: str) -> bytes | None:
        """Return a receipt as JSON. Raises RedisError and OSError."""
        async with self._queries.pipeline(transaction=False) as pipe:
            for name in slice_names(tenant, self._slices(tenant)):
                pipe.get(self._keys.receipt(name, receipt_id))
            replies = await pipe.execute(raise_on_error=False)
        found = next((reply for reply in replies if isinstance(reply, bytes)), None)
        if found is None and (error := next((reply for reply in replies if isinstance(reply, Exception)), None)):
            raise error
        return found

    async def expired_processes(
        self, tenants: Iterable[str], lease_s: float, is_reliable: Callable[[str], bool] = lambda _: True
    ) -> list[tuple[str, str]]:
        """Return (tenant, process id) of expired leases and heartbeats. Raises RedisError and OSError. `is_reliable`
        returns whether a missing heartbeat indicates a dead process, by the key of the heartbeat."""
        tenants = list(tenants)
        seconds, microseconds = await self._redis.time()
        newest = seconds * 1_000_000 + microseconds - round(lease_s * 1_000_000)
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.zrangebyscore(self._keys.owners(tenant), "-inf", newest)
            found = await pipe.execute()
        quiet = [
            (tenant, process_id)
            for tenant, owners in zip(tenants, found, strict=True)
            for raw in owners
            if (process_id := raw.decode()) != self.process_id
        ]
        candidates = sorted({one for _, one in quiet if is_reliable(self._keys.heartbeat(one))})
        if not candidates:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for process_id in candidates:
                pipe.exists(self._keys.heartbeat(process_id))
            found = await pipe.execute(raise_on_error=not is_cluster(self._redis))
        # In a cluster, an error takes the place of heartbeats whose node failed.
        dead = {process_id for process_id, reply in zip(candidates, found, strict=True) if reply == 0}
        return [(tenant, process_id) for tenant, process_id in quiet if process_id in dead]

    async def own_intents(self, tenants: Sequence[str], limit: int) -> dict[str, list[str]]:
        """Return ids of intents of this process, by tenant, at most `limit` each. Raises RedisError and OSError."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.hrandfield(self._keys.intents(tenant, self.process_id), limit)
            found = await pipe.execute() if tenants else []
        return {tenant: [raw.decode() for raw in ids] for tenant, ids in zip(tenants, found, strict=True) if ids}

    async def own_intents_by_id(self, tenant: str, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Return the intents of these requests as JSON, by id. Raises RedisError and OSError."""
        held: Any = await self._redis.hmget(self._keys.intents(tenant, self.process_id), list(ids))
        return {one: raw.partition(b"\n")[2] for one, raw in zip(ids, held, strict=True) if raw is not None}

    async def intents(self, tenant: str, process_id: str, limit: int) -> Mapping[str, bytes]:
        """Return at most `limit` intents of a process as JSON, by request id. Raises RedisError and OSError."""
        flat: Any = await self._redis.hrandfield(self._keys.intents(tenant, process_id), limit, withvalues=True)
        # The first line of a value is the time of admission, the second is the intent.
        return {flat[i].decode(): flat[i + 1].partition(b"\n")[2] for i in range(0, len(flat), 2)}


@dataclass(slots=True)
class _TenantCall:
    """The content of one script call for one tenant."""

    admitted: list[AdmissionRequest] = field(default_factory=list)
    settled: list[Settlement] = field(default_factory=list)
    beat: bool = False  # whether to renew the process's lease. Admissions always renew it.
    gone: bool = False  # whether the process is dead
    scopes: dict[str, Scope] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def agrees(self, candidate: AdmissionRequest) -> bool:
        """Return whether the request has the same limits as the requests of this call."""
        return not candidate.scopes or all(self.scopes.get(scope.name, scope) == scope for scope in candidate.scopes)

    def add(self, candidate: AdmissionRequest) -> None:
        self.admitted.append(candidate)
        for scope in candidate.scopes:
            self.scopes[scope.name] = scope

    def number_scopes(self) -> None:
        """Number all scopes. Settlements need no limits, so the scopes of admissions come first."""
        for one in self.settled:
            for charge in one.intent.charges if one.intent is not None else ():
                self.scopes.setdefault(charge.scope, Scope(charge.scope, 0, 0, 0))
        self.numbers = {name: index for index, name in enumerate(self.scopes, 1)}

    def encoded(self, process_id: str, ttl_s: int, lease_us: int) -> bytes:
        """Return the argument of the script as MessagePack. Scopes are numbered from 1."""
        content = {
            "owner": process_id,
            "ttl_s": ttl_s,
            "lease_us": lease_us,
            "scopes": list(self.scopes.values()),
            "admitted": [self._admitted(candidate) for candidate in self.admitted],
            "settled": [self._settled(one) for one in self.settled],
            "beat": self.beat,
            "gone": self.gone,
        }
        return msgspec.msgpack.encode(content)

    def _admitted(self, candidate: AdmissionRequest) -> dict[str, Any]:
        intents = [(variant.kind, variant.intent) for variant in candidate.variants]
        variants = [
            {"kind": kind, "usd": picodollars(one.reserved_usd), "tokens": one.tokens, "intent": one.to_json().decode()}
            for kind, one in intents
        ]
        scopes = [self.numbers[scope.name] for scope in candidate.scopes]
        return {"id": candidate.id, "scopes": scopes, "variants": variants, "force": candidate.force}

    def _settled(self, one: Settlement) -> dict[str, Any]:
        receipt, charges = one.receipt, one.intent.charges if one.intent is not None else ()
        return {
            "id": receipt.id,
            "receipt": receipt.to_json().decode(),
            "usd": picodollars(receipt.cost_usd),
            "tokens": receipt.tokens,
            "charges": [{**asdict(charge), "scope": self.numbers[charge.scope]} for charge in charges],
            "abandoned": self.gone,
        }
