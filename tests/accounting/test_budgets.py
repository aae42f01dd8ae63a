"""Budgets: reserved at admission, settled at the true cost, and never exceeded."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.accounting.budgets import KEPT_S, Account, Balance, Budgets, Raise
from gateway.accounting.intent import abandoned
from gateway.accounting.redis_ledger import MAX_FORCED_USD, AdmissionRequest, Settlement, Variant
from gateway.accounting.scopes import Scope
from gateway.config.limits import BudgetDuration
from gateway.pricing import dollars, picodollars
from tests.accounting.budget_fixture import BudgetFixture, budget, older

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.accounting.intent import Intent


@pytest_asyncio.fixture
async def budgets_fixture(redis_url: str) -> AsyncIterator[BudgetFixture]:
    async with Redis.from_url(redis_url) as redis:
        yield BudgetFixture(redis)


async def test_a_budget_is_reserved_from_settled_and_never_passed(budgets_fixture: BudgetFixture) -> None:
    scope = budget("1")
    assert (await budgets_fixture.ask("0.6", scope)).refusal is None
    first = budgets_fixture.last
    refused = (await budgets_fixture.ask("0.6", scope)).refusal
    assert refused is not None
    assert (refused.limit, dollars(refused.maximum), dollars(refused.used), dollars(refused.need)) == (
        "budget",
        1,
        Decimal("0.6"),
        Decimal("0.6"),
    )
    await budgets_fixture.settle(first, "0.15")
    assert await budgets_fixture.money(scope) == (Decimal("0.15"), 0)
    assert (await budgets_fixture.ask("0.85", scope)).refusal is None
    assert (await budgets_fixture.ask("0.000000000001", scope)).refusal is not None


async def test_processes_that_ask_at_once_share_one_budget(budgets_fixture: BudgetFixture) -> None:
    """90 callers over three processes: spent and reserved amounts never exceed the budget together."""
    scope = budget("1")
    requests = [budgets_fixture.request("0.03", scope, by=by) for _ in range(30) for by in budgets_fixture.processes]

    async def spend(one: Intent) -> bool:
        brought = await budgets_fixture.tell(AdmissionRequest((scope,), (Variant(1, one),)), by=one.process_id)
        if brought.verdicts[one.id][0].refusal is not None:
            return False
        spent, reserved = await budgets_fixture.money(scope)
        assert spent + reserved <= 1
        await budgets_fixture.settle(one, "0.03", by=one.process_id)
        return True

    done = Counter(await asyncio.gather(*(spend(one) for one in requests)))
    assert done == {True: 33, False: 57}
    assert await budgets_fixture.money(scope) == (Decimal("0.99"), 0)


async def test_the_sum_of_receipts_is_what_was_spent_to_the_last_digit(budgets_fixture: BudgetFixture) -> None:
    scope = budget("1000000")
    costs = [f"{number * 7}.{number:012d}" for number in range(1, 60)]
    for cost in costs:
        await budgets_fixture.ask("500", scope)
        await budgets_fixture.settle(budgets_fixture.last, cost)
    assert await budgets_fixture.money(scope) == (sum(map(Decimal, costs)), 0)


async def test_a_receipt_that_is_sent_twice_is_charged_once(budgets_fixture: BudgetFixture) -> None:
    scope = budget("1")
    await budgets_fixture.ask("0.5", scope)
    for _ in range(3):
        await budgets_fixture.settle(budgets_fixture.last, "0.2")
    assert await budgets_fixture.money(scope) == (Decimal("0.2"), 0)


async def test_requests_of_a_dead_process_are_charged_their_reservation_until_a_receipt_arrives(
    budgets_fixture: BudgetFixture,
) -> None:
    scope = budget("1")
    await budgets_fixture.ask("0.5", scope)
    left = budgets_fixture.last
    for by in ("bob", "carl"):
        await budgets_fixture.processes[by].abandon("acme", "ann", {left.id: Settlement(abandoned(left, 0), left)})
    assert await budgets_fixture.money(scope) == (Decimal("0.5"), 0)
    assert await budgets_fixture.settle(left, "0.123456789012") == [left.id]
    assert await budgets_fixture.money(scope) == (Decimal("0.123456789012"), 0)
    assert await budgets_fixture.settle(left, "0.123456789012") == []
    assert await budgets_fixture.money(scope) == (Decimal("0.123456789012"), 0)


async def test_an_overcharge_of_a_dead_process_is_not_credited_to_the_next_period(
    budgets_fixture: BudgetFixture,
) -> None:
    scope = budget("1")
    await budgets_fixture.ask("0.9", scope)
    left = budgets_fixture.last
    await budgets_fixture.processes["bob"].abandon("acme", "ann", {left.id: Settlement(abandoned(left, 0), left)})
    await budgets_fixture.redis.hset(budgets_fixture.keys.scope("acme", "tenant")[2], "period", "mo1:12")
    await budgets_fixture.ask("0.01", scope)
    assert await budgets_fixture.settle(left, "0.1") == [left.id]
    assert await budgets_fixture.money(scope) == (0, Decimal("0.01"))
    assert (await budgets_fixture.ask("1", scope)).refusal is not None


async def test_a_failed_request_releases_its_unspent_reservation(budgets_fixture: BudgetFixture) -> None:
    scope = budget("1")
    await budgets_fixture.ask("1", scope)
    await budgets_fixture.settle(budgets_fixture.last, "0")
    assert await budgets_fixture.money(scope) == (0, 0)
    assert (await budgets_fixture.ask("1", scope)).refusal is None


async def test_requests_admitted_without_redis_are_charged_after_its_return(budgets_fixture: BudgetFixture) -> None:
    """The request is counted with or before its receipt. It may exceed the budget, which is then spent."""
    scope = budget("1")
    await budgets_fixture.ask("3", scope, force=True)
    assert await budgets_fixture.money(scope) == (0, 3)
    await budgets_fixture.settle(budgets_fixture.last, "0.7")
    unknown = budgets_fixture.request("3", scope)
    await budgets_fixture.settle(unknown, "0.6")
    assert await budgets_fixture.money(scope) == (Decimal("1.3"), 0)
    assert (await budgets_fixture.ask("0.000001", scope)).refusal is not None


@pytest.mark.parametrize("aligned", [True, False], ids=["calendar", "rolling"])
async def test_a_first_request_admitted_without_redis_is_charged_to_its_budget(
    budgets_fixture: BudgetFixture, *, aligned: bool
) -> None:
    scope = budget("1", period=BudgetDuration(30, "d"), aligned=aligned)
    await budgets_fixture.settle(budgets_fixture.request("3", scope), "0.3")
    await budgets_fixture.settle(budgets_fixture.request("3", scope), "0.6")

    async def spent() -> Decimal:
        (balance,) = await Budgets(budgets_fixture.redis, budgets_fixture.keys).read([Account("acme", scope)])
        return balance.spent_usd

    assert await spent() == Decimal("0.9")
    assert (await budgets_fixture.ask("0.2", scope)).refusal is not None
    assert (await budgets_fixture.ask("0.1", scope)).refusal is None
    assert await spent() == Decimal("0.9")
    assert 0 < await budgets_fixture.redis.ttl(budgets_fixture.keys.scope("acme", scope.name)[2]) <= KEPT_S


@pytest.mark.parametrize("old_first", [True, False])
async def test_each_request_uses_the_budget_of_its_own_policy_version(
    budgets_fixture: BudgetFixture, *, old_first: bool
) -> None:
    """Both requests are in one exchange. Each follows its own policy's budget."""
    before, after = Scope("tenant", 5, 0, 0), budget("1")
    old, new, dear = (
        budgets_fixture.request("9", before),
        budgets_fixture.request("0.7", after),
        budgets_fixture.request("0.7", after),
    )
    others = [AdmissionRequest((after,), (Variant(1, one),)) for one in (new, dear)]
    late = AdmissionRequest((before,), (Variant(1, old),))
    brought = await budgets_fixture.tell(*([late, *others] if old_first else [*others, late]))
    assert [brought.verdicts[one.id][0].refusal is None for one in (old, new, dear)] == [True, True, False]
    assert await budgets_fixture.money(after) == (0, Decimal("0.7"))
    await budgets_fixture.settle(old, "0.2")
    await budgets_fixture.settle(new, "0.1")
    assert await budgets_fixture.money(after) == (Decimal("0.1"), 0)


