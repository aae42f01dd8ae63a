"""Sums of receipts: by whom, how and by which engines they were answered. Pure.

Every sum is exact: money in whole picodollars (1e-12 USD), times in whole microseconds, and Python's integers have no
end. So rows can be added in any order, over any times and tenants, and a receipt that was counted can be taken out
again. Only what is read off a histogram is rounded (histogram.py).
"""

from __future__ import annotations

from decimal import Decimal
from math import ceil
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from gateway.ledger.edge import EDGE, GUIDANCE, student_of
from gateway.ledger.savings import MEASURING, class_of, savings_of
from gateway.usage.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from gateway.ledger.receipt import EngineShare, Receipt, Timings

_Name = TypeVar("_Name", int, str)
_Where = TypeVar("_Where")

STAGES = ("admission", "batch_wait", "teacher", "first_token", "total")
"""The order of `Row.stages`."""

_GUIDED = frozenset({"guided", "teacher_complete"})


class Dims(NamedTuple):
    """What receipts are told apart by. `teacher` and `student` are the engines that were called; empty: none."""

    tenant: str
    key: str
    route: str
    mode: str
    teacher: str
    student: str


class Tokens(msgspec.Struct, array_like=True, gc=False):
    """Tokens of one role. `input` was read afresh, `cached` read from the engine's prefix cache; as in metrics."""

    input: int = 0
    cached: int = 0
    output: int = 0

    def copy(self) -> Tokens:
        return Tokens(self.input, self.cached, self.output)

    def add(self, share: EngineShare, times: int = 1) -> None:
        """Count the tokens of a call; with `times` -1 no longer. A shared call is another receipt's."""
        if not share.shared:
            self.input += times * (share.input_tokens - share.cached_input_tokens)
            self.cached += times * share.cached_input_tokens
            self.output += times * share.output_tokens

    def merge(self, other: Tokens) -> None:
        """Count another's too."""
        self.input += other.input
        self.cached += other.cached
        self.output += other.output


class ClassSum(msgspec.Struct, array_like=True, gc=False):
    """Sums of one savings class (ledger/savings.py). Its order is what Redis holds, as that of `Row`.

    Attributes:
        cost_pico: without the probe, whose cost is in the class `measuring`.
        baseline_pico: as `Row.baseline_pico`.
        savings_pico: the savings that count. In the class `measuring`: measured baselines less their estimates.
        error_pico: how far `savings_pico` may be from the truth. Measured baselines take their estimates' errors out.
    """

    requests: int = 0
    cost_pico: int = 0
    baseline_pico: int = 0
    savings_pico: int = 0
    error_pico: int = 0

    def add(self, other: ClassSum, times: int = 1) -> None:
        """Add another sum `times` times."""
        self.requests += times * other.requests
        self.cost_pico += times * other.cost_pico
        self.baseline_pico += times * other.baseline_pico
        self.savings_pico += times * other.savings_pico
        self.error_pico += times * other.error_pico


