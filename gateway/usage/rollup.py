"""Sums of receipts: by whom, how and by which engines they were answered. Pure.

A row of sums is a set of counters: a list of those that nearly every row has, and a dictionary of the others. A list
takes less time to add, to encode and to decode.

All counters are exact: money in whole picodollars (1e-12 USD), times in whole microseconds, and Python's integers have
no bound. So rows can be added in any order, over any times and tenants, and a receipt that was counted can be
subtracted again. Only quantiles of a histogram are rounded (histogram.py).
"""

from __future__ import annotations

from collections import defaultdict
from operator import add
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeVar

import msgspec

from gateway.accounting.edge import student_of
from gateway.usage.counters import (
    ANSWERED,
    BASELINE,
    BASELINE_ERROR,
    BATCHES,
    BUCKET_STEP,
    BUCKETS,
    BY_TEACHER,
    CLASS_AT,
    COST,
    ENGINE,
    ERROR,
    ESTIMATED,
    FAILED,
    FAILED_COST,
    FIXED,
    KEPT,
    OPENED,
    OTHER_CLASS,
    REQUESTS,
    STAGE_TIMES,
    STAGES,
    STUDENT,
    STUDENT_COST,
    TEACHER,
    TEACHER_COST,
    UNGUIDED,
    ClassSum,
    Sparse,
    TokenSums,
    class_counts,
)
from gateway.usage.histogram import Histogram
from gateway.usage.receipt_counts import counts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

    from gateway.accounting.receipt import Receipt

_Where = TypeVar("_Where")


class SumDimensions(NamedTuple):
    """The dimensions of sums. `teacher` and `student` are the engines that were called; empty: none."""

    tenant: str
    key: str
    route: str
    mode: str
    teacher: str
    student: str