async def test_requests_of_any_cost_admitted_without_redis_are_charged(budgets_fixture: BudgetFixture) -> None:
    """An error in the script would fail every other request of the exchange."""
    scope = budget("1")
    admission_requests = [
        AdmissionRequest((scope,), (Variant(1, budgets_fixture.request("9999999999", scope)),)) for _ in range(1000)
    ]
    forced = [one.forced() for one in admission_requests]
    await budgets_fixture.tell(*forced)
    assert await budgets_fixture.money(scope) == (0, 1000 * MAX_FORCED_USD)
    left = {one.id: one.variants[0].intent for one in forced}
    settlements = {name: Settlement(abandoned(one, 0), one) for name, one in left.items()}
    assert len(await budgets_fixture.processes["bob"].abandon("acme", "ann", settlements)) == 1000
    assert await budgets_fixture.money(scope) == (1000 * MAX_FORCED_USD, 0)


async def test_a_period_of_the_calendar_begins_with_nothing_spent(budgets_fixture: BudgetFixture) -> None:
    """A running request stays reserved, and is charged to the period in which it ends."""
    scope = budget("1")
    await budgets_fixture.ask("0.3", scope)
    await budgets_fixture.settle(budgets_fixture.last, "0.3")
    await budgets_fixture.ask("0.5", scope)
    under_way = budgets_fixture.last
    key = budgets_fixture.keys.scope("acme", "tenant")[2]
    now = datetime.now(UTC)
    assert await budgets_fixture.redis.hget(key, "period") == f"mo1:{now.year * 12 + now.month - 1}".encode()
    await budgets_fixture.redis.hset(key, "period", "mo1:12")
    assert (await budgets_fixture.ask("0.6", scope)).refusal is not None, "0.5 are reserved"
    assert (await budgets_fixture.ask("0.4", scope)).refusal is None
    await budgets_fixture.settle(under_way, "0.2")
    assert await budgets_fixture.money(scope) == (Decimal("0.2"), Decimal("0.4"))


