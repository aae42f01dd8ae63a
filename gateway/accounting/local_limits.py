"""Enforce limits and budgets in one process while Redis is down.

Each process spends a share of the remainder that Redis last reported. docs/policies.md, "Redis outages", states by how
much the fleet can exceed a budget.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from gateway.accounting.verdict import AdmissionVerdict, Refusal
from gateway.pricing import picodollars
from gateway.redis.client import MAX_BACKOFF_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from decimal import Decimal

    from gateway.accounting.redis_ledger import AdmissionRequest, Variant
    from gateway.accounting.scopes import Scope

_RESERVE_FACTOR = 2
"""A process may spend its share of one half of a remainder. The other half covers reservations of other processes since
the last exchange."""
FRESH_S = 30.0
"""A remainder that was older than this at the start of the outage is unknown. It counts as 0."""
KNOWN_AFTER_S = 3.0
"""A process that joined the fleet less than this before the outage spends nothing: others may not count it yet."""
_SETTLE_S = 2.0
"""Seconds after the outage in which a process still limits itself to its share. The longest reconnect pause of another
process is added: by then all processes have reported their spending."""
_MAX_SCOPES = 10_000
_MAX_REFRESHED = 1000
_REFRESHED_FOR_S = 3600.0
_MAX_HOLDS = 100_000
_MINUTE_S = 60
_SECOND_US = 1_000_000
_STUDENT_ONLY = 3

_Name: TypeAlias = "tuple[str, str]"
"""Namespace (of a tenant, or of one of its slices) and scope name."""


@dataclass(slots=True)
class _Remainder:
    scope: Scope
    pico: int
    learned_s: float
    used_s: float


@dataclass(slots=True)
class _Use:
    """Usage of a scope that Redis does not count yet. `seconds` holds (second, requests, tokens) of the last minute."""

    pico: int = 0
    parallel: int = 0
    seconds: deque[list[int]] = field(default_factory=deque)

    def within_minute(self, now_s: float) -> tuple[int, int]:
        """Return the requests and tokens of the last minute."""
        while self.seconds and self.seconds[0][0] <= now_s - _MINUTE_S - 1:
            self.seconds.popleft()
        return sum(one[1] for one in self.seconds), sum(one[2] for one in self.seconds)

    def add(self, tokens: int, now_s: float) -> None:
        if not self.seconds or self.seconds[-1][0] != int(now_s):
            self.seconds.append([int(now_s), 0, 0])
        self.seconds[-1][1] += 1
        self.seconds[-1][2] += tokens


@dataclass(slots=True)
class _Hold:
    """A request that Redis does not count yet. `pico` is counted in each of `budgets`."""

    names: tuple[_Name, ...]
    budgets: tuple[_Name, ...]
    pico: int
    running: bool = True


@dataclass(slots=True)
class _Outage:
    """An outage of Redis. `settled_s` is set while Redis is up and other processes may not have reported to it."""

    since_s: float
    settled_s: float | None = None
    pending_release: list[str] = field(default_factory=list)


class LocalLimits:
    """Decide on requests while Redis is down. Times are seconds of one clock, amounts are picodollars.

    Args:
        fleet: returns the last known number of processes that share the limits.
        joined_s: returns the time at which this process joined the fleet; infinite before that.
        by_tenant: whether Redis may be down for some tenants only: nodes of a cluster fail separately.
    """

    def __init__(self, fleet: Callable[[], int], joined_s: Callable[[], float], *, by_tenant: bool = False) -> None:
        self._fleet = fleet
        self._joined_s = joined_s
        self._by_tenant = by_tenant
        self._remainders: OrderedDict[_Name, _Remainder] = OrderedDict()
        self._uses: dict[_Name, _Use] = {}
        self._holds: dict[str, _Hold] = {}
        self._outages: dict[str, _Outage] = {}  # by tenant, or one with the name ''

    def is_settling(self, tenant: str, now_s: float) -> bool:
        """Return whether Redis is up again and this process still limits itself to its share."""
        outage = self._outage(tenant)
        return outage is not None and outage.settled_s is not None and now_s < outage.settled_s

    def learn(self, tenant: str, scope: Scope, pico: int, now_s: float, *, used: bool = True) -> None:
        """Store the remainder of a budget as reported by Redis. `used`: a request of this process caused the report."""
        if self._outage(tenant) is not None:
            return  # it lacks what other processes spent during the outage
        name = (tenant, scope.name)
        before = self._remainders.get(name)
        used_s = now_s if used else before.used_s if before is not None else -math.inf
        self._remainders[name] = _Remainder(scope, pico, now_s, used_s)
        if used:
            self._remainders.move_to_end(name)
        if len(self._remainders) > _MAX_SCOPES:
            self._remainders.popitem(last=False)

    def recently_used(self, now_s: float) -> list[tuple[str, Scope]]:
        """Return the scopes, with their tenants, that this process used in the last hour, the latest first."""
        last = islice(reversed(self._remainders.items()), _MAX_REFRESHED)
        return [(tenant, one.scope) for (tenant, _), one in last if one.used_s > now_s - _REFRESHED_FOR_S]

    def admit(self, candidate: AdmissionRequest, running: Iterable[AdmissionRequest], now_s: float) -> AdmissionVerdict:
        """Decide without Redis, and count the request if it is admitted. The first call counts all `running` ones."""
        if self._outage(candidate.namespace) is None:
            self._begin(running, candidate, now_s)
        chosen = candidate.variants[0]
        refusal = self._check(candidate, chosen, now_s)
        if refusal is not None and refusal.limit == "budget":
            terms, last = candidate.scopes[refusal.scope - 1].budget, candidate.variants[-1]
            if terms is not None and terms.on_hard == "student_only" and chosen.kind < last.kind == _STUDENT_ONLY:
                chosen, refusal = last, self._check(candidate, last, now_s)
        if refusal is not None:
            return AdmissionVerdict(refusal=refusal)
        self._hold(candidate, _reserved(chosen), _names(candidate, of_budgets=True))
        for name in self._holds[candidate.id].names:
            self._uses[name].add(chosen.intent.tokens, now_s)
        return AdmissionVerdict(variant=chosen.kind)

    def settle(self, request_id: str, cost_usd: Decimal) -> None:
        """Replace the reservation of an ended request by its cost, until Redis counts it."""
        hold = self._holds.get(request_id)
        if hold is None or not hold.running:
            return
        cost, hold.running = int(picodollars(cost_usd)), False
        for name in hold.names:
            self._uses[name].parallel -= 1
        for name in hold.budgets:
            self._uses[name].pico += cost - hold.pico
        hold.pico = cost
        if not hold.budgets:
            del self._holds[request_id]

    def release(self, ids: Iterable[str]) -> None:
        """Stop counting requests that Redis counts now. They are counted here as well until the fleet has settled."""
        if not self._holds:
            return
        for one in ids:
            hold = self._holds.get(one)
            if hold is None:
                continue
            outage = self._outage(hold.names[0][0])
            if outage is not None:
                outage.pending_release.append(one)
                continue
            del self._holds[one]
            for name in hold.names:
                self._uses[name].parallel -= hold.running
            for name in hold.budgets:
                self._uses[name].pico -= hold.pico

    def lost(self, request_id: str) -> None:
        """Stop counting a request when Redis is up again. Its receipt is lost, so Redis will never count it."""
        self.release([request_id])

    def fail(self, tenants: Iterable[str] | None = None) -> None:
        """Restart the settling period: Redis is down again, for these tenants or for all."""
        for tenant in self._outages if tenants is None else tenants:
            if (outage := self._outage(tenant)) is not None:
                outage.settled_s = None

    def recover(self, now_s: float, is_up: Callable[[str], bool] = lambda _: True) -> None:
        """Let Redis decide again once the fleet has settled. Requests that Redis does not count yet stay counted.

        `is_up` returns whether Redis is up for a tenant.
        """
        ended = [tenant for tenant, outage in self._outages.items() if self._has_settled(tenant, outage, now_s, is_up)]
        for tenant in ended:
            self.release(self._outages.pop(tenant).pending_release)
        if ended:
            held = {name for hold in self._holds.values() for name in hold.names}
            self._uses = {name: use for name, use in self._uses.items() if name in held or self._outage(name[0])}

    def _has_settled(self, tenant: str, outage: _Outage, now_s: float, is_up: Callable[[str], bool]) -> bool:
        if tenant and not is_up(tenant):
            return False
        if outage.settled_s is None:
            outage.settled_s = now_s + min(MAX_BACKOFF_S, now_s - outage.since_s) + _SETTLE_S
        return now_s >= outage.settled_s

    def _outage(self, tenant: str) -> _Outage | None:
        return self._outages.get(tenant if self._by_tenant else "")

    def _begin(self, running: Iterable[AdmissionRequest], first: AdmissionRequest, now_s: float) -> None:
        """Count running requests that Redis admitted. They use parallel slots; remainders exclude their cost."""
        self._outages[first.namespace if self._by_tenant else ""] = _Outage(now_s)
        for candidate in running:
            of_outage = not self._by_tenant or candidate.namespace == first.namespace
            if of_outage and candidate.id != first.id and candidate.id not in self._holds:
                self._hold(candidate, 0, ())

    def _hold(self, candidate: AdmissionRequest, pico: int, budgets: tuple[_Name, ...]) -> None:
        names = _names(candidate)
        if names:
            self._holds[candidate.id] = _Hold(names, budgets, pico)
        for name in names:
            self._uses.setdefault(name, _Use()).parallel += 1
        for name in budgets:
            self._uses[name].pico += pico

    def _check(self, candidate: AdmissionRequest, variant: Variant, now_s: float) -> Refusal | None:
        scopes = enumerate(candidate.scopes, 1)
        refusals = (self._check_scope(candidate.namespace, scope, index, variant, now_s) for index, scope in scopes)
        return next((refusal for refusal in refusals if refusal is not None), None)

    def _check_scope(self, tenant: str, scope: Scope, index: int, variant: Variant, now_s: float) -> Refusal | None:
        name = (tenant, scope.name)
        use = self._uses.get(name) or _Use()
        fleet = max(1, self._fleet())
        if scope.budget is not None:
            limit, need = self._allowance(name, fleet), _reserved(variant)
            if use.pico + need > limit or len(self._holds) >= _MAX_HOLDS:
                return Refusal("budget", index, str(limit), str(use.pico), str(need), 0)
        if scope.parallel and use.parallel >= (limit := _share(scope.parallel, fleet)):
            return Refusal("parallel", index, str(limit), str(use.parallel), "1", _SECOND_US)
        requests, tokens = use.within_minute(now_s) if scope.rpm or scope.tpm else (0, 0)
        retry_us = int((use.seconds[0][0] + _MINUTE_S + 1 - now_s) * _SECOND_US) if use.seconds else _SECOND_US
        if scope.rpm and requests >= (limit := _share(scope.rpm, fleet)):
            return Refusal("requests", index, str(limit), str(requests), "1", retry_us)
        need = variant.intent.tokens
        if scope.tpm and tokens + need > (limit := _share(scope.tpm, fleet)):
            return Refusal("tokens", index, str(limit), str(tokens), str(need), retry_us)
        return None

    def _allowance(self, name: _Name, fleet: int) -> int:
        """Return the amount that this process may spend during the outage, in picodollars."""
        known, outage = self._remainders.get(name), self._outage(name[0])
        assert outage is not None, "an allowance exists only while Redis is down"
        down_since_s = outage.since_s
        if known is None or known.learned_s < down_since_s - FRESH_S or self._joined_s() > down_since_s - KNOWN_AFTER_S:
            return 0
        return max(0, known.pico) // (_RESERVE_FACTOR * fleet)


def _names(candidate: AdmissionRequest, *, of_budgets: bool = False) -> tuple[_Name, ...]:
    return tuple(
        (candidate.namespace, scope.name) for scope in candidate.scopes if not of_budgets or scope.budget is not None
    )


def _share(limit: int, fleet: int) -> int:
    return max(1, limit // fleet)


def _reserved(variant: Variant) -> int:
    return int(picodollars(variant.intent.reserved_usd))