class Row(msgspec.Struct, array_like=True, gc=False):
    """Some receipts, added up. Its order is what Redis and the archive hold: new attributes go to the end.

    Nothing in a row leads back to it, so the garbage collector need not look at what may be very many of them.

    Attributes:
        requests: receipts, less those of what devices report of guidance, which has its own.
        errors: receipts by their status, where that is not `ok`.
        unguided: receipts by why a guided route was answered without guidance.
        batches: receipts by the size of the batch that their teacher's call was in.
        teacher, student: what calls read and wrote whose words were used; shared ones are another receipt's.
        failed: what calls did in whose place others were made, whichever role.
        kept_tokens: of what teachers wrote, the part that opened answers.
        cost_pico: all of it; `teacher_pico`, `student_pico` and `failed_pico` are its parts.
        baseline_pico: of a shadow 0: it spares nothing, since its request was answered, and paid for, as well.
        baseline_estimated: receipts whose baseline is an estimate; as `requests`, without what devices report.
        stages: by STAGES; a stage that did not happen is not counted.
        answer_tokens: of answers that callers got, to their end, counted by whoever wrote them.
        teacher_answer_tokens: of these, what teachers wrote: openings that were shown, and answers of theirs alone.
        guided: receipts whose answer a teacher opened; no shadows.
        baseline_error_pico: by how much `baseline_pico` may be wrong, either way: the bounds of its receipts together.
        engines: of `cost_pico`, what each engine was paid, failed calls too.
        classes: sums by savings class. A version without classes drops those of a row that it adds to; what they lack
            to the row's other sums is `unclassified`.
    """

    requests: int = 0
    errors: dict[str, int] = {}
    unguided: dict[str, int] = {}
    batches: dict[int, int] = {}
    teacher: Tokens = msgspec.field(default_factory=Tokens)
    student: Tokens = msgspec.field(default_factory=Tokens)
    failed: Tokens = msgspec.field(default_factory=Tokens)
    kept_tokens: int = 0
    cost_pico: int = 0
    teacher_pico: int = 0
    student_pico: int = 0
    failed_pico: int = 0
    baseline_pico: int = 0
    baseline_estimated: int = 0
    stages: list[Histogram] = msgspec.field(default_factory=lambda: [Histogram() for _ in STAGES])
    answer_tokens: int = 0
    teacher_answer_tokens: int = 0
    guided: int = 0
    baseline_error_pico: int = 0
    engines: dict[str, int] = {}
    classes: dict[str, ClassSum] = {}

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
        rest = ClassSum(self.requests, self.cost_pico, self.baseline_pico)
        for one in self.classes.values():
            rest.requests -= one.requests
            rest.cost_pico -= one.cost_pico
            rest.baseline_pico -= one.baseline_pico
        return rest

    def add(self, receipt: Receipt, times: int = 1) -> None:
        """Count a receipt. `times` is -1 for one that was counted, and in whose place another one came."""
        reported = receipt.edge_of is not None  # of a guidance, which was counted as the request
        self.requests += 0 if reported else times
        if receipt.status != "ok":
            _count(self.errors, receipt.status, times)
        self.guided += times * (receipt.mode in _GUIDED or _is_given(receipt))
        if receipt.unguided is not None and not reported:
            _count(self.unguided, receipt.unguided, times)
        if receipt.batch is not None:
            _count(self.batches, receipt.batch.size, times)
        if receipt.guidance is not None:
            self.kept_tokens += times * receipt.guidance.kept_tokens
        cost = pico(receipt.cost_usd)
        baseline = pico(receipt.baseline_usd) if receipt.shadow_of is None else 0
        self.cost_pico += times * cost
        self.baseline_pico += times * baseline
        self._add_savings(receipt, cost, baseline, times)
        if receipt.shadow_of is None:
            self.baseline_estimated += times * (receipt.baseline_estimated and not reported)
            self.baseline_error_pico += times * pico(receipt.baseline_error_usd)
        if receipt.teacher is not None:
            self.teacher.add(receipt.teacher, times)
            self.teacher_pico += times * self._pay(receipt.teacher, times)
        for share in (receipt.student, receipt.probe):
            if share is not None:
                self.student.add(share, times)
                self.student_pico += times * self._pay(share, times)
        for attempt in receipt.attempts:
            if attempt.share is not None:
                self.failed.add(attempt.share, times)
                self.failed_pico += times * self._pay(attempt.share, times)
        if receipt.mode != EDGE:  # a device's times are no stage's
            self._add_times(receipt.timings, times)
        by_teacher, by_student = _answer_tokens(receipt)
        self.teacher_answer_tokens += times * by_teacher
        self.answer_tokens += times * (by_teacher + by_student)

    def _add_savings(self, receipt: Receipt, cost: int, baseline: int, times: int) -> None:
        found, of_class = savings_of(receipt), class_of(receipt)
        measuring = pico(found.measuring_usd) if of_class != MEASURING else 0
        if measuring:
            self._add_class(MEASURING, ClassSum(cost_pico=measuring), times)
        requests = int(receipt.edge_of is None)
        one = ClassSum(requests, cost - measuring, baseline, pico(found.usd), pico(found.error_usd))
        self._add_class(of_class, one, times)

    def _add_class(self, name: str, one: ClassSum, times: int) -> None:
        held = self.classes.get(name)
        if held is None:
            held = self.classes[name] = ClassSum()
        held.add(one, times)
        if not held.requests and held == ClassSum():
            del self.classes[name]

    def _add_times(self, timings: Timings, times: int) -> None:
        spent = (
            timings.admission_ms,
            timings.batch_wait_ms,
            timings.teacher_ms,
            timings.first_token_ms,
            timings.total_ms,
        )
        for stage, spent_ms in zip(self.stages, spent, strict=True):
            if spent_ms is not None:
                stage.add(round(spent_ms * 1000), times)

    def _pay(self, share: EngineShare, times: int) -> int:
        """Count what an engine was paid, and return it."""
        paid = pico(share.cost_usd)
        if paid:
            _count(self.engines, share.model, times * paid)
        return paid

    def merge(self, other: Row) -> None:
        """Count all that another row does."""
        self.requests += other.requests
        if other.errors:
            _merge(self.errors, other.errors)
        if other.unguided:
            _merge(self.unguided, other.unguided)
        if other.batches:
            _merge(self.batches, other.batches)
        self.teacher.merge(other.teacher)
        self.student.merge(other.student)
        self.failed.merge(other.failed)
        self.kept_tokens += other.kept_tokens
        self.cost_pico += other.cost_pico
        self.teacher_pico += other.teacher_pico
        self.student_pico += other.student_pico
        self.failed_pico += other.failed_pico
        self.baseline_pico += other.baseline_pico
        self.baseline_estimated += other.baseline_estimated
        for mine_us, theirs_us in zip(self.stages, other.stages, strict=True):
            if theirs_us.buckets or theirs_us.sum_us:
                mine_us.merge(theirs_us)
        self.answer_tokens += other.answer_tokens
        self.teacher_answer_tokens += other.teacher_answer_tokens
        self.guided += other.guided
        self.baseline_error_pico += other.baseline_error_pico
        _merge(self.engines, other.engines)
        for name, one in other.classes.items():
            self._add_class(name, one, 1)

    def copy(self) -> Row:
        """Another one that counts the same."""
        return msgspec.structs.replace(
            self,
            errors=self.errors.copy(),
            unguided=self.unguided.copy(),
            batches=self.batches.copy(),
            teacher=self.teacher.copy(),
            student=self.student.copy(),
            failed=self.failed.copy(),
            stages=[one.copy() for one in self.stages],
            engines=self.engines.copy(),
            classes={name: msgspec.structs.replace(one) for name, one in self.classes.items()},
        )

    def to_bytes(self) -> bytes:
        try:
            return msgspec.msgpack.encode(self)
        except OverflowError:
            # More than MessagePack's 64 bits, 18 million USD: JSON has no bound, and an array of it begins otherwise.
            return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Row:
        """Raises msgspec.DecodeError when `raw` is not a row."""
        return msgspec.json.decode(raw, type=cls) if raw.startswith(b"[") else msgspec.msgpack.decode(raw, type=cls)