@pytest.mark.parametrize(
    ("period", "number"),
    [
        (BudgetDuration(1, "d"), lambda now: (now - datetime(1970, 1, 1, tzinfo=UTC)).days),
        (BudgetDuration(1, "w"), lambda now: (now - datetime(1969, 12, 29, tzinfo=UTC)).days // 7),
        (BudgetDuration(3, "mo"), lambda now: (now.year * 12 + now.month - 1) // 3),
        (BudgetDuration(12, "h"), lambda now: int(now.timestamp()) // 43_200),
    ],
)
async def test_periods_are_those_of_the_calendar(
    budgets_fixture: BudgetFixture, period: BudgetDuration, number: object
) -> None:
    """Days, weeks (from Monday) and months, in UTC."""
    await budgets_fixture.ask("0.1", budget("1", period=period))
    held = await budgets_fixture.redis.hget(budgets_fixture.keys.scope("acme", "tenant")[2], "period")
    now = datetime.now(UTC)
    expected = {f"{period.unit}{period.count}:{number(at)}" for at in (now, now - timedelta(seconds=5))}  # type: ignore[operator]
    assert held.decode() in expected


async def test_a_rolling_budget_comes_back_as_its_spending_getsolder(budgets_fixture: BudgetFixture) -> None:
    """Spending expires in hundredths of the period, none too early."""
    scope = budget("1", period=BudgetDuration(100, "h"), aligned=False)
    await budgets_fixture.ask("0.4", scope)
    await budgets_fixture.settle(budgets_fixture.last, "0.4")
    ring = budgets_fixture.keys.scope("acme", "tenant")[2] + ":360000"
    await older(budgets_fixture.redis, ring, 60)
    await budgets_fixture.ask("0.6", scope)
    await budgets_fixture.settle(budgets_fixture.last, "0.6")
    assert (await budgets_fixture.ask("0.1", scope)).refusal is not None
    await older(budgets_fixture.redis, ring, 40)
    assert (await budgets_fixture.ask("0.1", scope)).refusal is not None, "its last hour has not left"
    await older(budgets_fixture.redis, ring, 1)
    assert (await budgets_fixture.ask("0.4", scope)).refusal is None
    assert (await budgets_fixture.ask("0.1", scope)).refusal is not None


async def test_the_request_that_crosses_the_soft_limit_sends_one_event(budgets_fixture: BudgetFixture) -> None:
    """The event is sent again only after spending was well below the soft limit."""
    scope = budget("1", soft="0.5")
    await budgets_fixture.ask("0.5", scope)
    held = budgets_fixture.last
    assert budgets_fixture.events == []
    verdicts = [await budgets_fixture.ask("0.001", scope) for _ in range(3)]
    assert [verdict.soft for verdict in verdicts] == [True] * 3
    assert budgets_fixture.events == [("tenant", "soft")]
    await budgets_fixture.settle(held, "0.1")
    assert not (await budgets_fixture.ask("0.5", scope)).soft
    assert (await budgets_fixture.ask("0.001", scope)).soft
    assert budgets_fixture.events == [("tenant", "soft")] * 2


async def test_a_rolling_budget_sends_its_event_again_after_its_duration(budgets_fixture: BudgetFixture) -> None:
    """A rolling budget has no next period. A daily budget that is spent each day sends an event each day."""
    scope = budget("1", period=BudgetDuration(1, "d"), aligned=False)
    key = budgets_fixture.keys.scope("acme", "tenant")[2]
    for told_ago_s, events in ((None, 1), (86_390, 1), (86_401, 2), (None, 2)):
        if told_ago_s is not None:
            now_s = int((await budgets_fixture.redis.time())[0])
            await budgets_fixture.redis.hset(key, "hard_told", str((now_s - told_ago_s) * 1_000_000))
        assert (await budgets_fixture.ask("2", scope)).refusal is not None
        assert budgets_fixture.events == [("tenant", "hard")] * events


async def test_past_the_soft_line_answers_become_cheaper(budgets_fixture: BudgetFixture) -> None:
    """The budget selects half the guidance or none. A request without a cheaper plan follows its plan."""
    ways = {1: "0.3", 2: "0.2", 3: "0.1"}
    for on_soft, kind in (("warn", 1), ("shorten", 2), ("student_only", 3)):
        scope = budget("1", soft="0.25", on_soft=on_soft, name=f"key:{on_soft}")
        assert await budgets_fixture.choose(ways, scope) == 1
        assert await budgets_fixture.choose(ways, scope) == kind
        assert await budgets_fixture.money(scope) == (0, Decimal("0.3") + Decimal(ways[kind]))
        await budgets_fixture.settle(budgets_fixture.last, "0.01")
        assert await budgets_fixture.money(scope) == (Decimal("0.01"), Decimal("0.3")), (
            "what it had reserved is given back"
        )
    alone = budget("1", soft="0.25", on_soft="shorten", name="key:alone")
    assert [await budgets_fixture.choose({1: "0.3"}, alone) for _ in range(3)] == [1, 1, 1]


async def test_the_stricter_of_two_budgets_decides(budgets_fixture: BudgetFixture) -> None:
    both = budget("10", soft="0.2", on_soft="student_only"), budget("1", soft="0.2", on_soft="shorten", name="key:prod")
    ways = {1: "0.3", 2: "0.2", 3: "0.1"}
    assert [await budgets_fixture.choose(ways, *both) for _ in range(2)] == [1, 3]


async def test_requests_that_exceed_the_budget_with_the_teacher_use_the_student_alone(
    budgets_fixture: BudgetFixture,
) -> None:
    """The student alone is admitted while it fits. Afterwards nothing is left, and no budget is exceeded."""
    scope = budget("1", on_hard="student_only")
    ways = {1: "0.4", 3: "0.1"}
    assert [await budgets_fixture.choose(ways, scope) for _ in range(6)] == [1, 1, 3, 3, 0, 0]
    assert await budgets_fixture.money(scope) == (0, 1)
    assert budgets_fixture.events == [("tenant", "hard")]


async def test_a_key_and_its_tenant_pay_together_or_not_at_all(budgets_fixture: BudgetFixture) -> None:
    """A request that one budget refuses is reserved in neither."""
    both = budget("1"), budget("0.5", name="key:prod")
    assert (await budgets_fixture.ask("0.4", *both)).refusal is None
    refused = (await budgets_fixture.ask("0.2", *both)).refusal
    assert refused is not None
    assert refused.scope == 2
    assert [await budgets_fixture.money(scope) for scope in both] == [(0, Decimal("0.4"))] * 2
    assert (await budgets_fixture.ask("0.6", both[0])).refusal is None
    assert (await budgets_fixture.ask("0.05", *both)).refusal is not None


async def test_a_raise_holds_until_it_ends(budgets_fixture: BudgetFixture) -> None:
    scope = budget("1")
    key = budgets_fixture.keys.scope("acme", "tenant")[2]
    now = int((await budgets_fixture.redis.time())[0])
    await budgets_fixture.redis.hset(key, mapping={"raise": picodollars(Decimal("0.5")), "raise_until": now + 60})
    assert (await budgets_fixture.ask("1.5", scope)).refusal is None
    await budgets_fixture.settle(budgets_fixture.last, "0")
    await budgets_fixture.redis.hset(key, "raise_until", now - 1)
    refused = (await budgets_fixture.ask("1.5", scope)).refusal
    assert refused is not None
    assert dollars(refused.maximum) == 1


async def test_a_budget_of_a_million_is_exact_beyond_the_precision_of_lua_numbers(
    budgets_fixture: BudgetFixture,
) -> None:
    scope = budget("1000000")
    for cost in ("999998.999999999999", "0.000000000001", "0.5"):
        await budgets_fixture.ask("1", scope, force=True)
        await budgets_fixture.settle(budgets_fixture.last, cost)
    assert await budgets_fixture.money(scope) == (Decimal("999999.5"), 0)
    assert (await budgets_fixture.ask("0.6", scope)).refusal is not None
    assert (await budgets_fixture.ask("0.4", scope)).refusal is None


async def read_balances(budgets_fixture: BudgetFixture, *scopes: Scope) -> list[Balance]:
    return await Budgets(budgets_fixture.redis, budgets_fixture.keys).read([Account("acme", scope) for scope in scopes])


async def stored_data(budgets_fixture: BudgetFixture) -> dict[bytes, bytes]:
    """Return all data of these budgets in Redis, byte for byte."""
    names = sorted(await budgets_fixture.redis.keys(f"*{budgets_fixture.keys.prefix}:*"))
    return {name: await budgets_fixture.redis.dump(name) for name in names}


async def test_reading_balances_equals_the_script_and_changes_nothing(budgets_fixture: BudgetFixture) -> None:
    """Several budgets are returned in the order of the request. An unused budget is complete."""
    month, hours = (
        budget("1", soft="0.5"),
        budget("2", period=BudgetDuration(100, "h"), aligned=False, name="key:hours"),
    )
    unused = budget("3.50", name="key:unused")
    await budgets_fixture.ask("0.6", month, hours)
    await budgets_fixture.settle(budgets_fixture.last, "0.123456789012")
    await budgets_fixture.ask("0.25", month, hours)
    before = await stored_data(budgets_fixture)
    balances = await read_balances(budgets_fixture, unused, hours, month)
    assert await stored_data(budgets_fixture) == before
    spent, reserved = Decimal("0.123456789012"), Decimal("0.25")
    assert [(one.spent_usd, one.reserved_usd, one.left_usd) for one in balances] == [
        (0, 0, Decimal("3.5")),
        (spent, reserved, 2 - spent - reserved),
        (spent, reserved, 1 - spent - reserved),
    ]
    assert str(balances[0].max_usd) == "3.5"
    now = datetime.fromtimestamp(balances[2].now_s, UTC)
    month_end = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    assert [one.ends_s for one in balances[1:]] == [None, int(month_end.timestamp())]
    assert await read_balances(budgets_fixture) == []


async def test_spending_of_another_period_does_not_count(budgets_fixture: BudgetFixture) -> None:
    """No request has begun the new period. A running request stays reserved."""
    scope = budget("1")
    await budgets_fixture.ask("0.3", scope)
    await budgets_fixture.settle(budgets_fixture.last, "0.3")
    await budgets_fixture.ask("0.5", scope)
    await budgets_fixture.redis.hset(budgets_fixture.keys.scope("acme", "tenant")[2], "period", "mo1:12")
    (balance,) = await read_balances(budgets_fixture, scope)
    assert (balance.spent_usd, balance.reserved_usd) == (0, Decimal("0.5"))
    (other,) = await read_balances(budgets_fixture, budget("1", period=BudgetDuration(1, "w")))
    assert other.spent_usd == 0, "nor in one of another length"


async def test_the_read_balance_of_a_rolling_budget_equals_the_scripts(budgets_fixture: BudgetFixture) -> None:
    """At each age, the read balance equals the script's refusal of a larger request."""
    scope = budget("1", period=BudgetDuration(100, "h"), aligned=False)
    ring = budgets_fixture.keys.scope("acme", "tenant")[2] + ":360000"
    seen = []
    for spent, slots in (("0.4", 60), ("0.3", 40), ("0.1", 1), ("0", 59), ("0", 1), ("0", 40)):
        await budgets_fixture.ask("0.4", scope, force=True)
        await budgets_fixture.settle(budgets_fixture.last, spent)
        await older(budgets_fixture.redis, ring, slots)
        (balance,) = await read_balances(budgets_fixture, scope)
        refused = (await budgets_fixture.ask("5", scope)).refusal
        assert refused is not None
        assert balance.spent_usd + balance.reserved_usd == dollars(refused.used)
        seen.append(str(balance.spent_usd))
    assert seen == ["0.4", "0.7", "0.4", "0.4", "0.1", "0"]


async def test_a_raise_is_put_and_seen_and_ended(budgets_fixture: BudgetFixture) -> None:
    """A raise replaces an earlier one, and is kept as long as budgets are."""
    scope = budget("1")
    budgets, account = Budgets(budgets_fixture.redis, budgets_fixture.keys), Account("acme", scope)
    key = budgets_fixture.keys.scope("acme", "tenant")[2]
    now_s = int((await budgets_fixture.redis.time())[0])
    await budgets.put_raise(account, Raise(Decimal(7), now_s + 60))
    assert KEPT_S - 60 <= await budgets_fixture.redis.ttl(key) <= KEPT_S
    half = Raise(Decimal("0.5"), now_s + 600)
    await budgets.put_raise(account, half)
    (balance,) = await budgets.read([account])
    assert (balance.raised, balance.max_usd, balance.limit_usd, balance.left_usd) == (half, 1, *[Decimal("1.5")] * 2)
    assert (await budgets_fixture.ask("1.5", scope)).refusal is None
    assert KEPT_S - 60 <= await budgets_fixture.redis.ttl(key) <= KEPT_S, "as the script does"
    (spent,) = await budgets.read([account])
    assert spent.left_usd == 0
    await budgets_fixture.settle(budgets_fixture.last, "1.2")
    await budgets_fixture.redis.hset(key, "raise_until", now_s - 1)
    (over,) = await budgets.read([account])
    assert (over.raised, over.limit_usd, over.left_usd) == (None, 1, 0), "it ended, and more than the budget was spent"
    await budgets.put_raise(account, half)
    await budgets.put_raise(account, None)
    assert (await budgets.read([account]))[0].raised is None
    assert (await budgets_fixture.ask("0.1", scope)).refusal is not None


async def test_a_slice_without_a_part_of_a_raise_has_no_raise(budgets_fixture: BudgetFixture) -> None:
    budgets, account = Budgets(budgets_fixture.redis, budgets_fixture.keys), Account("acme", budget("1"), 3)
    now_s, _ = await budgets_fixture.redis.time()
    raised = Raise(Decimal("0.000000000001"), now_s + 60)
    await budgets.put_raise(account, raised)
    assert list((await budgets.raises()).values()) == [raised]
    assert [balance.raised for balance in await budgets.read(account.parts)] == [raised, None, None]


async def test_a_budget_that_is_spent_again_after_a_raise_sends_another_event(budgets_fixture: BudgetFixture) -> None:
    scope = budget("1")
    account, budgets = Account("acme", scope), Budgets(budgets_fixture.redis, budgets_fixture.keys)
    now_s = int((await budgets_fixture.redis.time())[0])
    for usd in ("1", "1", "1.5"):
        await budgets_fixture.ask(usd, scope)
    assert budgets_fixture.events == [("tenant", "hard")]
    await budgets.put_raise(account, Raise(Decimal(1), now_s + 60))
    for usd in ("1", "1", "1.5"):
        await budgets_fixture.ask(usd, scope)
    assert budgets_fixture.events == [("tenant", "hard")] * 2
