"""Limits and budgets of one process while Redis cannot count: a share of what was left when Redis was last heard.

The sum over the fleet stays within every budget, up to a stated bound: docs/policies.md, "Redis outages".
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from gateway.accounting.verdict import AdmissionVerdict, Refusal
from gateway.pricing import picodollars
from gateway.redis.client import LONGEST_REST_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from decimal import Decimal

    from gateway.accounting.redis_ledger import AdmissionRequest, Variant
    from gateway.accounting.scopes import Scope

_PART = 2
"""A process may spend its share of half of a remainder. The other half covers what the process does not know, such as
what others reserved since its last exchange."""
FRESH_S = 30.0
"""A remainder that was older than this when Redis went away counts as unknown, and as 0."""
KNOWN_AFTER_S = 3.0
"""A process that joined the fleet less than this before Redis went away spends nothing: others may not know it yet."""
_SETTLE_S = 2.0
"""A process keeps to its part for this long after Redis is back, and for as long as another may pause between attempts
to reach Redis: then all have told Redis what they spent."""
_MOST_SCOPES = 10_000
_MOST_REFRESHED = 1000
_REFRESHED_FOR_S = 3600.0
_MOST_HOLDS = 100_000
_MINUTE_S = 60
_SECOND_US = 1_000_000
_STUDENT_ONLY = 3

_Name: TypeAlias = "tuple[str, str]"
"""A scope of a tenant."""


@dataclass(slots=True)
class _Remainder:
    scope: Scope
    pico: int
    learned_s: float
    used_s: float


@dataclass(slots=True)
class _Use:
    """Use of one scope that Redis does not count yet. `seconds` holds (second, requests, tokens) of the last minute."""

    pico: int = 0
    parallel: int = 0
    seconds: deque[list[int]] = field(default_factory=deque)

    def within_minute(self, now_s: float) -> tuple[int, int]:
        """Requests and tokens of the last minute."""
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
    """A request that Redis does not count yet. `pico` counts in each of `budgets`."""

    names: tuple[_Name, ...]
    budgets: tuple[_Name, ...]
    pico: int
    running: bool = True


class LocalLimits:
    """Times are seconds on one clock, handed in as `now_s`. Money is in picodollars.

    Args:
        fleet: returns how many processes share the limits, as last known.
        joined_s: returns when this process joined them; infinite: not yet.
    """

    def __init__(self, fleet: Callable[[], int], joined_s: Callable[[], float]) -> None:
        self._fleet = fleet
        self._joined_s = joined_s
        self._remainders: OrderedDict[_Name, _Remainder] = OrderedDict()
        self._uses: dict[_Name, _Use] = {}
        self._holds: dict[str, _Hold] = {}
        self._lost: list[str] = []
        self._away_since_s: float | None = None
        self._settled_s: float | None = None  # set while Redis is back and others may have told it nothing yet

    def is_settling(self, now_s: float) -> bool:
        """Return whether Redis is back, and this process still keeps to its part of budgets."""
        return self._settled_s is not None and now_s < self._settled_s

    def learn(self, tenant: str, scope: Scope, pico: int, now_s: float, *, used: bool = True) -> None:
        """Remember what Redis says is left of a budget.

        Args:
            used: whether a request of this process brought the figure.
        """
        if self._away_since_s is not None:
            return  # it lacks what other processes spent alone
        name = (tenant, scope.name)
        before = self._remainders.get(name)
        used_s = now_s if used else before.used_s if before is not None else -math.inf
        self._remainders[name] = _Remainder(scope, pico, now_s, used_s)
        if used:
            self._remainders.move_to_end(name)
        if len(self._remainders) > _MOST_SCOPES:
            self._remainders.popitem(last=False)

    def used_of_late(self, now_s: float) -> list[tuple[str, Scope]]:
        """The tenants and scopes that requests of this process used within the last hour: those used last."""
        last = islice(reversed(self._remainders.items()), _MOST_REFRESHED)
        return [(tenant, one.scope) for (tenant, _), one in last if one.used_s > now_s - _REFRESHED_FOR_S]

    def admit(
        self, candidate: AdmissionRequest, under_way: Iterable[AdmissionRequest], now_s: float
    ) -> AdmissionVerdict:
        """Decide without Redis. Count the request if it is admitted.

        Args:
            under_way: what runs here. It is counted when Redis has just gone away.
        """
        if self._away_since_s is None:
            self._begin(under_way, candidate.id, now_s)
        chosen = candidate.variants[0]
        no = self._check(candidate, chosen, now_s)
        if no is not None and no.limit == "budget":
            terms = candidate.scopes[no.scope - 1].budget
            last = candidate.variants[-1]
            if terms is not None and terms.on_hard == "student_only" and chosen.kind < last.kind == _STUDENT_ONLY:
                chosen, no = last, self._check(candidate, last, now_s)
        if no is not None:
            return AdmissionVerdict(no=no)
        self._hold(candidate, _reserved(chosen), _names(candidate, of_budgets=True))
        for name in self._holds[candidate.id].names:
            self._uses[name].add(chosen.intent.tokens, now_s)
        return AdmissionVerdict(variant=chosen.kind)

    def settle(self, request_id: str, cost_usd: Decimal) -> None:
        """A request is over. Until Redis is told, what it did cost counts here in place of what it reserved."""
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

    def told(self, ids: Iterable[str]) -> None:
        """Redis counts these requests now. Until the fleet has settled, they count here as well."""
        if not self._holds:
            return
        if self._away_since_s is not None:
            self._lost += [one for one in ids if one in self._holds]
            return
        for one in ids:
            hold = self._holds.pop(one, None)
            if hold is not None:
                for name in hold.names:
                    self._uses[name].parallel -= hold.running
                for name in hold.budgets:
                    self._uses[name].pico -= hold.pico

    def lost(self, request_id: str) -> None:
        """Redis will never be told of this request. It counts here until Redis is back."""
        if request_id in self._holds:
            self._lost.append(request_id)

    def fail(self) -> None:
        """Redis is away again before the fleet has settled."""
        self._settled_s = None

    def recover(self, now_s: float) -> None:
        """Redis answers. Once the fleet has settled, it decides again; what it was not told yet stays held."""
        if self._away_since_s is None:
            return
        if self._settled_s is None:
            self._settled_s = now_s + min(LONGEST_REST_S, now_s - self._away_since_s) + _SETTLE_S
        if now_s < self._settled_s:
            return
        self._away_since_s = self._settled_s = None
        lost, self._lost = self._lost, []
        self.told(lost)
        held = {name for hold in self._holds.values() for name in hold.names}
        self._uses = {name: use for name, use in self._uses.items() if name in held}

    def _begin(self, under_way: Iterable[AdmissionRequest], but: str, now_s: float) -> None:
        """Count running requests that Redis admitted. They use parallel slots; remainders exclude their money."""
        self._away_since_s = now_s
        for candidate in under_way:
            if candidate.id != but and candidate.id not in self._holds:
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
        for place, scope in enumerate(candidate.scopes, 1):
            no = self._check_scope(candidate.tenant, scope, place, variant, now_s)
            if no is not None:
                return no
        return None

    def _check_scope(self, tenant: str, scope: Scope, place: int, variant: Variant, now_s: float) -> Refusal | None:
        name = (tenant, scope.name)
        use = self._uses.get(name) or _Use()
        fleet = max(1, self._fleet())
        if scope.budget is not None:
            most, need = self._allowance(name, fleet), _reserved(variant)
            if use.pico + need > most or len(self._holds) >= _MOST_HOLDS:
                return Refusal("budget", place, str(most), str(use.pico), str(need), 0)
        if scope.parallel and use.parallel >= (most := _share(scope.parallel, fleet)):
            return Refusal("parallel", place, str(most), str(use.parallel), "1", _SECOND_US)
        requests, tokens = use.within_minute(now_s) if scope.rpm or scope.tpm else (0, 0)
        retry_us = int((use.seconds[0][0] + _MINUTE_S + 1 - now_s) * _SECOND_US) if use.seconds else _SECOND_US
        if scope.rpm and requests >= (most := _share(scope.rpm, fleet)):
            return Refusal("requests", place, str(most), str(requests), "1", retry_us)
        need = variant.intent.tokens
        if scope.tpm and tokens + need > (most := _share(scope.tpm, fleet)):
            return Refusal("tokens", place, str(most), str(tokens), str(need), retry_us)
        return None

    def _allowance(self, name: _Name, fleet: int) -> int:
        """Return the amount that this process may spend until Redis is back."""
        known = self._remainders.get(name)
        assert self._away_since_s is not None, "an allowance holds while Redis is away"
        if known is None or known.learned_s < self._away_since_s - FRESH_S:
            return 0
        if self._joined_s() > self._away_since_s - KNOWN_AFTER_S:
            return 0
        return max(0, known.pico) // (_PART * fleet)


def _names(candidate: AdmissionRequest, *, of_budgets: bool = False) -> tuple[_Name, ...]:
    return tuple(
        (candidate.tenant, scope.name) for scope in candidate.scopes if not of_budgets or scope.budget is not None
    )


def _share(limit: int, fleet: int) -> int:
    return max(1, limit // fleet)


def _reserved(variant: Variant) -> int:
    return int(picodollars(variant.intent.reserved_usd))
