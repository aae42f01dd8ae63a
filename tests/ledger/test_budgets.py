"""What a tenant or a key may spend: reserved before it is spent, settled to the true cost, and never passed."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.allowances import Period
from gateway.ledger.intent import abandoned
from gateway.ledger.redis_ledger import Candidate, Exchanged, RedisLedger, Settlement, Variant
from gateway.ledger.refusals import period_end
from gateway.ledger.scopes import BudgetTerms, Scope, dollars, picodollars
from gateway.redis_keys import RedisKeys
from tests.ledger.drafts import closed, guided, intent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.ledger.intent import Intent
    from gateway.ledger.verdict import Verdict


def budget(
    most: str,
    *,
    soft: str | None = None,
    period: Period | None = None,
    aligned: bool = True,
    on_soft: str = "warn",
    on_hard: str = "reject",
    name: str = "tenant",
) -> Scope:
    period = period or Period(1, "mo")
    terms = BudgetTerms(
        picodollars(Decimal(most)),
        "" if soft is None else picodollars(Decimal(soft)),
        period.unit,
        period.count,
        period.seconds,
        aligned,
        on_soft,
        on_hard,
    )
    return Scope(name, 0, 0, 0, terms)


class Purse:
    """The ledgers of three processes on one Redis."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}")
        self.processes = {name: RedisLedger(redis, self.keys, name, 100, 10) for name in ("ann", "bob", "carl")}
        self.events: list[tuple[str, str]] = []

    def request(self, usd: str, *scopes: Scope, by: str = "ann") -> Intent:
        charges = tuple(scope.charge for scope in scopes)
        return msgspec.structs.replace(intent(by), reserved_usd=Decimal(usd), charges=charges)

    async def tell(self, *asked: Candidate, settled: tuple[Settlement, ...] = (), by: str = "ann") -> Exchanged:
        brought = await self.processes[by].exchange(asked, settled)
        self.events += [(one.scope.name, one.event.kind) for one in brought.events]
        return brought

    async def ask(self, usd: str, *scopes: Scope, by: str = "ann", force: bool = False) -> Verdict:
        self.last = self.request(usd, *scopes, by=by)
        brought = await self.tell(Candidate(scopes, (Variant(1, self.last),), force), by=by)
        return brought.verdicts[self.last.id][0]

    async def choose(self, usd: dict[int, str], *scopes: Scope) -> int:
        """The kind of plan of one request that may cost so much, by kind; 0: none."""
        base = self.request("0", *scopes)
        variants = tuple(
            Variant(kind, msgspec.structs.replace(base, reserved_usd=Decimal(most))) for kind, most in usd.items()
        )
        verdict = (await self.tell(Candidate(scopes, variants))).verdicts[base.id][0]
        if verdict.variant:
            self.last = next(one.intent for one in variants if one.kind == verdict.variant)
        return verdict.variant

    async def settle(self, one: Intent, usd: str, *, by: str = "ann") -> list[str]:
        receipt = msgspec.structs.replace(closed(guided()), id=one.id, cost_usd=Decimal(usd))
        return (await self.tell(settled=(Settlement(receipt, one),), by=by)).replaced

    async def money(self, scope: Scope) -> tuple[Decimal, Decimal]:
        """Spent, and reserved."""
        spent, reserved = await self.redis.hmget(self.keys.scope("acme", scope.name)[2], "spent", "reserved")
        return dollars((spent or b"0").decode()), dollars((reserved or b"0").decode())


@pytest_asyncio.fixture
async def purse(redis_url: str) -> AsyncIterator[Purse]:
    async with Redis.from_url(redis_url) as redis:
        yield Purse(redis)


async def test_a_budget_is_reserved_from_settled_and_never_passed(purse: Purse) -> None:
    scope = budget("1")
    assert (await purse.ask("0.6", scope)).no is None
    first = purse.last
    refused = (await purse.ask("0.6", scope)).no
    assert refused is not None
    assert (refused.limit, dollars(refused.most), dollars(refused.used), dollars(refused.need)) == (
        "budget",
        1,
        Decimal("0.6"),
        Decimal("0.6"),
    )
    await purse.settle(first, "0.15")
    assert await purse.money(scope) == (Decimal("0.15"), 0)
    assert (await purse.ask("0.85", scope)).no is None
    assert (await purse.ask("0.000000000001", scope)).no is not None


