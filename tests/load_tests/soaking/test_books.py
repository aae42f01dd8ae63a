"""The counts of the soak test: receipts compared with the results of callers."""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest

from load_tests.soaking.books import Check, Stored, none, same
from load_tests.soaking.tally import Kind, RequestResult, Tally, short_id
from tests.accounting.receipt_builders import closed, guided

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt

JSON = Kind("student", 1, "chat-student")
WRONG = Kind("bad body", 1, "", needless=True)
LEAVES = Kind("left during the engine call", 1, "slow", who=("acme", "leaver"), leaves="received")
DEVICE = Kind("guidance for a device", 1, "chat", "/v1/guidance", reports=True)
HASTY = Kind("left early", 1, "chat-student", who=("acme", "hasty"), leaves="hasty")


def new_id() -> str:
    return f"req_{secrets.token_hex(12)}"


def receipt(request_id: str, *, usd: str = "0.1", key: str = "main", status: str = "ok", suffix: str = "") -> Receipt:
    changed = {"id": request_id + suffix, "key": key, "status": status, "cost_usd": Decimal(usd)}
    return msgspec.structs.replace(closed(guided()), **changed, shadow_of=request_id if suffix else None)


def report(guidance_id: str) -> Receipt:
    return msgspec.structs.replace(receipt(guidance_id, usd="0", suffix="-edge"), shadow_of=None, edge_of=guidance_id)


def answered(kind: Kind, status: int = 200, code: str | None = None) -> RequestResult:
    return RequestResult(kind, new_id(), status, code, ended=True)


def stored(tally: Tally, *receipts: Receipt) -> Stored:
    found = Stored()
    for one in receipts:
        found.add(one, tally)
    return found


def test_each_result_is_counted_once() -> None:
    tally = Tally()
    results = [
        answered(JSON),
        answered(JSON, 502, "engine_failed"),
        answered(JSON, 429, "rate_limit_exceeded"),
        answered(JSON, 503, "overloaded"),
        answered(JSON, 503, "store_unavailable"),
        answered(WRONG, 400),
        RequestResult(JSON, new_id(), 200),  # left midway: it knows its id
        RequestResult(LEAVES, received=True),
        RequestResult(HASTY),
        RequestResult(JSON, new_id(), 200, ended=True, broken="a stream without an end"),
    ]
    for result in results:
        tally.note(result)
    assert (tally.replies, tally.left, tally.broken) == (6, 3, 1)
    assert (len(tally.kept), len(tally.refused), len(tally.either)) == (4, 3, 1)
    assert (tally.left_received, dict(tally.left_unreceived)) == (1, {"leaver": 0, "hasty": 1})
    assert tally.ids_twice == 0
    tally.note(results[0])
    assert tally.ids_twice == 1


def test_a_request_that_failed_without_redis_may_have_one_receipt() -> None:
    tally = Tally()
    one = answered(JSON, 503, "store_unavailable")
    tally.note(one)
    assert one.request_id is not None
    assert len(stored(tally).either) == 0
    assert len(stored(tally, receipt(one.request_id)).either) == 1
    twice = stored(tally, receipt(one.request_id), receipt(one.request_id))
    assert (twice.twice, twice.strangers, twice.needless) == (1, 0, 0)


def test_a_receipt_belongs_to_a_reply_a_disconnect_or_a_shadow() -> None:
    tally = Tally()
    one = answered(JSON)
    tally.note(one)
    assert one.request_id is not None
    found = stored(
        tally,
        receipt(one.request_id),
        receipt(one.request_id, suffix="-shadow"),
        receipt(new_id(), key="leaver", status="client_gone"),
        receipt(new_id(), key="hasty", status="client_gone"),
    )
    assert (found.receipts, found.shadows, found.strangers, found.twice) == (4, 1, 0, 0)
    assert found.found == tally.kept == {short_id(one.request_id)}
    assert found.left == {"leaver": 1, "hasty": 1}
    assert found.spent_usd["acme", None] == Decimal("0.4")
    assert found.spent_usd["acme", "main"] == Decimal("0.2")


def test_a_report_of_a_device_is_no_request_and_has_one_receipt() -> None:
    tally = Tally()
    taken, unsure, lost = (answered(DEVICE) for _ in range(3))
    taken.reported, unsure.reported, lost.reported, taken.not_taken = "taken", "unsure", "taken", 2
    for result in (taken, unsure, lost):
        tally.note(result)
    assert (len(tally.kept), len(tally.reported), len(tally.unsure), tally.not_taken) == (3, 2, 1, 2)
    ids = [str(result.request_id) for result in (taken, unsure, lost)]
    found = stored(tally, *map(receipt, ids), *(report(one) for one in (ids[0], ids[0], ids[1], new_id())))
    assert (found.receipts, found.twice, found.strangers) == (7, 1, 1)
    assert found.found == tally.kept
    assert tally.reported - found.reported == {short_id(ids[2])}
    assert stored(tally, *map(receipt, ids), report(ids[0]), report(ids[1])).requests == 3


def test_missing_duplicate_and_unexpected_receipts_are_counted() -> None:
    tally = Tally()
    kept, lost, refused = answered(JSON), answered(JSON), answered(WRONG, 400)
    for result in (kept, lost, refused):
        tally.note(result)
    assert kept.request_id is not None
    assert refused.request_id is not None
    found = stored(
        tally,
        receipt(kept.request_id),
        receipt(kept.request_id, status="abandoned"),
        receipt(refused.request_id),
        receipt(new_id()),
        receipt(new_id(), suffix="-shadow"),
    )
    assert (found.twice, found.needless, found.strangers, found.abandoned) == (1, 1, 2, 1)
    assert len(tally.kept - found.found) == 1


@pytest.mark.parametrize(("check", "holds"), [
    (none("receipts missing", 0), True), (none("receipts missing", 1), False),
    (same("USD", Decimal("0.10"), Decimal("0.1")), True), (same("USD", Decimal("0.1"), Decimal("0.1000000001")), False),
    (Check("left", 2, 2, 3), True), (Check("left", 1, 2, 3), False), (Check("left", 4, 2, 3), False),
])  # fmt: skip
def test_a_check_holds_within_its_bounds(check: Check, *, holds: bool) -> None:
    assert check.holds is holds
