"""Measure the requests per second that one Redis admits and settles, without gateways.

The calls of the admission script are those of gateways. They are encoded before the measurement, so that the sender
needs little CPU.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from contextlib import suppress
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import hiredis
import msgspec

from gateway.accounting.intent import Intent
from gateway.accounting.receipt import EngineShare
from gateway.accounting.redis_ledger import AdmissionRequest, RedisLedger, Settlement, Variant
from gateway.accounting.scopes import BudgetTerms, Scope
from gateway.redis.keys import RedisKeys
from load_tests.day_receipts import day_of_receipts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from redis import Redis

    from gateway.accounting.receipt import Receipt

TOGETHER = (1, 4, 16)
"""Requests that one call of the script admits and settles."""
TENANTS = [f"tenant-{number}" for number in range(50)]
_CONNECTIONS = 16
_PIPELINED = 8
_GATEWAYS = 4
_LARGE = str(10**15)  # picodollars, as the largest budget that is never used up
_BUDGET = BudgetTerms(_LARGE, "", "mo", 1, 0, aligned=True, on_soft="warn", on_hard="reject")


class RedisLimit(NamedTuple):
    """Requests that Redis admits and settles per second, and per second of its own CPU time."""

    limited: bool
    together: int
    per_s: float
    per_cpu_s: float


class PreparedCalls(NamedTuple):
    """Encoded calls of the script, and the number of their requests."""

    script: str
    calls: Sequence[bytes]
    requests: int


class Sent(NamedTuple):
    """The duration of all calls."""

    requests: int
    seconds: float


class _Recorder:
    """Record the script call of a ledger instead of sending it."""

    def __init__(self) -> None:
        self.script = ""
        self.call = b""

    def register_script(self, text: str) -> Any:
        self.script = text
        return SimpleNamespace(sha=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    async def sadd(self, *_: object) -> None:
        """Ignore the tenants' names, which gateways write once an hour."""

    async def evalsha(self, *arguments: Any) -> None:
        self.call = hiredis.pack_command(("EVALSHA", *arguments))
        raise _Recorded


class _Recorded(Exception):
    """The call is recorded."""


def prepare(requests: int, together: int, *, limited: bool) -> PreparedCalls:
    """Encode calls that each admit `together` requests of one tenant and settle those of the tenant's last call."""
    recorder = _Recorder()
    keys = RedisKeys("limit")
    ledgers = [RedisLedger(recorder, keys, f"gateway-{one}", 60, 60) for one in range(_GATEWAYS)]  # type: ignore[arg-type]
    scopes = tuple(Scope(name, 10**8, 10**9, 10**5, _BUDGET) for name in ("tenant", "key:bench")) if limited else ()
    receipts = day_of_receipts(requests, 1, time.time())
    calls: list[bytes] = []
    settled: dict[str, list[Settlement]] = {}
    for number, batch in enumerate(iter(lambda: list(itertools.islice(receipts, together)), [])):
        tenant = TENANTS[number % len(TENANTS)]
        ledger = ledgers[number % len(TENANTS) % _GATEWAYS]  # the gateway of the tenant's callers
        named = [msgspec.structs.replace(receipt, tenant=tenant) for receipt in batch]
        intents = [_intent(receipt, ledger.process_id, scopes) for receipt in named]
        admitted = [AdmissionRequest(scopes, (Variant(1, intent),)) for intent in intents]
        with suppress(_Recorded):
            asyncio.run(ledger.exchange(admitted, settled.get(tenant, ())))
        settled[tenant] = [Settlement(*pair) for pair in zip(named, intents, strict=True)]
        calls.append(recorder.call)
    return PreparedCalls(recorder.script, calls, requests)


def _intent(receipt: Receipt, process_id: str, scopes: Sequence[Scope]) -> Intent:
    share = EngineShare("big", 400, 40, Decimal(1))
    return Intent(
        *(receipt.id, receipt.created, receipt.tenant, receipt.key, receipt.route, receipt.mode, receipt.stream),
        teacher=share,
        student=share,
        baseline="big",
        reserved_usd=Decimal("0.01"),
        process_id=process_id,
        tokens=600,
        charges=tuple(scope.charge for scope in scopes),
    )


def send(path: Path, redis: Redis, prepared: PreparedCalls) -> Sent:
    """Send all calls over several connections, a few at a time on each, and wait for their replies.

    Raises RuntimeError for an error of the script.
    """
    redis.script_load(prepared.script)
    return asyncio.run(_send(path, prepared))


async def _send(path: Path, prepared: PreparedCalls) -> Sent:
    calls = iter(prepared.calls)

    async def connection() -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        parser = hiredis.Reader()
        while some := list(itertools.islice(calls, _PIPELINED)):
            writer.writelines(some)
            replies = 0
            while replies < len(some):
                if (reply := parser.gets()) is False:
                    parser.feed(await reader.read(1 << 16))
                    continue
                if isinstance(reply, hiredis.ReplyError):
                    raise RuntimeError(f"Redis rejected a call: {reply}")
                replies += 1
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(_CONNECTIONS)))
    return Sent(prepared.requests, time.perf_counter() - began)
