"""Choose the content of an exchange. Pure. Functions get tenants and slices of tenants by their namespaces.

A node of a cluster that is full or cannot save rejects the calls of its tenants, and those of other tenants succeed.
Requests and receipts of rejected tenants must not take the place of others. One receipt of each such tenant shows
whether its node accepts receipts again.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from gateway.accounting.redis_ledger import AdmissionRequest, Settlement


def next_settlements(
    oldest_first: Iterable[Settlement], limit: int, rejected: Collection[str], can_send: Callable[[str], bool]
) -> list[Settlement]:
    """Return at most `limit` settlements: one of each rejected namespace in up to half of the places, and the oldest
    ones of others. `can_send` returns False for namespaces whose node failed."""
    sendable = cache(can_send)
    probes: dict[str, Settlement] = {}
    others: list[Settlement] = []
    for one in oldest_first:
        name = one.namespace
        if not sendable(name):
            continue
        if name not in rejected:
            others.append(one)
        elif len(probes) < max(1, limit // 2):
            probes.setdefault(name, one)
        if len(others) == limit:
            break
    return [*probes.values(), *others][:limit]


def with_unsure(
    unsent: Mapping[str, AdmissionRequest], unsure: Mapping[str, AdmissionRequest], rejected: Collection[str]
) -> dict[str, AdmissionRequest]:
    """Return the requests to send by id: unsure ones first, except those of rejected namespaces, which come last."""
    first = {name: one for name, one in unsure.items() if one.namespace not in rejected}
    return {**first, **unsent, **unsure, **unsent}  # a request in both keeps its unsent form


def still_rejected(
    before: Iterable[str],
    admitted: Sequence[AdmissionRequest],
    settled: Sequence[Settlement],
    beats: Iterable[str],
    failed: Collection[str],
) -> set[str]:
    """Return the rejected namespaces after an exchange. Those whose calls did not fail are no longer among them."""
    called = {*beats, *(one.namespace for one in admitted), *(one.namespace for one in settled)}
    return {*before} - called | {*failed}
