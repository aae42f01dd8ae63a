"""The receipt of one request. It is frozen. Amounts are Decimal in memory and text in JSON."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET, UnsetType

from gateway.accounting.answer_length import LengthRule
from gateway.accounting.savings import MeasuredBaseline, Savings, apply_class, is_about_zero, savings_class, shown
from gateway.policy.plan import SplitFacts
from gateway.pricing import total_usd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.protocol.body import Json

_REQUEST = r"req_[0-9a-f]{24}"
REQUEST_ID = re.compile(_REQUEST, re.ASCII)
"""The id of a request and of its receipt."""
RECEIPT_ID = re.compile(rf"{_REQUEST}(?:-[a-z]{{1,16}}){{0,3}}|edge_[0-9a-f]{{32}}", re.ASCII)
"""The id of a receipt, also of a shadow or quality sample (SHADOW_NAMES), an edge report or an offline answer."""
SHADOW_NAMES = ("shadow", "shadow-teacher", "shadow-student", "shadow-judge-guided", "shadow-judge-student")
"""Ends of the ids of the shadows and quality samples of a request, after its own id and a hyphen."""


class EngineShare(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of one engine in a request.

    Attributes:
        at_least: the engine may have written more: it sent no usage, and neither a limit nor its maximum is known.
        usage_error: why the reported usage was rejected. "too_high": above the reservation, which caps each count.
            "too_low": too few tokens for the received text.
    """

    model: str
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    cached_input_tokens: int = 0  # the part of `input_tokens` that the engine read from its prompt cache
    estimated: bool = False  # the gateway counted, since the engine reported no usage or one usage for several calls
    at_least: bool = False
    shared: str = ""  # "flight" or "cache" where an identical request made and paid for the call; the cost is then 0
    usage_error: str = ""
    cache_write_input_tokens: int = 0  # the part of `input_tokens` that the engine wrote to its prompt cache
    cache_write_1h_input_tokens: int = 0  # the part of it that is charged for a lifetime of one hour

    @property
    def fresh_input_tokens(self) -> int:
        """Return the input tokens that the engine neither read from its prompt cache nor wrote to it."""
        return self.input_tokens - self.cached_input_tokens - self.cache_write_input_tokens


def total_cost(shares: Sequence[EngineShare]) -> Decimal:
    """Return the exact cost of all shares."""
    return shares[0].cost_usd if len(shares) == 1 else total_usd(*[share.cost_usd for share in shares])


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """A failed call that another call replaced."""

    engine: str
    error: str
    share: EngineShare | None = None  # the largest possible one; None where the engine never received the call


class GuidanceFacts(msgspec.Struct, frozen=True):
    """The guidance of an answer."""

    projection: str
    placement: str
    tokens: int  # m, the requested number of tokens
    kept_tokens: int  # the number of tokens before the seam, in the teacher's tokens
    complete: bool  # the teacher ended its answer by itself
    cut_short: str | None = None  # why the teacher ended early, as in `unguided`. Its text was sent before.
    kept_estimated: bool | msgspec.UnsetType = msgspec.UNSET  # True: `kept_tokens` is estimated; else absent


class CloseTerms(msgspec.Struct, frozen=True):
    """The terms of a device's report on its answer."""

    by: int  # the deadline in Unix seconds
    most_output_tokens: int | None  # the rest of the caller's limit; None where there is no limit


class BatchFacts(msgspec.Struct, frozen=True):
    """The batch of the teacher's call. `size` counts calls over the fleet."""

    id: str
    size: int