def dims(receipt: Receipt) -> Dims:
    """Under what a receipt is counted."""
    return Dims(
        receipt.tenant,
        receipt.key,
        receipt.route,
        receipt.mode,
        receipt.teacher.model if receipt.teacher is not None else "",
        student.model if (student := student_of(receipt)) is not None else "",
    )


def row_in(rows: MutableMapping[Dims, Row], where: Dims) -> Row:
    """The row of these dims, a new one if there is none yet."""
    row = rows.get(where)
    if row is None:
        row = rows[where] = Row()
    return row


def merge_in(rows: MutableMapping[_Where, Row], where: _Where, row: Row) -> None:
    """Count all that a row does in the row of that place; neither is the other's afterwards."""
    held = rows.get(where)
    if held is None:
        rows[where] = row.copy()
    else:
        held.merge(row)


def pico(usd: Decimal | None) -> int:
    """Return USD in whole picodollars, rounded up as `picodollars` does. Receipts have no finer amounts."""
    return ceil(usd.scaleb(12)) if usd else 0


def usd(picos: int) -> Decimal:
    """The reverse."""
    return Decimal(picos).scaleb(-12)


def _is_given(receipt: Receipt) -> bool:
    """Whether a device got guidance."""
    return receipt.mode == GUIDANCE and receipt.guidance is not None


def _answer_tokens(receipt: Receipt) -> tuple[int, int]:
    """What of the answer its teacher wrote, and its student; nothing of one that did not come, or that nobody got.

    An opening that only the student read, as its context, is no part of the answer.
    """
    if receipt.shadow_of is not None or receipt.status != "ok":
        return 0, 0
    teacher, student, guidance = receipt.teacher, receipt.student, receipt.guidance
    opened = 0
    if guidance is not None:
        whole = student is None and (receipt.mode != GUIDANCE or guidance.complete)
        opened = guidance.kept_tokens if guidance.placement == "prefix" or whole else 0
    elif teacher is not None and receipt.mode == "teacher":
        opened = teacher.output_tokens
    return opened, student.output_tokens if student is not None else 0


def _count(counts: dict[_Name, int], name: _Name, times: int) -> None:
    left = counts.get(name, 0) + times
    if left:
        counts[name] = left
    else:
        del counts[name]


def _merge(counts: dict[_Name, int], others: dict[_Name, int]) -> None:
    for name, times in others.items():
        _count(counts, name, times)
