"""Divide the limits and budgets of a very large tenant into slices, one hash slot of a Redis Cluster each.

The parts of all slices add up to the limit, so slices never admit more than the limit. A request is admitted in one
slice, which needs room for all of it. Pure.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.accounting.scopes import BudgetTerms, Scope

_MAX_CACHED = 50_000


def share(amount: int, number: int, slices: int) -> int:
    """Return the part of an amount for a slice. The first slices have the remainder of the division."""
    return amount // slices + (number < amount % slices)


@lru_cache(_MAX_CACHED)
def share_of(scope: Scope, number: int, slices: int) -> Scope:
    """Return a scope with the parts of its limits and its budget for a slice."""
    return replace(
        scope,
        rpm=share(scope.rpm, number, slices),
        tpm=share(scope.tpm, number, slices),
        parallel=share(scope.parallel, number, slices),
        budget=None if scope.budget is None else _terms(scope.budget, number, slices),
    )


def _terms(terms: BudgetTerms, number: int, slices: int) -> BudgetTerms:
    soft = str(share(int(terms.soft), number, slices)) if terms.soft else ""
    return replace(terms, max=str(share(int(terms.max), number, slices)), soft=soft)


def usable(scopes: Sequence[Scope], slices: int) -> int:
    """Return the number of slices, from the first one on, in which each limit has a part.

    A limit below the number of slices, such as a limit of one request at a time, has none in the last slices.
    """
    limits = (limit for scope in scopes for limit in (scope.rpm, scope.tpm, scope.parallel) if limit)
    return min([slices, *limits])
