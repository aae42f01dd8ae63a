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


def parts_of(scope: Scope, slices: int) -> int:
    """Return the number of parts of a scope's limits and budget, one for each slice from the first one on.

    A limit below the number of slices, such as a limit of one request at a time, has fewer parts. Then all limits and
    the budget of the scope have this number of parts, so that requests can use all of each.
    """
    return min([slices, *(limit for limit in (scope.rpm, scope.tpm, scope.parallel) if limit)])


def share(amount: int, number: int, parts: int) -> int:
    """Return the part of an amount for a slice. The first slices have the remainder of the division."""
    return amount // parts + (number < amount % parts) if number < parts else 0


@lru_cache(_MAX_CACHED)
def share_of(scope: Scope, number: int, slices: int) -> Scope:
    """Return a scope with the parts of its limits and its budget for a slice."""
    parts = parts_of(scope, slices)
    return replace(
        scope,
        rpm=share(scope.rpm, number, parts),
        tpm=share(scope.tpm, number, parts),
        parallel=share(scope.parallel, number, parts),
        budget=None if scope.budget is None else _terms(scope.budget, number, parts),
    )


def _terms(terms: BudgetTerms, number: int, parts: int) -> BudgetTerms:
    soft = str(share(int(terms.soft), number, parts)) if terms.soft else ""
    return replace(terms, max=str(share(int(terms.max), number, parts)), soft=soft)


def usable(scopes: Sequence[Scope], slices: int) -> int:
    """Return the number of slices, from the first one on, in which each scope has a part."""
    return min([slices, *(parts_of(scope, slices) for scope in scopes)])
