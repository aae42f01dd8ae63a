"""Build the receipt of a request: each step of the pipeline adds facts, `build_receipt` computes the sums."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from gateway.accounting.answer_length import LengthRule, RouteLengths
from gateway.accounting.baseline import Baseline, baseline, measure
from gateway.accounting.content import LoggedContent
from gateway.accounting.engine_set import EngineSet
from gateway.accounting.receipt import (
    Attempt,
    BatchFacts,
    CloseTerms,
    EngineShare,
    GuidanceFacts,
    Receipt,
    Timings,
    add_call_facts,
    first_facts,
    total_cost,
    with_savings,
)
from gateway.accounting.savings import apply_class, savings_class
from gateway.accounting.shares import MAX_CHARS_PER_TOKEN, EngineCall, FailedCall, share_call, usage_error, within
from gateway.accounting.verdict import Allowance
from gateway.accounting.worst_case import CallBound, MaxCost
from gateway.policy.constraints import FIELD_NOT_KNOWN
from gateway.policy.plan import Plan
from gateway.protocol.requests import AnyRequest
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from gateway.accounting.estimate import Encoding
    from gateway.accounting.shares import Shares, UsageError
    from gateway.engines.base import TokenUsage
    from gateway.errors import EngineError
    from gateway.pricing import Price
    from gateway.protocol.body import Json

_NO_SHARES = None, None
_REPORTABLE = frozenset({"ok", "client_gone"})


class ReceiptBuilder(msgspec.Struct):
    """The facts of one request. Times are time.perf_counter() seconds."""

    id: str
    created: int
    tenant: str
    key: str
    route: str
    stream: bool
    started: float
    plan: Plan
    engine_set: EngineSet  # the engines of the request, with the prices of its receipt
    admitted: float | None = None
    granted: float | None = None
    guidance_requested: float | None = None
    guided: float | None = None
    first_token: float | None = None
    student_began: float | None = None  # the first token of the student in a stream
    teacher: EngineCall | None = None
    student: EngineCall | None = None
    warmup: EngineCall | None = None  # the call that warmed the student's prefix cache
    running: EngineCall | None = None  # the current call that this request pays for
    caller_left: bool = False  # the caller disconnected, and the running call is read to its end for its usage
    failed: list[FailedCall] = []
    batch: BatchFacts | None = None
    kept_tokens: int = 0
    kept_estimated: bool = False  # no engine reported `kept_tokens`
    same_prompt: bool = False  # one model read the same prompt, as teacher without and as student with the guidance
    guidance_text: str = ""  # the text of the kept tokens
    cut_short: str | None = None  # why the teacher ended early, after the caller had received its text
    continued_tokens: int = 0  # tokens of failed calls whose text is in the answer; another call continued it
    prompt_tokens: int | None = None  # the input of the first of them, as its engine counted it
    rewritten: bool = False  # the student repeated the guidance, so its usage includes it
    placed: str | None = None  # the placement of the guidance in the student's request
    complete: bool = False
    unguided: str | None = None
    hint: str | None = None  # the setting to change where guidance is often late
    finish_reason: str | None = None
    receipt: Receipt | None = None
    preliminary: Receipt | None = None  # the receipt of a reply without a baseline; the baseline is counted later
    shadow_of: str | None = None  # for a shadow, the id of the original request
    allowance: Allowance = msgspec.field(default_factory=Allowance)
    content: LoggedContent | None = None  # the text of the request, where its tenant logs it
    budget: str | None = None  # "soft" where a budget of the caller is past its soft limit
    tags: tuple[str, ...] = ()  # of the caller
    labels: dict[str, str] = {}  # by name
    refused: bool = False  # refused before a reservation: the request has no receipt
    terms: CloseTerms | None = None  # for guidance, the terms of the device's report
    measures: ReceiptBuilder | None = None  # another answer to the prompt, to measure its baseline or lengths
    lengths: RouteLengths = RouteLengths()  # as measured at admission
    answer_tokens: int = 0  # the answer as counted for the baseline, before the rule
    length_rule: LengthRule | None = None  # of the baseline (answer_length.py)
    request: AnyRequest | None = None  # the admitted request, for token counts
    reserved: MaxCost | None = None  # the bound on the charges of all calls; None: not admitted
    likely: tuple[EngineShare | None, EngineShare | None] = (None, None)  # teacher and student, for the baseline

    def child_receipt(self, plan: Plan, name: str) -> ReceiptBuilder:
        """Return the receipt builder of a background call for this request, such as a shadow. It starts now."""
        return ReceiptBuilder(
            # The same creation time, so that sums over a time range include both.
            *(f"{self.id}-{name}", self.created, self.tenant, self.key, self.route),
            stream=False,
            started=time.perf_counter(),
            plan=plan,
            engine_set=self.engine_set,
            shadow_of=self.id,
            tags=self.tags,
            labels=self.labels,
        )

    def mark_first_token(self) -> None:
        if self.first_token is None and self.stream:
            self.first_token = time.perf_counter()

    def drop_guidance(self, reason: str) -> None:
        """Answer without the guidance. The teacher's call is still charged."""
        self.unguided, self.kept_tokens, self.guidance_text, self.rewritten = reason, 0, "", False
        self.kept_estimated = self.same_prompt = False

    def settle_kept_tokens(self) -> None:
        """Replace an estimate of the kept tokens by the difference of two prompts that one model counted."""
        teacher, student = self.teacher, self.student
        if not self.kept_estimated or not self.same_prompt or self.continued_tokens or not teacher or not student:
            return
        if teacher.usage is None or student.usage is None or teacher.usage.estimated:
            return
        added = student.usage.input_tokens - teacher.usage.input_tokens
        if added > 0:
            self.kept_tokens, self.kept_estimated = added, False

    def set_answer_call(self, call: EngineCall | None) -> None:
        """Set the call that completes the answer. In mode teacher, the teacher completes it."""
        if self.plan.mode == "teacher":
            self.teacher = call
        else:
            self.student = call

    def record_failure(self, error: EngineError) -> None:
        """Move the failed call to `failed`. Another call replaces it, and both are charged."""
        call = self.teacher if self.plan.mode == "teacher" else self.student
        self.failed.append(FailedCall(error.engine, error.label, call))
        self.set_answer_call(None)

    def continue_answer(self, tokens: int, input_tokens: int) -> None:
        """Record that another call continues the text of a call that failed after `tokens`.

        `input_tokens` is the failed call's input as its engine counted it; 0: unknown.
        """
        if not self.continued_tokens:
            self.prompt_tokens = input_tokens or None
        self.continued_tokens += tokens

    @property
    def answering_engine(self) -> str:
        """Return the engine that completed the answer, or is to complete it."""
        call = self.student or self.teacher
        return call.model if call is not None else self.plan.student

    @property
    def unguided_field(self) -> str | None:
        """Return the unknown field of the request that is the reason for `unguided`."""
        return self.plan.unguided_field if self.unguided == FIELD_NOT_KNOWN else None

    @property
    def placement(self) -> str | None:
        """Return the placement in the student's request, or the planned one before that request."""
        return self.placed or (self.plan.guidance.placement if self.plan.guidance is not None else None)

    @property
    def shown_tokens(self) -> int:
        """Return the guidance tokens in the caller's answer that the student's usage does not include."""
        return self.kept_tokens if self.placement == "prefix" and not self.rewritten else 0

    @property
    def needs_estimate(self) -> bool:
        """Return whether a call has no usage or an impossible one, so that its tokens must be counted."""
        for call in (self.teacher, self.student, self.warmup, *[failed.call for failed in self.failed]):
            if call is not None and (call.usage is None or self._usage_error(call, self._bound(call))):
                return True
        return False

    @property
    def mode(self) -> str:
        """Return the mode for the receipt."""
        if self.shadow_of is not None:
            return "shadow"
        if self.plan.mode != "guided":
            return self.plan.mode
        if self.unguided is not None or self.plan.guidance is None:
            return "student"
        return "teacher_complete" if self.complete and self.student is None else "guided"

    def close(self, status: str, prices: Mapping[str, Price], encodings: Mapping[str, Encoding]) -> Receipt:
        """Build and fix the receipt with all counts. Later calls return the same receipt."""
        if self.receipt is None:
            self.receipt = self.build_counted(status, prices, encodings)
        return self.receipt

    def build_counted(self, status: str, prices: Mapping[str, Price], encodings: Mapping[str, Encoding]) -> Receipt:
        """Return the receipt with all counts, which take milliseconds. The receipt is not fixed."""
        return self.recount(self.build_receipt(status, prices, encodings), prices, encodings)

    def needs_recount(self, receipt: Receipt, encodings: Mapping[str, Encoding]) -> bool:
        """Return whether the model's own tokenizer can replace an estimated baseline. Counting takes milliseconds."""
        return receipt.baseline_basis == "estimate" and encodings[receipt.baseline_model].own

    def recount(self, receipt: Receipt, prices: Mapping[str, Price], encodings: Mapping[str, Encoding]) -> Receipt:
        """Return the receipt with a counted baseline, where one is possible. Call this off the event loop."""
        if not self.needs_recount(receipt, encodings):
            return receipt
        model = receipt.baseline_model
        counted = self._baseline(prices[model], encodings[model].name, receipt.cost_usd)
        receipt = msgspec.structs.replace(
            receipt,
            baseline_usd=counted.usd,
            baseline_estimated=counted.basis == "estimate",
            baseline_basis=counted.basis,
            baseline_error_usd=counted.error_usd,
            stored_length_rule=counted.length_rule or UNSET,
        )
        return with_savings(receipt)

    def _baseline(self, price: Price, tokenizer: str | None, cost_usd: Decimal) -> Baseline:
        counted = baseline(self, *self.likely, price, tokenizer, cost_usd)
        self.answer_tokens, self.length_rule = counted.answer_tokens, counted.length_rule
        return counted

    def build_receipt(
        self, status: str, prices: Mapping[str, Price], encodings: Mapping[str, Encoding] | None, *, exact: bool = False
    ) -> Receipt:
        """Return the receipt with an estimated baseline. The receipt is not fixed.

        Missing usage is bounded by a token count, which takes milliseconds. So call this off the event loop when
        `needs_estimate` is true. Without `encodings`, bytes bound the tokens, which takes no time. `exact`: the caller
        knows that `needs_estimate` is false.
        """

        def shares_of(call: EngineCall | None) -> Shares | tuple[None, None]:
            if call is None:
                return _NO_SHARES
            bound = self._bound(call)
            error = "" if exact else self._usage_error(call, bound)
            shares = share_call(call, self.request, bound, error, prices, encodings)
            if call.prefix_bytes and (reserved := self._reserved(call)) is not None:
                return within(shares[0], reserved, prices[call.model]), within(shares[1], reserved, prices[call.model])
            return shares

        teacher, likely_teacher = shares_of(self.teacher)
        student, likely_student = shares_of(self.student)
        warmup = shares_of(self.warmup)[0]
        attempts = tuple([Attempt(failed.engine, failed.label, shares_of(failed.call)[0]) for failed in self.failed])
        calls = (teacher, student, warmup, *[attempt.share for attempt in attempts])
        shares = [one for one in calls if one is not None]
        cost, price = total_cost(shares), prices[self.plan.baseline]
        # Savings use likely shares. With upper bounds, savings would grow with unknown usage.
        self.likely = likely_teacher, likely_student
        estimate = self._baseline(price, None, cost)
        measured = None
        if self.measures is not None and status == "ok":
            measured = measure(self.measures.receipt, likely_teacher, price)
        mode = self.mode
        of_class = savings_class(mode=mode, status=status, unguided=self.unguided, shadow_of=self.shadow_of)
        savings = apply_class(of_class, estimate.usd, estimate.error_usd, cost, measured)
        return Receipt(
            id=self.id,
            created=self.created,
            tenant=self.tenant,
            key=self.key,
            route=self.route,
            mode=mode,
            stream=self.stream,
            status=status,
            finish_reason=self.finish_reason,
            unguided=self.unguided,
            teacher=teacher,
            student=student,
            guidance=self._guidance_facts(),
            batch=self.batch,
            cost_usd=cost,
            baseline_model=self.plan.baseline,
            baseline_usd=estimate.usd,
            baseline_estimated=estimate.basis == "estimate",
            savings_usd=savings.usd,
            timings=self._timings(),
            attempts=attempts,
            shadow_of=self.shadow_of,
            budget=self.budget,
            baseline_basis=estimate.basis,
            baseline_error_usd=estimate.error_usd,
            # After a disconnect the device may have all guidance. After an error it has nothing to finish.
            close=self.terms if status in _REPORTABLE else None,
            hint=self.hint,
            savings_class=of_class,
            measured=measured,
            estimated=any(share.estimated for share in shares),
            stored_warmup=UNSET if warmup is None else warmup,
            stored_continued_tokens=self.continued_tokens or UNSET,
            stored_split=self.plan.split or UNSET,
            stored_tags=self.tags or UNSET,
            stored_labels=self.labels or UNSET,
            stored_unguided_field=self.unguided_field or UNSET,
            stored_max_tokens=self.plan.reduced_max_tokens or UNSET,
            stored_length_rule=estimate.length_rule or UNSET,
        )

    def _bound(self, call: EngineCall) -> CallBound | None:
        """Return the largest possible usage of a call. A continued text may exceed the reserved input."""
        bound = self._reserved(call)
        if not call.prefix_bytes or bound is None:
            return bound
        return CallBound(bound.input_tokens + call.prefix_bytes, bound.output_tokens, bound.known)

    def _reserved(self, call: EngineCall) -> CallBound | None:
        return None if self.reserved is None else self.reserved.bounds.get((call.role, call.model))

    def _usage_error(self, call: EngineCall, bound: CallBound | None) -> UsageError:
        request, usage = self.request, call.usage
        if request is None or bound is None or usage is None or _is_usual(usage, call, bound):
            return ""
        shown: int | None = max(call.prefix_bytes, len(self.guidance_text) if call is self.student else 0)
        if isinstance(request, TextRequest) and request.body.get("echo"):
            shown = None  # the engine repeats the prompt
        return usage_error(call, bound, choices=request.generated_choices, shown_chars=shown)

    def facts(self) -> Json:
        """Return the facts known at the start of a stream, with the names of `Receipt.facts`."""
        plan = self.plan
        facts = first_facts(
            self.mode, plan.split, self.unguided, self.unguided_field, self.hint, plan.reduced_max_tokens
        )
        shared = self.teacher.shared if self.teacher else None
        add_call_facts(facts, shared, self.budget, len(self.failed), self.batch)
        if self.guided is not None and self.unguided is None:
            facts["guidance_tokens"] = self.kept_tokens
            if self.placement not in (None, "prefix"):
                facts["placement"] = self.placement
        stages = zip(("admission_ms", "batch_wait_ms", "teacher_ms"), self._stages_ms(), strict=True)
        return facts | {name: spent for name, spent in stages if spent is not None}

    def _guidance_facts(self) -> GuidanceFacts | None:
        guidance = self.plan.guidance
        if guidance is None or self.guided is None or self.unguided is not None:
            return None
        names = guidance.projection.name, self.placement or "prefix"
        return GuidanceFacts(*names, guidance.tokens, self.kept_tokens, self.complete, self.cut_short,
                             self.kept_estimated or UNSET)  # fmt: skip

    def _timings(self) -> Timings:
        began, student_began, handover_ms = self.started, self.student_began, None
        first_ms = None if self.first_token is None else _ms(began, self.first_token)
        if student_began is not None and self.guided is not None and self.unguided is None:
            handover_ms = _ms(self.guided, student_began)
        return Timings(_ms(began, time.perf_counter()), *self._stages_ms(), first_ms, handover_ms)

    def _stages_ms(self) -> tuple[float | None, float | None, float | None]:
        admitted_ms = None if self.admitted is None else _ms(self.started, self.admitted)
        if self.granted is None:
            return admitted_ms, None, None
        waited_ms = None if self.guidance_requested is None else _ms(self.guidance_requested, self.granted)
        return admitted_ms, waited_ms, None if self.guided is None else _ms(self.granted, self.guided)


def _is_usual(usage: TokenUsage, call: EngineCall, bound: CallBound) -> bool:
    """Return whether `usage_error` accepts the usage, however many choices and whatever text was requested."""
    return (
        usage.input_tokens <= bound.input_tokens
        and call.min_output_tokens <= usage.output_tokens <= bound.output_tokens
        and len(call.text.getvalue()) <= usage.output_tokens * MAX_CHARS_PER_TOKEN
    )


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1000, 3)
