"""Compare the results of callers with receipts, sums, counters, intents and budgets."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from redis.exceptions import RedisError

from gateway.accounting.receipt import Receipt
from gateway.errors import StartupError
from gateway.pricing import dollars
from gateway.redis.keys import RedisKeys
from gateway.usage.database_reader import DatabaseReader
from gateway.usage.engine import UsageDatabaseError
from gateway.usage.rollup import SumRow
from gateway.usage.store import UsageStore
from gateway.usage.sums import Retention, periods
from gateway.usage.threads import QueryThreads
from load_tests.soaking.tally import short_id
from load_tests.soaking.world import ADMIN_KEY, PREFIX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from load_tests.soaking.tally import Tally
    from load_tests.soaking.world import SoakGateway, World

_MOST_CHARS = 400
_PROVOKED = "policies_refused"
_DAY_S = 86_400
_KEYS = RedisKeys(PREFIX)

Amount: TypeAlias = int | Decimal


@dataclass(frozen=True, slots=True)
class Check:
    """A condition on a count: `found` is between `least` and `most`, which are usually equal."""

    name: str
    found: Amount
    least: Amount
    most: Amount

    @property
    def holds(self) -> bool:
        return self.least <= self.found <= self.most


def same(name: str, found: Amount, expected: Amount) -> Check:
    return Check(name, found, expected, expected)


def none(name: str, found: Amount) -> Check:
    return same(name, found, 0)


@dataclass
class Stored:
    """Receipts of the usage database, compared with the callers' requests.

    Attributes:
        found: ids of callers' requests with a receipt.
        either: ids of requests with an optional receipt (tally.py).
        left: receipts of callers who disconnected before they knew the id, by key.
        shadows: receipts of shadow requests.
        reported: ids of guidance with a receipt of the device's report.
        strangers: receipts without a request of a caller.
    """

    receipts: int = 0
    found: set[bytes] = field(default_factory=set)
    either: set[bytes] = field(default_factory=set)
    twice: int = 0
    needless: int = 0
    left: dict[str, int] = field(default_factory=dict)
    shadows: int = 0
    reported: set[bytes] = field(default_factory=set)
    strangers: int = 0
    abandoned: int = 0
    cost_usd: Decimal = Decimal(0)
    spent_usd: dict[tuple[str, str | None], Decimal] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """Return the number of requests in the sums. A device's report counts with its guidance."""
        return self.receipts - len(self.reported)

    def add(self, receipt: Receipt, tally: Tally) -> None:
        self.receipts += 1
        self.cost_usd += receipt.cost_usd
        self.abandoned += receipt.status == "abandoned"
        self.statuses[receipt.status] = self.statuses.get(receipt.status, 0) + 1
        for of in ((receipt.tenant, None), (receipt.tenant, receipt.key)):
            self.spent_usd[of] = self.spent_usd.get(of, Decimal(0)) + receipt.cost_usd
        known = short_id(receipt.shadow_of or receipt.edge_of or receipt.id)
        if receipt.edge_of is not None:
            self.twice += known in self.reported
            self.reported.add(known)
            self.strangers += known not in tally.kept
        elif receipt.shadow_of is not None:
            self.shadows += 1
            self.strangers += known not in tally.kept
        elif known in tally.kept:
            self.twice += known in self.found
            self.found.add(known)
        elif known in tally.either:
            self.twice += known in self.either
            self.either.add(known)
        elif known in tally.refused:
            self.needless += 1
        elif receipt.key in {"leaver", "hasty"}:
            self.left[receipt.key] = self.left.get(receipt.key, 0) + 1
        else:
            self.strangers += 1