class Timings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Milliseconds since the request arrived, or of a stage; None where the stage did not happen."""

    total_ms: float
    admission_ms: float | None = None
    batch_wait_ms: float | None = None
    teacher_ms: float | None = None
    first_token_ms: float | None = None
    handover_ms: float | None = None  # from the complete guidance to the student's first token, in a stream


class Receipt(msgspec.Struct, frozen=True):
    """The accounting record of one request.

    Attributes:
        mode: guided, teacher_complete (the guidance was the whole answer), student or teacher. Also shadow (a
            background copy of another request), guidance (for a device that finishes the answer), and edge (the
            device's report).
        attempts: the failed calls before the answer. The cost includes their largest possible cost.
        baseline_basis: engine, tokenizer or estimate: the basis of its counts.
        baseline_error_usd: the largest error of the baseline.
        hint: the setting to change and its value, where guidance was late and is often late on this route.
        measured: for a quality sample's teacher call, the measured baseline of the request in `shadow_of`.
    """

    id: str
    created: int
    tenant: str
    key: str
    route: str
    mode: str
    stream: bool
    status: str  # ok, the label of an error (errors.py), or client_gone
    finish_reason: str | None
    unguided: str | None  # why a guided route was answered without guidance
    teacher: EngineShare | None
    student: EngineShare | None
    guidance: GuidanceFacts | None
    batch: BatchFacts | None
    cost_usd: Decimal
    baseline_model: str
    baseline_usd: Decimal  # the cost of the baseline model alone for the same prompt and answer
    baseline_estimated: bool  # whether a token count of the baseline is estimated or from another tokenizer
    savings_usd: Decimal  # the savings that count, by the rules of savings.py. They may be negative.
    timings: Timings
    attempts: tuple[Attempt, ...] = ()
    shadow_of: str | None = None  # for a shadow, the id of the original request
    budget: str | None = None  # "soft" where a budget of the tenant or the key was past its soft limit
    baseline_basis: Literal["engine", "tokenizer", "estimate"] | None = None
    baseline_error_usd: Decimal | None = None
    close: CloseTerms | None = None  # for guidance, the terms of the device's report; None where no report is needed
    edge_of: str | None = None  # for a report, the id of the guidance request; None for an offline answer
    hint: str | None = None
    savings_class: str | None = None  # why `savings_usd` counts or does not (savings.py)
    measured: MeasuredBaseline | None = None
    estimated: bool = False  # whether the cost includes an estimate. The cost is then an upper bound.
    # Omitted without a warm-up: `null` in each stored receipt would not match the dictionary that compresses them.
    stored_warmup: EngineShare | UnsetType = msgspec.field(default=UNSET, name="warmup")
    stored_continued_tokens: int | UnsetType = msgspec.field(default=UNSET, name="continued_tokens")
    stored_split: SplitFacts | UnsetType = msgspec.field(default=UNSET, name="split")  # omitted without a split
    stored_tags: tuple[str, ...] | UnsetType = msgspec.field(default=UNSET, name="tags")  # of the caller; or omitted
    stored_labels: dict[str, str] | UnsetType = msgspec.field(default=UNSET, name="labels")  # omitted without labels
    stored_unguided_field: str | UnsetType = msgspec.field(default=UNSET, name="unguided_field")  # omitted without one
    stored_max_tokens: int | UnsetType = msgspec.field(default=UNSET, name="max_tokens")  # omitted if not reduced
    # The rule for the length of the baseline's answer; omitted where it has the answer's own length.
    stored_length_rule: LengthRule | UnsetType = msgspec.field(default=UNSET, name="length_rule")

    @property
    def continued_tokens(self) -> int:
        """Return the answer's tokens that failed calls wrote before another call continued their text."""
        return 0 if self.stored_continued_tokens is UNSET else self.stored_continued_tokens

    @property
    def unguided_field(self) -> str | None:
        """Return the unknown field that is the reason for `unguided`."""
        return None if self.stored_unguided_field is UNSET else self.stored_unguided_field

    @property
    def max_tokens(self) -> int | None:
        """Return the token limit of the answer; None if the caller's was not reduced."""
        return None if self.stored_max_tokens is UNSET else self.stored_max_tokens

    @property
    def split(self) -> SplitFacts | None:
        """Return the variant of the route; None if the route itself served the request."""
        return None if self.stored_split is UNSET else self.stored_split

    @property
    def tags(self) -> tuple[str, ...]:
        """Return the caller's tags of the request."""
        return () if self.stored_tags is UNSET else self.stored_tags

    @property
    def labels(self) -> Mapping[str, str]:
        """Return the values of the tenant's labels by name."""
        return {} if self.stored_labels is UNSET else self.stored_labels

    @property
    def warmup(self) -> EngineShare | None:
        """Return the share of the call that warmed the student's prefix cache. The cost includes it."""
        return None if self.stored_warmup is UNSET else self.stored_warmup

    @property
    def tokens(self) -> int:
        """Return all tokens read and written for the request, failed calls included, shared calls excluded."""
        tokens = 0
        failed = [attempt.share for attempt in self.attempts]
        for share in (self.teacher, self.student, self.warmup, *failed):
            if share is not None and not share.shared:
                tokens += share.input_tokens + share.output_tokens
        return tokens

    def as_dict(self, *, show_cost: bool = True) -> Json:
        """Return plain values. Amounts are text without an exponent, or omitted where `show_cost` is False."""
        plain: Json = msgspec.to_builtins(self, builtin_types=(Decimal,))
        failed = (attempt["share"] for attempt in plain["attempts"] if "share" in attempt)
        named = (plain.get(name) or {} for name in ("teacher", "student", "warmup", "measured"))
        for holder in (plain, *named, *failed):
            for name in [name for name, value in holder.items() if isinstance(value, Decimal)]:
                money = holder.pop(name)
                if show_cost:
                    holder[name] = f"{money:f}"
        if show_cost:
            counted = savings_of(self)
            plain["savings_about_zero"] = is_about_zero(counted.usd, counted.error_usd)
        elif self.measured is not None:
            plain["measured"] = None
        return plain

    def to_json(self) -> bytes:
        """Return the stored form. Callers get `as_dict`."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Receipt:
        """Decode a receipt. Raises msgspec.DecodeError: `raw` is not a receipt."""
        return _DECODER.decode(raw).checked()

    def checked(self) -> Receipt:
        """Return the receipt. Raises msgspec.ValidationError where an amount is not finite, so that sums stay valid."""
        amounts = [self.cost_usd, self.baseline_usd, self.savings_usd]
        if self.baseline_error_usd is not None:
            amounts.append(self.baseline_error_usd)
        for share in (self.teacher, self.student, self.warmup):
            if share is not None:
                amounts.append(share.cost_usd)  # noqa: PERF401 - a comprehension takes twice as long
        if self.attempts:
            amounts += [attempt.share.cost_usd for attempt in self.attempts if attempt.share is not None]
        if (measured := self.measured) is not None:
            amounts += (measured.baseline_usd, measured.estimated_usd, measured.estimated_error_usd)
        if not all(map(Decimal.is_finite, amounts)):
            raise msgspec.ValidationError("money must be a number")
        return self

    def facts(self, *, show_cost: bool) -> Json:
        """Return the facts for the reply: `x-gkt-` headers, or `x_gkt` in the last chunk."""
        facts = first_facts(self.mode, self.split, self.unguided, self.unguided_field, self.hint, self.max_tokens)
        teacher, student, timings = self.teacher, self.student, self.timings
        if teacher is not None:
            facts["teacher"] = teacher.model
            facts["teacher_tokens"] = f"{teacher.input_tokens}+{teacher.output_tokens}"
        if student is not None:
            facts["student"] = student.model
            facts["student_tokens"] = f"{student.input_tokens}+{student.output_tokens}"
        if self.estimated:
            facts["estimated"] = "true"
        if self.guidance is not None:
            facts["guidance_tokens"] = self.guidance.kept_tokens
            if self.guidance.placement != "prefix":
                facts["placement"] = self.guidance.placement
        shared = None if teacher is None else teacher.shared
        add_call_facts(facts, shared, self.budget, len(self.attempts), self.batch)
        if self.continued_tokens:
            facts["continued_tokens"] = self.continued_tokens
        for name, spent in (
            ("admission_ms", timings.admission_ms),
            ("batch_wait_ms", timings.batch_wait_ms),
            ("teacher_ms", timings.teacher_ms),
            ("first_token_ms", timings.first_token_ms),
            ("handover_ms", timings.handover_ms),
            ("total_ms", timings.total_ms),
        ):
            if spent is not None:
                facts[name] = spent
        if show_cost:
            facts["cost_usd"] = f"{self.cost_usd.normalize():f}"
            facts["baseline_usd"] = f"{self.baseline_usd.normalize():f}"
            counted = savings_of(self)
            facts["savings_usd"] = shown(counted.usd, counted.error_usd)
            facts["savings_class"] = class_of(self)
        return facts


def first_facts(
    mode: str,
    split: SplitFacts | None,
    unguided: str | None,
    unguided_field: str | None,
    hint: str | None,
    max_tokens: int | None,
) -> Json:
    """Return the facts of a reply about its mode."""
    facts: Json = {"mode": mode}
    if split is not None:
        facts["variant"] = split.variant
    if unguided is not None:
        facts["unguided"] = unguided if unguided_field is None else f"{unguided}: {unguided_field}"
    if hint is not None:
        facts["hint"] = hint
    if max_tokens is not None:
        facts["max_tokens"] = max_tokens
    return facts


def add_call_facts(facts: Json, shared: str | None, budget: str | None, failed: int, batch: BatchFacts | None) -> None:
    """Add the facts of a reply about its engine calls, of which `failed` calls failed."""
    if shared:
        facts["shared"] = shared
    if budget:
        facts["budget"] = budget
    if failed:
        facts["failed_attempts"] = failed
    if batch is not None:
        facts["batch"], facts["batch_size"] = batch.id, batch.size


# Created at import: msgspec 0.22 may crash when two threads decode a type for the first time.
_DECODER = msgspec.json.Decoder(Receipt)


def class_of(receipt: Receipt) -> str:
    """Return the receipt's class, or the one that its other fields decide where it has none yet."""
    return receipt.savings_class or savings_class(
        mode=receipt.mode, status=receipt.status, unguided=receipt.unguided, shadow_of=receipt.shadow_of
    )


def savings_of(receipt: Receipt) -> Savings:
    """Return what the receipt adds to sums of savings."""
    amounts = receipt.baseline_usd, receipt.baseline_error_usd, receipt.cost_usd
    return apply_class(class_of(receipt), *amounts, receipt.measured)


def with_savings(receipt: Receipt) -> Receipt:
    """Return the receipt with its class and the savings that count."""
    return msgspec.structs.replace(receipt, savings_class=class_of(receipt), savings_usd=savings_of(receipt).usd)
