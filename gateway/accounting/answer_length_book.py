"""Share the measured lengths of answers between all processes, through sums in Redis.

A process adds pairs of answers in memory. A background task writes them to Redis and reads the sums of all processes,
so no request waits for Redis. Lengths of the current and the previous period of 30 days count.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog
from redis.exceptions import RedisError

from gateway.accounting.answer_length import UNMEASURED, LengthSums, RouteLengths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys

log = structlog.get_logger()

PERIOD_S = 30 * 86_400
_READ_EVERY_S, _LINGER_S = 15.0, 0.05
_READ_AT_ONCE = 600


class LengthScope(NamedTuple):
    """The answers whose lengths are added up."""

    tenant: str
    route: str
    model: str  # the baseline model
    guided: bool  # whether the callers' answers were guided, or by the student alone


# Created at import: msgspec 0.22 may crash when two threads decode a type for the first time.
_FIELD_DECODER = msgspec.json.Decoder(tuple[int, LengthScope])


class AnswerLengths:
    """Measure the lengths of answers. `clock` returns Unix seconds."""

    def __init__(self, redis: RedisClient, keys: RedisKeys, clock: Callable[[], float]) -> None:
        self._redis, self._keys, self._clock = redis, keys.ledger(), clock
        self._sums: dict[LengthScope, LengthSums] = {}
        self._unsent: dict[LengthScope, LengthSums] = {}
        self._work = asyncio.Event()

    def of_route(self, tenant: str, route: str, model: str) -> RouteLengths:
        """Return the measured lengths of a route with this baseline model."""
        scopes = (LengthScope(tenant, route, model, guided) for guided in (True, False))
        return RouteLengths(*(self._sums.get(scope, LengthSums()).measured() for scope in scopes))

    def add(self, builder: ReceiptBuilder) -> None:
        """Add the closed answer of `builder` and the one that it is measured against. Does not wait."""
        pair = _pair_of(builder)
        if pair is not None:
            scope, sums = pair
            self._unsent[scope] = self._unsent.get(scope, LengthSums()).plus(sums)
            self._work.set()

    async def run(self) -> None:
        """Write and read sums until canceled. A failure of Redis leaves the sums that were read last.

        A read returns the sums of all scopes, so new answers are written at once and read later.
        """
        failed = False
        loop = asyncio.get_running_loop()
        read_at = loop.time()
        while True:
            await self._redis.wait_up()
            try:
                await self._write()
                if loop.time() >= read_at:
                    read_at = loop.time() + _READ_EVERY_S
                    await self._read()
                failed = False
            except Exception as error:
                # Do not mark Redis as failed: requests do not wait for this.
                unexpected = not isinstance(error, RedisError | OSError)
                if unexpected or not failed:
                    log.warning("answer_lengths_not_read", error=type(error).__name__, exc_info=unexpected)
                failed = True
            with suppress(TimeoutError):
                async with asyncio.timeout_at(read_at):
                    await self._work.wait()
            await asyncio.sleep(_LINGER_S)  # further answers share the call

    async def sync(self) -> None:
        """Write the waiting sums, and read those of all processes. Raises RedisError and OSError.

        If Redis writes but its reply is lost, the sums count twice.
        """
        await self._write()
        await self._read()

    async def _read(self) -> None:
        period = self._period()
        hashes: list[dict[bytes, bytes]] = []
        for start in (period, period - PERIOD_S):
            pages = self._redis.commands.hscan_iter(self._keys.answer_lengths(start), count=_READ_AT_ONCE)
            # HSCAN may return a field twice while the hash grows.
            hashes.append({field: number async for field, number in pages})
        # Thousands of routes take milliseconds.
        self._sums = await asyncio.to_thread(_decode, hashes)

    def _period(self) -> int:
        return int(self._clock()) // PERIOD_S * PERIOD_S

    async def _write(self) -> None:
        self._work.clear()
        if not self._unsent:
            return
        key = self._keys.answer_lengths(self._period())
        unsent, self._unsent = self._unsent, {}
        try:
            async with self._redis.commands.pipeline(transaction=True) as pipe:
                for scope, sums in unsent.items():
                    for index, number in enumerate(sums):
                        pipe.hincrby(key, msgspec.json.encode((index, scope)).decode(), number)
                pipe.expire(key, 2 * PERIOD_S)
                await pipe.execute()
        except BaseException:
            for scope, sums in unsent.items():
                self._unsent[scope] = self._unsent.get(scope, LengthSums()).plus(sums)
            raise


def _decode(hashes: Iterable[Mapping[bytes, bytes]]) -> dict[LengthScope, LengthSums]:
    """Add up the fields of the hashes."""
    found: dict[LengthScope, list[int]] = defaultdict(lambda: [0] * len(LengthSums._fields))
    for numbers in hashes:
        for field, number in numbers.items():
            index, scope = _FIELD_DECODER.decode(field)
            found[scope][index] += int(number)
    return {scope: LengthSums(*sums) for scope, sums in found.items()}


def _pair_of(builder: ReceiptBuilder) -> tuple[LengthScope, LengthSums] | None:
    """Return the lengths of two closed answers to one prompt; None unless the baseline model wrote one of them alone
    and its engine counted it."""
    other = builder.measures
    if other is None or builder.receipt is None or other.receipt is None:
        return None
    own, answered = (builder, other) if builder.receipt.student is None else (other, builder)
    first, second = own.receipt, answered.receipt
    assert first is not None
    assert second is not None
    share = first.teacher
    if share is None or first.student is not None or first.guidance is not None or second.student is None:
        return None
    if share.model != second.baseline_model or share.estimated or share.at_least or share.shared:
        return None
    if first.status != "ok" or second.status != "ok" or not answered.answer_tokens:
        return None
    length = answered.answer_tokens
    if answered.length_rule in UNMEASURED or answered.length_rule == "measured_mean":
        length = min(length, share.output_tokens)  # the rule bounds such an answer by itself
    scope = LengthScope(second.tenant, second.route, second.baseline_model, second.guidance is not None)
    return scope, LengthSums.of(share.output_tokens, length)
