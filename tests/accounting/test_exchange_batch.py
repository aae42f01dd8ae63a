"""The content of an exchange: rejected tenants do not take the place of others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.accounting.exchange_batch import next_settlements, still_rejected, with_unsure


def settlements(names: str) -> list[Any]:
    """Return a settlement for each letter, which is its namespace."""
    return [SimpleNamespace(namespace=name) for name in names]


def requests(*names: str) -> dict[str, Any]:
    return {name: SimpleNamespace(namespace=name[0]) for name in names}


@pytest.mark.parametrize(
    ("waiting", "limit", "rejected", "chosen"),
    [
        ("aabbc", 3, "", "aab"),
        ("aaaabb", 3, "a", "abb"),  # one receipt of the rejected tenant, and those of the other one
        ("aaaa", 3, "a", "a"),
        ("abcdxx", 4, "abcd", "abxx"),  # half of the places
        ("xxxxa", 2, "a", "xx"),
        ("ab", 1, "ab", "a"),
        ("ffffx", 2, "", "x"),  # its node failed
    ],
)
def test_rejected_receipts_leave_places_for_others(waiting: str, limit: int, rejected: str, chosen: str) -> None:
    found = next_settlements(settlements(waiting), limit, set(rejected), lambda name: name != "f")
    assert "".join(one.namespace for one in found) == chosen


def test_unsure_requests_of_rejected_tenants_come_last() -> None:
    unsent, unsure = requests("x1", "a1"), requests("a1", "a2", "y1")
    found = with_unsure(unsent, unsure, {"a"})
    assert list(found) == ["y1", "x1", "a1", "a2"]
    assert found["a1"] is unsent["a1"]


def test_a_tenant_is_rejected_until_a_call_succeeds() -> None:
    admitted: list[Any] = list(requests("a1").values())
    assert still_rejected("abcd", admitted, settlements("b"), "c", {"e"}) == {"d", "e"}
    assert still_rejected("a", admitted, [], "", {"a"}) == {"a"}
