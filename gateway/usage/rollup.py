"""Sums of receipts by tenant, key, route, mode and engines. Pure.

A row of sums has a list of counters that nearly every row has, and a dictionary of the others. All counters are exact:
money in whole picodollars (1e-12 USD), times in whole microseconds. So rows can be added in any order, and a counted
receipt can be subtracted again. Only quantiles of histograms are rounded (histogram.py).
"""

from __future__ import annotations

from collections import defaultdict
from operator import add
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeVar

import msgspec

from gateway.accounting.edge import student_of
from gateway.accounting.savings import CLIENT_GONE, MEASURING
from gateway.usage import counters
from gateway.usage.counters import BATCHES, FIXED, STAGE_TIMES, STAGES, ClassSum, Sparse, TokenSums, VariantSum
from gateway.usage.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from gateway.accounting.receipt import Receipt

_Key = TypeVar("_Key")


class SumDimensions(NamedTuple):
    """Dimensions of sums. `teacher` and `student` are the called engines; empty: none."""

    tenant: str
    key: str
    route: str
    mode: str
    teacher: str
    student: str


class _Counter:
    """A row attribute that is one counter of `SumRow.fixed`."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __get__(self, row: SumRow, _: object) -> int:
        return row.fixed[self.number]


class SumRow(msgspec.Struct):
    """The sum of some receipts.

    Attributes:
        fixed: the first counters, in the order of their numbers. Rows may share a list: replace it, never change it.
        sparse: the other counters, without zeros, so that equal sums have equal counters.
        requests: receipts with shadows, without device reports on guidance: the guidance has its own receipt.
        kept_tokens: tokens of guidance that became part of answers.
        cost_pico: the whole cost. `teacher_pico`, `student_pico` and `failed_pico` are parts of it.
        baseline_pico: the baselines that count: `cost_pico` and `savings_pico` together.
        baseline_estimated: receipts whose baseline counts and is estimated, without device reports and shadows.
        answer_tokens: tokens of complete answers that callers received, counted by the engine that generated them.
        teacher_answer_tokens: the part of `answer_tokens` by teachers: visible guidance, and whole answers.
        guided: receipts with guidance, without shadow requests.
        baseline_error_pico: error bound of `baseline_pico`, equal to `savings_error_pico`.
    """

    fixed: list[int] = msgspec.field(default_factory=lambda: [0] * FIXED)
    sparse: Sparse = {}

    # In the order of `counts_of`.
    requests, kept_tokens, cost_pico, baseline_pico, baseline_error_pico = map(_Counter, range(5))
    baseline_estimated, answer_tokens, teacher_answer_tokens, guided = map(_Counter, range(5, 9))
    teacher_pico, student_pico, failed_pico = map(_Counter, counters.ROLE_COSTS)

    @property
    def caller_requests(self) -> int:
        """Return the requests without shadows: answers, failed requests, and those whose caller disconnected."""
        return self.requests - self.shadows

    @property
    def shadows(self) -> int:
        """Return the receipts of shadows and quality samples."""
        return self.sparse.get(counters.CLASS_AT[MEASURING], 0)

    @property
    def answers(self) -> int:
        """Return the requests with a complete answer."""
        return self.caller_requests - sum(self.errors.values()) - self.disconnected

    @property
    def errors(self) -> dict[str, int]:
        """Return failed requests by status. Shadows and callers that disconnected are none."""
        return {name: count for name, count in self._named(counters.ERROR).items() if name != CLIENT_GONE}

    @property
    def disconnected(self) -> int:
        """Return the requests whose caller disconnected before the end of the answer."""
        return self.sparse.get(counters.ERROR + CLIENT_GONE, 0)

    @property
    def failed_shadows(self) -> int:
        """Return the shadows without an answer."""
        return self.sparse.get(counters.FAILED_SHADOWS, 0)

    @property
    def unguided(self) -> dict[str, int]:
        """Return requests without guidance on guided routes, by reason."""
        return self._named(counters.UNGUIDED)

    @property
    def engines(self) -> dict[str, int]:
        """Return the part of `cost_pico` of each engine, including failed calls."""
        return self._named(counters.ENGINE)

    @property
    def batches(self) -> dict[int, int]:
        """Return receipts by the batch size of their teacher call."""
        return {key - BATCHES: count for key, count in self.sparse.items() if isinstance(key, int) and key > BATCHES}

    @property
    def teacher(self) -> TokenSums:
        """Return tokens of successful teacher calls. A shared call counts in one receipt."""
        return self._tokens(counters.TEACHER)

    @property
    def student(self) -> TokenSums:
        """Return tokens of successful student calls, including warm-ups."""
        return self._tokens(counters.STUDENT)

    @property
    def failed(self) -> TokenSums:
        """Return tokens of calls that were retried, in any role."""
        return self._tokens(counters.FAILED)

    @property
    def stages(self) -> list[Histogram]:
        """Return a histogram for each of STAGES. Skipped stages are not counted."""
        buckets: list[dict[int, int]] = [{} for _ in STAGES]
        first, step, handover_first = counters.BUCKETS, counters.BUCKET_STEP, counters.HANDOVER_BUCKETS
        for key, count in self.sparse.items():
            if not isinstance(key, int) or not handover_first <= key < BATCHES:
                continue
            if key >= first:
                stage, bucket = divmod(key - first, step)
                buckets[stage][bucket] = count
            else:
                buckets[-1][key - handover_first] = count
        sums_us = (*self.fixed[STAGE_TIMES:FIXED], self.sparse.get(counters.HANDOVER_TIME, 0))
        return [Histogram(sum(one.values()), sum_us, one) for sum_us, one in zip(sums_us, buckets, strict=True)]

    @property
    def classes(self) -> dict[str, ClassSum]:
        """Return the sums by savings class, in display order, without empty classes."""
        get = self.sparse.get
        sums_of = {
            name: ClassSum(*(get(first + field, 0) for field in range(5))) for name, first in counters.CLASS_AT.items()
        }
        others: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
        for key, count in self._named(counters.OTHER_CLASS).items():
            field, _, name = key.partition(":")
            others[name][int(field)] = count
        sums_of |= {name: ClassSum(*sums) for name, sums in others.items()}
        return {name: sums for name, sums in sums_of.items() if any(sums)}

    @property
    def variants(self) -> dict[str, VariantSum]:
        """Return the sums by variant of split routes, by name."""
        sums: dict[str, list[int]] = defaultdict(lambda: [0] * len(VariantSum._fields))
        for key, count in self._named(counters.VARIANT).items():
            field, _, name = key.partition(":")
            if int(field) < len(VariantSum._fields):
                sums[name][int(field)] = count
        return {name: VariantSum(*sums[name]) for name in sorted(sums)}

    @property
    def savings_pico(self) -> int:
        """Return the counted savings, which may be negative."""
        return sum(sums.savings_pico for sums in self.classes.values())

    @property
    def savings_error_pico(self) -> int:
        """Return the error bound of `savings_pico`."""
        return sum(sums.error_pico for sums in self.classes.values())

    @property
    def unclassified(self) -> ClassSum:
        """Return sums of receipts that a version without savings classes added. Their savings do not count."""
        classes = self.classes.values()
        return ClassSum(
            self.requests - sum(sums.requests for sums in classes),
            self.cost_pico - sum(sums.cost_pico for sums in classes),
            self.baseline_pico - sum(sums.baseline_pico for sums in classes),
        )

    @classmethod
    def of(cls, receipt: Receipt, times: int = 1) -> SumRow:
        """Return the row of a receipt. `times` is -1 to subtract a counted receipt that another receipt replaces."""
        fixed, sparse = counters.counts_of(receipt)
        if times != 1:
            fixed = [times * count for count in fixed]
            sparse = {key: times * count for key, count in sparse.items()}
        return cls(fixed, sparse)

    def merge(self, other: SumRow) -> None:
        """Add another row. This dominates the time of adding up many rows."""
        self.fixed = [*map(add, self.fixed, other.fixed)]
        _merge(self.sparse, other.sparse)

    def to_bytes(self) -> bytes:
        """Return the counters as MessagePack."""
        try:
            return _ENCODER.encode((self.fixed, self.sparse))
        except OverflowError:
            # A counter exceeds MessagePack's 64 bits (18 million USD). JSON has no limit, and starts with another byte.
            return msgspec.json.encode((self.fixed, list(self.sparse.items())))

    @classmethod
    def from_bytes(cls, raw: bytes) -> SumRow:
        """Decode a row. Raises msgspec.DecodeError."""
        if raw.startswith(b"["):
            fixed, pairs = _JSON_DECODER.decode(raw)
            return cls(fixed, dict(pairs))
        return cls(*_DECODER.decode(raw))

    def __bool__(self) -> bool:
        """Return whether any counter is not 0."""
        return bool(self.sparse) or any(self.fixed)

    def _named(self, kind: str) -> dict[str, int]:
        return {
            key[len(kind) :]: count
            for key, count in self.sparse.items()
            if isinstance(key, str) and key.startswith(kind)
        }

    def _tokens(self, role: int) -> TokenSums:
        return TokenSums(*self.fixed[role : role + len(TokenSums._fields)])


def _merge(target: Sparse, source: Sparse) -> None:
    get = target.get
    for key, count in source.items():
        if total_count := get(key, 0) + count:
            target[key] = total_count
        else:
            del target[key]


_ENCODER = msgspec.msgpack.Encoder()
_Fixed = Annotated[list[int], msgspec.Meta(min_length=FIXED, max_length=FIXED)]
_DECODER: msgspec.msgpack.Decoder[tuple[list[int], Sparse]] = msgspec.msgpack.Decoder(tuple[_Fixed, Sparse])
_JSON_DECODER: msgspec.json.Decoder[tuple[list[int], list[tuple[int | str, int]]]] = msgspec.json.Decoder(
    tuple[_Fixed, list[tuple[int | str, int]]]
)


def dims_of(receipt: Receipt) -> SumDimensions:
    """Return the dimensions that count a receipt."""
    return SumDimensions(
        receipt.tenant,
        receipt.key,
        receipt.route,
        receipt.mode,
        receipt.teacher.model if receipt.teacher is not None else "",
        student.model if (student := student_of(receipt)) is not None else "",
    )


def total(rows: Sequence[SumRow]) -> SumRow:
    """Return the sum of rows. The sum of one row is the row itself: do not change the result."""
    if len(rows) == 1:
        return rows[0]
    sparse = rows[0].sparse.copy()
    for row in rows[1:]:
        _merge(sparse, row.sparse)
    return SumRow([*map(sum, zip(*(row.fixed for row in rows), strict=True))], sparse)


def merge_in(rows: MutableMapping[_Key, SumRow], key: _Key, row: SumRow) -> None:
    """Add a row to the row at `key`, without sharing counters."""
    present = rows.get(key)
    if present is None:
        rows[key] = SumRow(row.fixed, row.sparse.copy())
    else:
        present.merge(row)