async def test_processes_that_ask_at_once_share_one_budget(purse: Purse) -> None:
    """90 callers over three processes; what is reserved and what is spent never come to more than there is."""
    scope = budget("1")
    requests = [purse.request("0.03", scope, by=by) for _ in range(30) for by in purse.processes]

    async def spend(one: Intent) -> bool:
        brought = await purse.tell(Candidate((scope,), (Variant(1, one),)), by=one.owner)
        if brought.verdicts[one.id][0].no is not None:
            return False
        spent, reserved = await purse.money(scope)
        assert spent + reserved <= 1
        await purse.settle(one, "0.03", by=one.owner)
        return True

    done = Counter(await asyncio.gather(*(spend(one) for one in requests)))
    assert done == {True: 33, False: 57}
    assert await purse.money(scope) == (Decimal("0.99"), 0)


async def test_the_sum_of_receipts_is_what_was_spent_to_the_last_digit(purse: Purse) -> None:
    scope = budget("1000000")
    costs = [f"{number * 7}.{number:012d}" for number in range(1, 60)]
    for cost in costs:
        await purse.ask("500", scope)
        await purse.settle(purse.last, cost)
    assert await purse.money(scope) == (sum(map(Decimal, costs)), 0)


async def test_a_receipt_that_is_told_twice_is_paid_once(purse: Purse) -> None:
    scope = budget("1")
    await purse.ask("0.5", scope)
    for _ in range(3):
        await purse.settle(purse.last, "0.2")
    assert await purse.money(scope) == (Decimal("0.2"), 0)


async def test_the_dead_pay_what_they_had_reserved_until_the_truth_is_known(purse: Purse) -> None:
    scope = budget("1")
    await purse.ask("0.5", scope)
    left = purse.last
    for by in ("bob", "carl"):
        await purse.processes[by].abandon("acme", "ann", {left.id: Settlement(abandoned(left, 0), left)})
    assert await purse.money(scope) == (Decimal("0.5"), 0)
    assert await purse.settle(left, "0.123456789012") == [left.id]
    assert await purse.money(scope) == (Decimal("0.123456789012"), 0)
    assert await purse.settle(left, "0.123456789012") == []
    assert await purse.money(scope) == (Decimal("0.123456789012"), 0)


async def test_a_failed_request_gives_back_all_that_it_did_not_spend(purse: Purse) -> None:
    scope = budget("1")
    await purse.ask("1", scope)
    await purse.settle(purse.last, "0")
    assert await purse.money(scope) == (0, 0)
    assert (await purse.ask("1", scope)).no is None


async def test_what_went_on_unasked_is_paid_when_redis_is_back(purse: Purse) -> None:
    """Told before its receipt or with it alone; the budget may be passed by it, and then is spent."""
    scope = budget("1")
    await purse.ask("3", scope, force=True)
    assert await purse.money(scope) == (0, 3)
    await purse.settle(purse.last, "0.7")
    unknown = purse.request("3", scope)
    await purse.settle(unknown, "0.6")
    assert await purse.money(scope) == (Decimal("1.3"), 0)
    assert (await purse.ask("0.000001", scope)).no is not None


async def test_a_period_of_the_calendar_begins_with_nothing_spent(purse: Purse) -> None:
    """What is still under way stays reserved, and is paid out of the period in which it ends."""
    scope = budget("1")
    await purse.ask("0.3", scope)
    await purse.settle(purse.last, "0.3")
    await purse.ask("0.5", scope)
    under_way = purse.last
    key = purse.keys.scope("acme", "tenant")[2]
    now = datetime.now(UTC)
    assert await purse.redis.hget(key, "period") == f"mo1:{now.year * 12 + now.month - 1}".encode()
    await purse.redis.hset(key, "period", "mo1:12")
    assert (await purse.ask("0.6", scope)).no is not None, "0.5 are reserved"
    assert (await purse.ask("0.4", scope)).no is None
    await purse.settle(under_way, "0.2")
    assert await purse.money(scope) == (Decimal("0.2"), Decimal("0.4"))