class _Counter:
    """An attribute of a row that is one counter."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __get__(self, row: SumRow, _: object) -> int:
        return row.fixed[self.number]


class SumRow:
    """Some receipts, added up.

    Attributes:
        fixed: the first counters, in the order of their numbers. Rows may share a list: it is replaced, never changed.
        sparse: the other counters. Those that are 0 are not there, so equal sums have equal counters.
        requests: receipts, less those of what devices report of guidance, which has its own.
        kept_tokens: of what teachers wrote, the part that opened answers.
        cost_pico: all of it; `teacher_pico`, `student_pico` and `failed_pico` are its parts.
        baseline_pico: of a shadow 0: it spares nothing, since its request was answered, and paid for, as well.
        baseline_estimated: receipts whose baseline is an estimate; as `requests`, without what devices report.
        answer_tokens: of answers that callers got, to their end, counted by whoever wrote them.
        teacher_answer_tokens: of these, what teachers wrote: openings that were shown, and answers of theirs alone.
        guided: receipts whose answer a teacher opened; no shadows.
        baseline_error_pico: by how much `baseline_pico` may be wrong, either way: the bounds of its receipts together.
    """

    __slots__ = ("fixed", "sparse")

    requests = _Counter(REQUESTS)
    kept_tokens = _Counter(KEPT)
    cost_pico = _Counter(COST)
    teacher_pico = _Counter(TEACHER_COST)
    student_pico = _Counter(STUDENT_COST)
    failed_pico = _Counter(FAILED_COST)
    baseline_pico = _Counter(BASELINE)
    baseline_estimated = _Counter(ESTIMATED)
    answer_tokens = _Counter(ANSWERED)
    teacher_answer_tokens = _Counter(BY_TEACHER)
    guided = _Counter(OPENED)
    baseline_error_pico = _Counter(BASELINE_ERROR)

    def __init__(self, fixed: list[int] | None = None, sparse: Sparse | None = None) -> None:
        self.fixed = [0] * FIXED if fixed is None else fixed
        self.sparse: Sparse = {} if sparse is None else sparse

    @property
    def errors(self) -> dict[str, int]:
        """Return receipts by their status, where that is not `ok`."""
        return self._named(ERROR)

    @property
    def unguided(self) -> dict[str, int]:
        """Return receipts by why a guided route was answered without guidance."""
        return self._named(UNGUIDED)

    @property
    def engines(self) -> dict[str, int]:
        """Return what each engine was paid, of `cost_pico`; failed calls too."""
        return self._named(ENGINE)

    @property
    def batches(self) -> dict[int, int]:
        """Return receipts by the size of the batch that their teacher's call was in."""
        return {key - BATCHES: count for key, count in self.sparse.items() if isinstance(key, int) and key > BATCHES}

    @property
    def teacher(self) -> TokenSums:
        """Return what teachers read and wrote whose words were used; shared calls are another receipt's."""
        return self._tokens(TEACHER)

    @property
    def student(self) -> TokenSums:
        """Return the same of students."""
        return self._tokens(STUDENT)

    @property
    def failed(self) -> TokenSums:
        """Return the tokens of calls in whose place others were made, whichever role."""
        return self._tokens(FAILED)

    @property
    def stages(self) -> list[Histogram]:
        """Return times by STAGES; a stage that did not happen is not counted."""
        buckets: list[dict[int, int]] = [{} for _ in STAGES]
        for key, count in self.sparse.items():
            if isinstance(key, int) and BUCKETS <= key < BATCHES:
                stage, place = divmod(key - BUCKETS, BUCKET_STEP)
                buckets[stage][place] = count
        return [
            Histogram(sum(of_stage.values()), self.fixed[STAGE_TIMES + stage], of_stage)
            for stage, of_stage in enumerate(buckets)
        ]

    @property
    def classes(self) -> dict[str, ClassSum]:
        """Return the sums by savings class, in the order of pages. Classes that count nothing are left out."""
        get = self.sparse.get
        found = {name: ClassSum(*(get(at + field, 0) for field in range(5))) for name, at in CLASS_AT.items()}
        others: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
        for key, count in self._named(OTHER_CLASS).items():
            field, _, name = key.partition(":")
            others[name][int(field)] = count
        found |= {name: ClassSum(*sums) for name, sums in others.items()}
        return {name: one for name, one in found.items() if any(one)}

    @property
    def savings_pico(self) -> int:
        """The savings that count; may be negative."""
        return sum(one.savings_pico for one in self.classes.values())

    @property
    def savings_error_pico(self) -> int:
        """Return the error bound of `savings_pico`."""
        return sum(one.error_pico for one in self.classes.values())

    @property
    def unclassified(self) -> ClassSum:
        """Sums of receipts that a version without savings classes added. Their savings do not count."""
        classes = self.classes.values()
        return ClassSum(
            self.requests - sum(one.requests for one in classes),
            self.cost_pico - sum(one.cost_pico for one in classes),
            self.baseline_pico - sum(one.baseline_pico for one in classes),
        )

    @classmethod
    def of(cls, receipt: Receipt, times: int = 1) -> SumRow:
        """Return the row of a receipt. `times` is -1 for one that was counted, and in whose place another one came."""
        fixed, sparse = counts_of(receipt)
        if times != 1:
            fixed = [times * count for count in fixed]
            sparse = {key: times * count for key, count in sparse.items()}
        return cls(fixed, sparse)

    def add(self, receipt: Receipt, times: int = 1) -> None:
        """Count a receipt; `times` as for `of`."""
        self.merge(SumRow.of(receipt, times))

    def merge(self, other: SumRow) -> None:
        """Count all that another row does. Adding up many rows spends most of its time here."""
        self.fixed = [*map(add, self.fixed, other.fixed)]
        _merge(self.sparse, other.sparse)

    def copy(self) -> SumRow:
        """Another one that counts the same."""
        return SumRow(self.fixed, self.sparse.copy())

    def to_bytes(self) -> bytes:
        """Return the counters as MessagePack."""
        try:
            return _ENCODER.encode((self.fixed, self.sparse))
        except OverflowError:
            # More than MessagePack's 64 bits, 18 million USD: JSON has no bound, and an array of it begins otherwise.
            return msgspec.json.encode((self.fixed, list(self.sparse.items())))

    @classmethod
    def from_bytes(cls, raw: bytes) -> SumRow:
        """Raises msgspec.DecodeError when `raw` is not a row."""
        if raw.startswith(b"["):
            fixed, pairs = _JSON_DECODER.decode(raw)
            return cls(fixed, dict(pairs))
        return cls(*_DECODER.decode(raw))

    def __bool__(self) -> bool:
        """Return whether a counter is not 0."""
        return bool(self.sparse) or any(self.fixed)

    def _named(self, kind: str) -> dict[str, int]:
        return {
            key[len(kind) :]: count
            for key, count in self.sparse.items()
            if isinstance(key, str) and key.startswith(kind)
        }

    def _tokens(self, role: int) -> TokenSums:
        return TokenSums(*self.fixed[role : role + len(TokenSums._fields)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SumRow) and self.fixed == other.fixed and self.sparse == other.sparse

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Row({self.fixed}, {self.sparse})"


def _merge(mine: Sparse, others: Sparse) -> None:
    get = mine.get
    for key, count in others.items():
        if left := get(key, 0) + count:
            mine[key] = left
        else:
            del mine[key]


_ENCODER = msgspec.msgpack.Encoder()
_Fixed = Annotated[list[int], msgspec.Meta(min_length=FIXED, max_length=FIXED)]
_DECODER: msgspec.msgpack.Decoder[tuple[list[int], Sparse]] = msgspec.msgpack.Decoder(tuple[_Fixed, Sparse])
_JSON_DECODER: msgspec.json.Decoder[tuple[list[int], list[tuple[int | str, int]]]] = msgspec.json.Decoder(
    tuple[_Fixed, list[tuple[int | str, int]]]
)

NUMBERS = {name: one.number for name, one in vars(SumRow).items() if isinstance(one, _Counter)}
"""Numbers of the single counters by their names."""


def row_with(
    single: Mapping[str, int],
    *,
    errors: Mapping[str, int] = {},
    unguided: Mapping[str, int] = {},
    batches: Mapping[int, int] = {},
    engines: Mapping[str, int] = {},
    classes: Mapping[str, ClassSum] = {},
    tokens: Sequence[TokenSums] = (),
    stages: Sequence[Histogram] = (),
) -> SumRow:
    """Return the row that has these attributes.

    Args:
        single: by the names in `NUMBERS`.
        tokens: of the teacher, the student and failed calls.
    """
    row = SumRow()
    for name, count in single.items():
        row.fixed[NUMBERS[name]] = count
    for role, of_role in zip((TEACHER, STUDENT, FAILED), tokens, strict=False):
        row.fixed[role : role + len(of_role)] = of_role
    counts: Sparse = {BATCHES + size: count for size, count in batches.items()}
    for kind, named in ((ERROR, errors), (UNGUIDED, unguided), (ENGINE, engines)):
        counts |= {kind + name: count for name, count in named.items()}
    for name, sums in classes.items():
        counts |= class_counts(name, sums)
    for stage, times in enumerate(stages):
        row.fixed[STAGE_TIMES + stage] = times.sum_us
        counts |= {BUCKETS + BUCKET_STEP * stage + place: count for place, count in times.buckets.items()}
    row.sparse = {key: count for key, count in counts.items() if count}
    return row


def dims(receipt: Receipt) -> SumDimensions:
    """Under what a receipt is counted."""
    return SumDimensions(
        receipt.tenant,
        receipt.key,
        receipt.route,
        receipt.mode,
        receipt.teacher.model if receipt.teacher is not None else "",
        student.model if (student := student_of(receipt)) is not None else "",
    )


def total(rows: Sequence[SumRow]) -> SumRow:
    """Return the sum of rows. The sum of one row is that row itself: do not change the result."""
    if len(rows) == 1:
        return rows[0]
    sparse = rows[0].sparse.copy()
    for row in rows[1:]:
        _merge(sparse, row.sparse)
    return SumRow([*map(sum, zip(*(row.fixed for row in rows), strict=True))], sparse)


def merge_in(rows: MutableMapping[_Where, SumRow], where: _Where, row: SumRow) -> None:
    """Count all that a row does in the row of that place; neither is the other's afterwards."""
    held = rows.get(where)
    if held is None:
        rows[where] = row.copy()
    else:
        held.merge(row)
