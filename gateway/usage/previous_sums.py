"""Read and delete the sums that the previous version stored in Redis. No other module knows their key names."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.usage import counters
from gateway.usage.counters import ClassSum, TokenSums
from gateway.usage.entries import added_ms, batched
from gateway.usage.rollup import NUMBERS, SumDimensions, SumRow
from gateway.usage.sums import Period

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from gateway.redis.keys import RedisKeys
    from gateway.usage.counters import Sparse

_SUMS = re.compile(r"(?:g(\d+):)?(rows|total|seen):(minute|hour|day):(\d+)(?::(.+))?", re.DOTALL)
_OTHERS = ("state", "cursors", "counted", "archived", "archive", "latest", "builds", "holds")
_KEYS_PER_SCAN = 1_000
_KEYS_PER_CALL = 500
_FIELDS: msgspec.msgpack.Decoder[tuple[str, str, str, str, str]] = msgspec.msgpack.Decoder(
    tuple[str, str, str, str, str]
)


class PreviousRow(msgspec.Struct, array_like=True):
    """Sums in the encoding of the previous version; see `SumRow`."""

    requests: int = 0
    errors: dict[str, int] = {}
    unguided: dict[str, int] = {}
    batches: dict[int, int] = {}
    teacher: TokenSums = TokenSums()
    student: TokenSums = TokenSums()
    failed: TokenSums = TokenSums()
    kept_tokens: int = 0
    cost_pico: int = 0
    teacher_pico: int = 0
    student_pico: int = 0
    failed_pico: int = 0
    baseline_pico: int = 0
    baseline_estimated: int = 0
    stages: list[tuple[int, int, dict[int, int]]] = []  # for each of STAGES the attributes of Histogram
    answer_tokens: int = 0
    teacher_answer_tokens: int = 0
    guided: int = 0
    baseline_error_pico: int = 0
    engines: dict[str, int] = {}
    classes: dict[str, ClassSum] = {}

    def to_row(self) -> SumRow:
        """Return the sums in the encoding of this version."""
        row = SumRow()
        for name, number in NUMBERS.items():
            row.fixed[number] = getattr(self, name)
        for role, tokens in zip(counters.ROLES, (self.teacher, self.student, self.failed), strict=True):
            row.fixed[role : role + len(tokens)] = tokens
        counts: Sparse = {counters.BATCHES + size: count for size, count in self.batches.items()}
        for kind, named in (
            (counters.ERROR, self.errors),
            (counters.UNGUIDED, self.unguided),
            (counters.ENGINE, self.engines),
        ):
            counts |= {kind + name: count for name, count in named.items()}
        for name, sums in self.classes.items():
            counts |= counters.class_counts(name, sums)
        for stage, (_, sum_us, buckets) in enumerate(self.stages):
            row.fixed[counters.STAGE_TIMES + stage] = sum_us
            first = counters.BUCKETS + counters.BUCKET_STEP * stage
            counts |= {first + bucket: count for bucket, count in buckets.items()}
        row.sparse = {key: count for key, count in counts.items() if count}
        return row


def row_of_previous(raw: bytes) -> SumRow:
    """Decode sums of the previous version. Raises msgspec.DecodeError."""
    decode = msgspec.json.decode if raw.startswith(b"[") else msgspec.msgpack.decode
    return decode(raw, type=PreviousRow).to_row()


class PreviousSums:
    """Sums of the previous version in Redis. All methods raise RedisError and OSError.

    After `scan`, `tenants` has the tenants with sums by period.
    """

    def __init__(self, redis: Redis, keys: RedisKeys) -> None:
        self._redis = redis
        self._base = keys.ledger_base
        self._names: list[str] = []
        self._rows_base = self._base
        self.tenants: dict[Period, list[str]] = {}

    async def is_written(self) -> bool:
        """Return whether a process of the previous version adds up receipts or archives them."""
        return bool(await self._redis.exists(self._base + "lease", self._base + "archiver"))

    async def scan(self) -> None:
        """Find all sums. Sums of unused generations are found only to be deleted."""
        stored: Any = await self._redis.hget(self._base + "state", "generation")
        generation = int(stored or 0)
        self._rows_base = f"{self._base}g{generation}:" if generation else self._base
        tenants: dict[Period, list[str]] = defaultdict(list)
        names: dict[str, None] = {}
        pattern = re.sub(r"([\\*?\[\]^-])", r"\\\1", self._base) + "*"
        async for raw in self._redis.scan_iter(pattern, count=_KEYS_PER_SCAN):
            name = raw.decode()
            suffix = name.removeprefix(self._base)
            match = _SUMS.fullmatch(suffix)
            if name in names or (match is None and suffix not in _OTHERS and not suffix.startswith("build:")):
                continue
            names[name] = None
            if match is not None and int(match[1] or 0) == generation:
                granularity: Any = match[3]
                of_period = tenants[Period(granularity, int(match[4]))]
                if match[2] == "rows":
                    of_period.append(match[5])
        self._names, self.tenants = list(names), dict(tenants)

    async def until(self) -> float:
        """Return when the last added receipt was settled, in Unix seconds; 0 without receipts."""
        cursors: Any = await self._redis.hvals(self._base + "cursors")
        return max((added_ms(raw.decode()) for raw in cursors), default=0) / 1000

    async def totals(self, periods: Sequence[Period]) -> dict[Period, SumRow]:
        """Return the sums over all tenants, without periods that have no receipts."""
        rows: dict[Period, SumRow] = {}
        for batch in batched(periods, _KEYS_PER_CALL):
            values: Any = await self._redis.mget([self._name("total", period) for period in batch])
            rows |= {period: row_of_previous(raw) for period, raw in zip(batch, values, strict=True) if raw is not None}
        return {period: row for period, row in rows.items() if row}

    async def rows(self, periods: Iterable[Period]) -> dict[Period, dict[SumDimensions, bytes]]:
        """Return the encoded sums of these periods."""
        keys = [(period, tenant) for period in periods for tenant in self.tenants[period]]
        rows: dict[Period, dict[SumDimensions, bytes]] = defaultdict(dict)
        for batch in batched(keys, _KEYS_PER_CALL):
            async with self._redis.pipeline(transaction=False) as pipe:
                for period, tenant in batch:
                    pipe.hgetall(f"{self._name('rows', period)}:{tenant}")
                hashes: list[Mapping[bytes, bytes]] = await pipe.execute()
            for (period, tenant), fields in zip(batch, hashes, strict=True):
                for field, raw in fields.items():
                    rows[period][SumDimensions(tenant, *_FIELDS.decode(field))] = row_of_previous(raw).to_bytes()
        return dict(rows)

    async def delete(self) -> None:
        """Delete the keys that `scan` found: sums, and the state of the previous version.

        Totals are deleted before their rows, and rows before their generation, so that an interruption is harmless.
        """
        for batch in batched(sorted(self._names, key=self._deletion_rank), _KEYS_PER_CALL):
            await self._redis.unlink(*batch)

    def _name(self, kind: str, period: Period) -> str:
        return f"{self._rows_base}{kind}:{period.granularity}:{period.start}"

    def _deletion_rank(self, name: str) -> int:
        match = _SUMS.fullmatch(name.removeprefix(self._base))
        return 2 if match is None else 0 if match[2] == "total" else 1
