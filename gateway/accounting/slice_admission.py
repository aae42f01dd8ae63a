"""Admit a request of a tenant with slices: try one slice, and the others if it has no room.

The requests of a process use one slice for some seconds, so that they and their receipts share script calls. Then they
use the next one. Each process begins with a random slice.

A slice at a limit of requests per minute is not called again before the limit has room. Otherwise each request above
the limit would cost a script call in every slice.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from gateway.accounting.redis_ledger import AdmissionRequest, Variant
from gateway.accounting.slice_verdict import SliceVerdict, merged, with_whole_limits
from gateway.accounting.slices import share_of, usable
from gateway.redis.keys import slice_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.accounting.scopes import Scope
    from gateway.accounting.slice_events import SliceEvents
    from gateway.accounting.store import Admitted, ReceiptStore
    from gateway.config.limits import OnRedisFailure

_MAX_FULL = 10_000
_US = 1_000_000


class _Full(NamedTuple):
    """The refusal of a slice at a limit of requests per minute. Until a loop time, the slice would refuse again."""

    scope: Scope  # with the part of the slice
    answer: SliceVerdict
    until_s: float


class SliceAdmission:
    """Admit requests in slices of their tenants.

    The next slice is tried only after a refusal, so at most one slice admits a request. After an exchange without a
    reply, the request stays in its slice: Redis may have admitted it there.

    Args:
        events: sends the events of budgets; None: no events.
        keep_s: seconds for which a process tries the same slice first.
    """

    def __init__(self, store: ReceiptStore, events: SliceEvents | None = None, *, keep_s: float = 5.0) -> None:
        self._store, self._events, self._keep_s = store, events, keep_s
        self._first: dict[str, tuple[int, float]] = {}  # tenant -> the slice to try first, until a loop time
        self._full: dict[tuple[str, str], _Full] = {}  # by slice and scope

    async def admit(self, whole: AdmissionRequest, slices: int, *, on_failure: OnRedisFailure) -> Admitted:
        """Return the verdict on a request, with the limits of its tenant. `ReceiptStore.admit` has the other facts."""
        numbers = self._order(whole, usable(whole.scopes, slices))
        refusals = self._known_refusals(whole, numbers, slices)
        # Call one slice even if all are full.
        soonest = min(numbers, key=lambda one: refusals[one].refusal.retry_us if one in refusals else 0)
        for number in [one for one in numbers if one not in refusals] or [soonest]:
            part, asked_s = _in_slice(whole, number, slices), asyncio.get_running_loop().time()
            admitted = await self._store.admit(part, on_failure=on_failure)
            if admitted is None:
                return None
            answer = SliceVerdict(*admitted)
            if answer.verdict.refusal is None:
                first, until_s = self._first[whole.tenant]
                if first in refusals:  # later requests begin with this slice, too
                    self._first[whole.tenant] = number, until_s
                if answer.verdict.soft and self._events is not None:
                    self._events.note("soft", whole.tenant, slices, whole.scopes)
                return with_whole_limits(answer, whole.scopes, number, slices)
            refusals[number] = answer
            self._note_refusal(part, answer, asked_s)
        refused = merged(refusals, whole.scopes, slices)
        if self._events is not None and refused.refusal.limit == "budget" and refused.now_us is not None:
            self._events.note("hard", whole.tenant, slices, [whole.scopes[refused.refusal.scope - 1]])
        return refused

    def _note_refusal(self, part: AdmissionRequest, answer: SliceVerdict, asked_s: float) -> None:
        refusal = answer.refusal
        if refusal.limit != "requests" or answer.now_us is None:
            return
        if len(self._full) >= _MAX_FULL:
            self._full.clear()
        scope = answer.scopes[refusal.scope - 1]
        alone = SliceVerdict(replace(answer.verdict, refusal=replace(refusal, scope=1)), (scope,), answer.now_us)
        self._full[part.namespace, scope.name] = _Full(scope, alone, asked_s + refusal.retry_us / _US)

    def _known_refusals(self, whole: AdmissionRequest, numbers: Iterable[int], slices: int) -> dict[int, SliceVerdict]:
        """Return the refusals that slices would repeat. The count of a full slice can only decrease."""
        if not self._full:
            return {}
        now, found = asyncio.get_running_loop().time(), {}
        for number in numbers:
            name = slice_name(whole.tenant, number)
            for scope in whole.scopes:
                full = self._full.get((name, scope.name))
                # After a policy edit, the slice has another part.
                if full is not None and now < full.until_s and full.scope == share_of(scope, number, slices):
                    refusal = replace(full.answer.refusal, retry_us=round((full.until_s - now) * _US))
                    found[number] = full.answer._replace(verdict=replace(full.answer.verdict, refusal=refusal))
                    break
        return found

    def _order(self, whole: AdmissionRequest, slices: int) -> list[int]:
        """Return the slices to try, in random order after the first: those whose nodes are up, or all if none is up."""
        numbers, now = random.sample(range(slices), slices), asyncio.get_running_loop().time()
        first, until_s = self._first.get(whole.tenant, (numbers[0], now))
        if now >= until_s:
            first = (first + 1) % slices
            self._first[whole.tenant] = first, now + self._keep_s
        numbers.sort(key=lambda one: one != first)
        return [one for one in numbers if self._store.is_up(slice_name(whole.tenant, one))] or numbers


def _in_slice(whole: AdmissionRequest, number: int, slices: int) -> AdmissionRequest:
    """Return a request as one to a slice, with the parts of the limits."""
    variants = tuple([Variant(one.kind, replace(one.intent, slice=number)) for one in whole.variants])
    scopes = tuple([share_of(scope, number, slices) for scope in whole.scopes])
    return AdmissionRequest(scopes, variants, whole.force, slices)