@pytest.mark.parametrize(
    ("period", "number"),
    [
        (Period(1, "d"), lambda now: (now - datetime(1970, 1, 1, tzinfo=UTC)).days),
        (Period(1, "w"), lambda now: (now - datetime(1969, 12, 29, tzinfo=UTC)).days // 7),
        (Period(3, "mo"), lambda now: (now.year * 12 + now.month - 1) // 3),
        (Period(12, "h"), lambda now: int(now.timestamp()) // 43_200),
    ],
)
async def test_periods_are_those_of_the_calendar(purse: Purse, period: Period, number: object) -> None:
    """Days and weeks (from Monday) and months, in UTC."""
    await purse.ask("0.1", budget("1", period=period))
    held = await purse.redis.hget(purse.keys.scope("acme", "tenant")[2], "period")
    now = datetime.now(UTC)
    wanted = {f"{period.unit}{period.count}:{number(at)}" for at in (now, now - timedelta(seconds=5))}  # type: ignore[operator]
    assert held.decode() in wanted


@pytest.mark.parametrize(
    ("unit", "count", "now", "end"),
    [
        ("mo", 1, "2026-11-25T10:00:00", "2026-12-01T00:00:00"),
        ("mo", 1, "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
        ("mo", 3, "2026-11-25T10:00:00", "2027-01-01T00:00:00"),
        ("mo", 12, "2028-02-29T00:00:00", "2029-01-01T00:00:00"),
        ("w", 1, "2026-11-25T10:00:00", "2026-11-30T00:00:00"),
        ("w", 1, "2026-11-30T00:00:00", "2026-12-07T00:00:00"),
        ("d", 1, "2026-11-25T10:00:00", "2026-11-26T00:00:00"),
        ("h", 12, "2026-11-25T13:00:00", "2026-11-26T00:00:00"),
    ],
)
def test_callers_are_told_when_a_period_ends(unit: str, count: int, now: str, end: str) -> None:
    at = int(datetime.fromisoformat(now + "+00:00").timestamp())
    assert datetime.fromtimestamp(period_end(unit, count, at), UTC).isoformat() == end + "+00:00"


async def test_a_rolling_budget_comes_back_as_its_spending_gets_older(purse: Purse) -> None:
    """In hundredths of its time, none too early."""
    scope = budget("1", period=Period(100, "h"), aligned=False)
    await purse.ask("0.4", scope)
    await purse.settle(purse.last, "0.4")
    ring = purse.keys.scope("acme", "tenant")[2] + ":360000"
    await _older(purse.redis, ring, 60)
    await purse.ask("0.6", scope)
    await purse.settle(purse.last, "0.6")
    assert (await purse.ask("0.1", scope)).no is not None
    await _older(purse.redis, ring, 40)
    assert (await purse.ask("0.1", scope)).no is not None, "its last hour has not left"
    await _older(purse.redis, ring, 1)
    assert (await purse.ask("0.4", scope)).no is None
    assert (await purse.ask("0.1", scope)).no is not None


async def _older(redis: Redis, ring: str, slots: int) -> None:
    held = {name.decode(): value for name, value in (await redis.hgetall(ring)).items()}
    await redis.delete(ring)
    moved = {f"u{int(name[1:]) - slots}" if name[1:].isdigit() else name: value for name, value in held.items()}
    await redis.hset(ring, mapping=moved | {"from": str(int(held["from"]) - slots)})


async def test_the_soft_line_is_told_once_by_whoever_crosses_it(purse: Purse) -> None:
    """And again only when spending was well below it in between."""
    scope = budget("1", soft="0.5")
    await purse.ask("0.5", scope)
    held = purse.last
    assert purse.events == []
    verdicts = [await purse.ask("0.001", scope) for _ in range(3)]
    assert [verdict.soft for verdict in verdicts] == [True] * 3
    assert purse.events == [("tenant", "soft")]
    await purse.settle(held, "0.1")
    assert not (await purse.ask("0.5", scope)).soft
    assert (await purse.ask("0.001", scope)).soft
    assert purse.events == [("tenant", "soft")] * 2


async def test_past_the_soft_line_answers_become_cheaper(purse: Purse) -> None:
    """As the budget says: half the guidance, or none. A request that has no cheaper way goes as planned."""
    ways = {1: "0.3", 2: "0.2", 3: "0.1"}
    for on_soft, kind in (("warn", 1), ("shorten", 2), ("student_only", 3)):
        scope = budget("1", soft="0.25", on_soft=on_soft, name=f"key:{on_soft}")
        assert await purse.choose(ways, scope) == 1
        assert await purse.choose(ways, scope) == kind
        assert await purse.money(scope) == (0, Decimal("0.3") + Decimal(ways[kind]))
        await purse.settle(purse.last, "0.01")
        assert await purse.money(scope) == (Decimal("0.01"), Decimal("0.3")), "what it had reserved is given back"
    alone = budget("1", soft="0.25", on_soft="shorten", name="key:alone")
    assert [await purse.choose({1: "0.3"}, alone) for _ in range(3)] == [1, 1, 1]


async def test_the_stricter_of_two_budgets_decides(purse: Purse) -> None:
    both = budget("10", soft="0.2", on_soft="student_only"), budget("1", soft="0.2", on_soft="shorten", name="key:prod")
    ways = {1: "0.3", 2: "0.2", 3: "0.1"}
    assert [await purse.choose(ways, *both) for _ in range(2)] == [1, 3]


async def test_what_the_teacher_is_too_dear_for_may_go_to_the_student_alone(purse: Purse) -> None:
    """For as long as that fits; then there is nothing left, and no budget is passed."""
    scope = budget("1", on_hard="student_only")
    ways = {1: "0.4", 3: "0.1"}
    assert [await purse.choose(ways, scope) for _ in range(6)] == [1, 1, 3, 3, 0, 0]
    assert await purse.money(scope) == (0, 1)
    assert purse.events == [("tenant", "hard")]


async def test_a_key_and_its_tenant_pay_together_or_not_at_all(purse: Purse) -> None:
    """What one of the two refuses is reserved in neither."""
    both = budget("1"), budget("0.5", name="key:prod")
    assert (await purse.ask("0.4", *both)).no is None
    refused = (await purse.ask("0.2", *both)).no
    assert refused is not None
    assert refused.scope == 2
    assert [await purse.money(scope) for scope in both] == [(0, Decimal("0.4"))] * 2
    assert (await purse.ask("0.6", both[0])).no is None
    assert (await purse.ask("0.05", *both)).no is not None


async def test_a_raise_holds_until_it_ends(purse: Purse) -> None:
    scope = budget("1")
    key = purse.keys.scope("acme", "tenant")[2]
    now = int((await purse.redis.time())[0])
    await purse.redis.hset(key, mapping={"raise": picodollars(Decimal("0.5")), "raise_until": now + 60})
    assert (await purse.ask("1.5", scope)).no is None
    await purse.settle(purse.last, "0")
    await purse.redis.hset(key, "raise_until", now - 1)
    refused = (await purse.ask("1.5", scope)).no
    assert refused is not None
    assert dollars(refused.most) == 1


async def test_a_budget_of_a_million_counts_to_the_cent_beyond_what_numbers_of_lua_can_hold(purse: Purse) -> None:
    scope = budget("1000000")
    for cost in ("999998.999999999999", "0.000000000001", "0.5"):
        await purse.ask("1", scope, force=True)
        await purse.settle(purse.last, cost)
    assert await purse.money(scope) == (Decimal("999999.5"), 0)
    assert (await purse.ask("0.6", scope)).no is not None
    assert (await purse.ask("0.4", scope)).no is None