class Books:
    """Checks after the last request.

    Args:
        patience_s: timeout for each kind of unfinished work. Missing results after the timeout count as failures.
    """

    def __init__(self, world: World, tally: Tally, patience_s: float) -> None:
        self._world = world
        self._tally = tally
        self._patience_s = patience_s
        self.stored = Stored()
        self.errors: list[str] = []

    async def checks(self) -> list[Check]:
        """Wait for unfinished work, then compare."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
            await self._until(lambda: self._quiet(session))
            store = UsageStore(f"sqlite:///{self._world.database}", Retention(1, 1, 1))
            threads = QueryThreads(store.engine.reading)
            try:
                await self._until(lambda: self._written(session, store))
                async for some in store.receipts():
                    for raw in some:
                        self.stored.add(Receipt.from_json(raw), self._tally)
                total = await _total(DatabaseReader(threads))
            finally:
                threads.close()
                await store.close()
            self.errors = [line for gateway in self._world.gateways for line in _errors(gateway)]
            return [
                *self._of_callers(),
                *await self._of_sums(session, total),
                *await self._of_leavings(session),
                *await self._of_budgets(session),
            ]

    def _of_callers(self) -> list[Check]:
        tally, stored = self._tally, self.stored
        received, unsure = tally.left_received, tally.left_unreceived
        return [
            same("requests = replies + hang-ups", tally.replies + tally.left, tally.sent),
            none("replies that were interrupted or have status 500", tally.broken),
            none("ids given twice", tally.ids_twice),
            same("replies with a receipt = requests that need one", len(stored.found), len(tally.kept)),
            none("receipts missing", len(tally.kept - stored.found)),
            none("receipts twice", stored.twice),
            Check("receipts of devices' reports", len(stored.reported), len(tally.reported),
                  len(tally.reported | tally.unsure)),
            none("accepted reports without a receipt", len(tally.reported - stored.reported)),
            none("receipts of rejected requests", stored.needless),
            Check("receipts of requests that failed without Redis", len(stored.either), 0, len(tally.either)),
            Check("receipts of disconnects during the engine call", stored.left.get("leaver", 0), received,
                  received + unsure["leaver"]),
            Check("receipts of early disconnects", stored.left.get("hasty", 0), 0, unsure["hasty"]),
            none("receipts without a request", stored.strangers),
            none("receipts of dead processes", stored.abandoned),
        ]  # fmt: skip

    async def _of_sums(self, session: aiohttp.ClientSession, total: SumRow) -> list[Check]:
        """Compare sums and metrics with receipts: duplicates show here."""
        tally, stored = self._tally, self.stored
        refused = int(await self._sum(session, "gkt_refused_total"))
        least = len(tally.refused) + len(tally.either - stored.either) + tally.not_taken
        return [
            same("requests in the sums = receipts", total.requests, stored.requests),
            same("USD in the sums = receipts'", dollars(total.cost_pico), stored.cost_usd),
            same("gkt_requests_total = receipts", await self._counted(session), stored.requests),
            Check(
                "gkt_refused_total = replies without a receipt",
                refused,
                least,
                least + sum(tally.left_unreceived.values()),
            ),
            none("gkt_receipts_lost_total", int(await self._sum(session, "gkt_receipts_lost_total"))),
        ]

    async def _of_leavings(self, session: aiohttp.ClientSession) -> list[Check]:
        teacher = _KEYS.teacher("big")
        redis: Any = self._world.redis
        return [
            none("intents left", await self._intents()),
            none("requests in flight", int(await self._sum(session, "gkt_in_flight"))),
            none("tickets left at the teacher", await redis.hlen(teacher.tickets)),
            none("permits left at the teacher", await redis.scard(teacher.permits)),
            none("receipts left in the spool", int(await self._sum(session, "gkt_spool_receipts"))),
            none("errors in the gateways' logs", len(self.errors)),
        ]

    async def _of_budgets(self, session: aiohttp.ClientSession) -> list[Check]:
        checks = []
        url = f"{self._world.gateways[0].admin_url}/budgets"
        async with session.get(url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as reply:
            report = json.loads(await reply.text(), parse_float=Decimal)
        for one in report["budgets"]:
            expected = self.stored.spent_usd.get((one["tenant"], one["key"]), Decimal(0))
            whose = f"{one['tenant']}, {one['key'] or 'all keys'}"
            checks.append(same(f"USD spent of the budget of {whose} = receipts'", Decimal(one["spent_usd"]), expected))
            checks.append(none(f"USD still reserved of the budget of {whose}", Decimal(one["reserved_usd"])))
        return checks

    async def _until(self, true: Callable[[], Awaitable[bool]]) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._patience_s
        while loop.time() < give_up:
            try:
                if await true():
                    return
            except (*UsageDatabaseError, StartupError, RedisError, aiohttp.ClientError, OSError, TimeoutError):
                pass  # not available yet
            await asyncio.sleep(0.5)

    async def _quiet(self, session: aiohttp.ClientSession) -> bool:
        """Return whether no request is running and every receipt is sent."""
        waiting = [await self._sum(session, name) for name in ("gkt_in_flight", "gkt_receipts_waiting")]
        redis: Any = self._world.redis
        return not any(waiting) and not await self._intents() and not await redis.hlen(_KEYS.teacher("big").tickets)

    async def _written(self, session: aiohttp.ClientSession, store: UsageStore) -> bool:
        reports = await store.count() - await self._counted(session)
        return len(self._tally.reported) <= reports <= len(self._tally.reported | self._tally.unsure)

    async def _intents(self) -> int:
        redis: Any = self._world.redis
        names = [name async for name in redis.scan_iter(f"{{{PREFIX}:tenant:*}}:v?:intents:*", count=1000)]
        return sum([await redis.hlen(name) for name in names])

    async def _counted(self, session: aiohttp.ClientSession) -> int:
        """Return the processes' count of receipts. It omits abandoned receipts, which two processes may count."""
        return int(await self._sum(session, "gkt_requests_total", leaving_out="abandoned"))

    async def _sum(self, session: aiohttp.ClientSession, name: str, leaving_out: str = "") -> float:
        """Return the sum of a metric over both gateways and all labels."""
        total = 0.0
        for gateway in self._world.gateways:
            async with session.get(f"{gateway.admin_url}/metrics") as reply:
                text = await reply.text()
            for family in text_string_to_metric_families(text):
                total += sum(
                    one.value
                    for one in family.samples
                    if one.name == name and (not leaving_out or one.labels.get("status") != leaving_out)
                )
        return total


async def _total(sums: DatabaseReader) -> SumRow:
    """Return the sum of yesterday and today over all tenants."""
    now, total = time.time(), SumRow()
    for _, row in await sums.totals(list(periods("day", now - _DAY_S, now + 1))):
        total.merge(row)
    return total


def _errors(gateway: SoakGateway) -> list[str]:
    """Return log lines at level error, without those of invalid policy edits."""
    found = []
    with gateway.log.open(errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"level": "error", "event": line.strip()}
            if entry.get("level") == "error" and entry.get("event") != _PROVOKED:
                found.append(f"{gateway.name}: {json.dumps(entry)[:_MOST_CHARS]}")
    return found
