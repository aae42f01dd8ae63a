"""A receipt while its request is under way: each step writes down what it saw, `close` does the sums."""

from __future__ import annotations

import time
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.accounting.baseline import baseline
from gateway.accounting.content import LoggedContent
from gateway.accounting.receipt import (
    Attempt,
    BatchFacts,
    CloseTerms,
    EngineShare,
    GuidanceFacts,
    LengthFacts,
    ProbeFacts,
    Receipt,
    Timings,
)
from gateway.accounting.savings import counted, measure, savings_class, with_savings
from gateway.accounting.shares import share_call, usage_error
from gateway.accounting.verdict import Allowance
from gateway.accounting.worst_case import MaxCost, Role
from gateway.engines.base import TokenUsage
from gateway.policy.resolve import Plan
from gateway.pricing import total_usd
from gateway.protocol.body import CallerRequest, Json
from gateway.protocol.text import TextRequest
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.accounting.baseline import Encoding
    from gateway.accounting.shares import Shares, UsageError
    from gateway.accounting.worst_case import CallBound
    from gateway.errors import EngineError
    from gateway.pricing import Price


_HANDED_OVER = frozenset({"ok", "client_gone"})


# Structs: a dataclass takes ten times as long to make.


class EngineCall(msgspec.Struct):
    """One call to one engine: what was sent, and what is known of what came back."""

    model: str
    messages: Sequence[Json]
    usage: TokenUsage | None = None
    text: StringIO = msgspec.field(default_factory=StringIO)  # what came back, for when nobody counted it
    lost_tokens: int = 0  # an upper bound on tokens written that never reached us
    shared: str = ""  # "flight" or "cache": what another request's call fetched, and paid for
    unbounded: bool = False  # tokens may have been written that never reached us, and nothing bounds them
    span: Any = None  # where traces are on: that of the call, whoever made it
    limit_tokens: int | None = None  # output tokens, over all choices, that the engine was told to generate at most
    seen_tokens: int = 0  # a lower bound on the output tokens that arrived
    least_tokens: int = 0  # a lower bound on the output tokens; 0 where it is clearly below the reported count
    ended: bool = False  # every choice has its finish_reason; the usage may still be missing
    role: Role = "finisher"


class FailedCall(Record, frozen=True):
    """A call in whose place another one was made. `call` is None where the engine never got it."""

    engine: str
    label: str
    call: EngineCall | None


class ReceiptBuilder(msgspec.Struct):
    """The facts of one request, gathered along the path. Times are time.perf_counter() seconds."""

    id: str
    created: int
    tenant: str
    key: str
    route: str
    stream: bool
    started: float
    plan: Plan
    admitted: float | None = None
    granted: float | None = None
    asked: float | None = None
    guided: float | None = None
    first_token: float | None = None
    teacher: EngineCall | None = None
    student: EngineCall | None = None
    probe: EngineCall | None = None  # of the student, for its first token
    probed: ProbeFacts | None = None
    running: EngineCall | None = None  # the call under way that this request pays for
    caller_left: bool = False  # the caller disconnected, and the running call is read to its end for its usage
    ended_at: str | None = None  # the guidance ended with a sentence or step, before its length was used up
    failed: list[FailedCall] = []
    batch: BatchFacts | None = None
    kept_tokens: int = 0
    opening: str = ""  # what these are in words
    cut_short: str | None = None  # why the teacher ended early, after its words had been shown
    rewritten: bool = False  # the finisher wrote the guidance again: it is in its count
    placed: str | None = None  # where the guidance stands, as soon as a finisher got it
    complete: bool = False
    unguided: str | None = None
    hint: str | None = None  # the setting to change where guidance is often late
    finish_reason: str | None = None
    receipt: Receipt | None = None
    told: Receipt | None = None  # what a reply was told that does not show the baseline; that is counted afterwards
    shadow_of: str | None = None  # the id of the request beside which this was done, for nobody to see
    allowance: Allowance = msgspec.field(default_factory=Allowance)
    content: LoggedContent | None = None  # where its tenant wants it in the log
    budget: str | None = None  # "soft" where a budget of the caller has passed its soft line
    refused: bool = False  # before anything was reserved: it has no receipt
    terms: CloseTerms | None = None  # a device is to report how it finished the answer
    measures: ReceiptBuilder | None = None  # the request whose baseline this call measures
    request: CallerRequest | None = None  # as it was admitted, for counts of our own
    reserved: MaxCost | None = None  # the most that its calls can be charged; None: it was not admitted
    likely: tuple[EngineShare | None, EngineShare | None] = (None, None)  # of teacher and student, for the baseline

    def beside(self, plan: Plan, name: str) -> ReceiptBuilder:
        """The receipt of what is done beside this, for nobody to see, from now on."""
        return ReceiptBuilder(
            id=f"{self.id}-{name}",
            created=self.created,  # so that the sums of a time hold a request and what was measured for it
            tenant=self.tenant,
            key=self.key,
            route=self.route,
            stream=False,
            started=time.perf_counter(),
            plan=plan,
            shadow_of=self.id,
        )

    def saw_first_token(self) -> None:
        if self.first_token is None:
            self.first_token = time.perf_counter()

    def drop_guidance(self, reason: str) -> None:
        """The answer does without the guidance that there was; the teacher's call stays, and is paid for."""
        self.unguided, self.kept_tokens, self.opening, self.rewritten = reason, 0, "", False

    def set_aside(self, plan: Plan, error: EngineError) -> None:
        """Another call will be made in the place of the finisher's, which failed; it stays, and is paid for."""
        call = self.teacher if plan.mode == "teacher" else self.student
        self.failed.append(FailedCall(error.engine, error.label, call))
        if plan.mode == "teacher":
            self.teacher = None
        else:
            self.student = None

    @property
    def placement(self) -> str | None:
        """Where the guidance stands: where the finisher got it, or the plan wants it."""
        return self.placed or (self.plan.guidance.placement if self.plan.guidance is not None else None)

    @property
    def shown_tokens(self) -> int:
        """The teacher's tokens that open what the caller sees, and that no finisher counts as its own."""
        return self.kept_tokens if self.placement == "prefix" and not self.rewritten else 0

    @property
    def needs_estimate(self) -> bool:
        for call in (self.teacher, self.student, self.probe, *(failed.call for failed in self.failed)):
            if call is not None and (call.usage is None or self._usage_error(call)):
                return True
        return False

    @property
    def mode(self) -> str:
        """What happened, in the receipt's words."""
        if self.shadow_of is not None:
            return "shadow"
        if self.plan.mode != "guided":
            return self.plan.mode
        if self.unguided is not None or self.plan.guidance is None:
            return "student"
        return "teacher_complete" if self.complete and self.student is None else "guided"

    def close(self, status: str, prices: Mapping[str, Price], encodings: Mapping[str, Encoding]) -> Receipt:
        """Fix the receipt, with all counts done; a second call returns the first one's."""
        if self.receipt is None:
            self.receipt = self.recounted(self.sum_up(status, prices, encodings), prices, encodings)
        return self.receipt

    def wants_recount(self, told: Receipt, encodings: Mapping[str, Encoding]) -> bool:
        """Whether the baseline can be had better than as an estimate, which takes milliseconds."""
        return told.baseline_basis == "estimate" and encodings[told.baseline_model].own

    def recounted(self, told: Receipt, prices: Mapping[str, Price], encodings: Mapping[str, Encoding]) -> Receipt:
        """The same, its baseline counted in that model's own tokenizer, where there is one. Not on the event loop."""
        if not self.wants_recount(told, encodings):
            return told
        model = told.baseline_model
        found = baseline(self, *self.likely, prices[model], encodings[model].name)
        return with_savings(
            msgspec.structs.replace(
                told,
                baseline_usd=found.usd,
                baseline_estimated=found.basis == "estimate",
                baseline_basis=found.basis,
                baseline_error_usd=found.error_usd,
            )
        )

    def sum_up(self, status: str, prices: Mapping[str, Price], encodings: Mapping[str, Encoding] | None) -> Receipt:
        """Do the sums, without fixing them, and without `recounted`.

        Where an engine did not count, its tokens are bounded here, which takes milliseconds: when `needs_estimate`,
        call this off the event loop. Without `encodings` bytes bound them, which takes no time.
        """

        def shares_of(call: EngineCall | None) -> Shares | tuple[None, None]:
            if call is None:
                return None, None
            error = self._usage_error(call)
            return share_call(call, self.request, self._bound(call), error, prices, encodings)

        teacher, likely_teacher = shares_of(self.teacher)
        student, likely_student = shares_of(self.student)
        probe, _ = shares_of(self.probe)
        attempts = tuple([Attempt(failed.engine, failed.label, shares_of(failed.call)[0]) for failed in self.failed])
        shares = [one for one in (teacher, student, probe, *[attempt.share for attempt in attempts]) if one is not None]
        cost = total_usd(*[share.cost_usd for share in shares])
        # An upper bound is no basis for savings: they would grow with what nobody knows.
        self.likely = likely_teacher, likely_student
        price = prices[self.plan.baseline]
        alone = baseline(self, *self.likely, price, None)
        measured = None
        if self.measures is not None and status == "ok":
            measured = measure(self.measures.receipt, likely_teacher, price)
        of_class = savings_class(mode=self.mode, status=status, unguided=self.unguided, shadow_of=self.shadow_of)
        saved = counted(
            of_class,
            baseline_usd=alone.usd,
            error_usd=alone.error_usd,
            cost_usd=cost,
            probe=probe,
            measured=measured,
        )
        return Receipt(
            id=self.id,
            created=self.created,
            tenant=self.tenant,
            key=self.key,
            route=self.route,
            mode=self.mode,
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
            baseline_usd=alone.usd,
            baseline_estimated=alone.basis == "estimate",
            savings_usd=saved.usd,
            timings=self._timings(),
            attempts=attempts,
            shadow_of=self.shadow_of,
            budget=self.budget,
            baseline_basis=alone.basis,
            baseline_error_usd=alone.error_usd,
            length=self._length_facts(),
            probe=probe,
            # One that hung up may have all it needs by then; one that was told of an error has nothing to finish.
            close=self.terms if status in _HANDED_OVER else None,
            hint=self.hint,
            savings_class=of_class,
            measured=measured,
            estimated=any(share.estimated for share in shares),
        )

    def _bound(self, call: EngineCall) -> CallBound | None:
        return None if self.reserved is None else self.reserved.bounds.get((call.role, call.model))

    def _usage_error(self, call: EngineCall) -> UsageError:
        bound = self._bound(call)
        if self.request is None or bound is None:
            return ""
        repeats_prompt = isinstance(self.request, TextRequest) and bool(self.request.body.get("echo"))
        shown = None if repeats_prompt else len(self.opening) if call is self.student else 0
        return usage_error(call, bound, choices=self.request.generated_choices, shown_chars=shown)

    def facts(self) -> Json:
        """What is known when a stream begins; the names are those of `Receipt.facts`."""
        facts: Json = {"mode": self.mode}
        if self.unguided is not None:
            facts["unguided"] = self.unguided
        if self.hint is not None:
            facts["hint"] = self.hint
        if self.teacher is not None and self.teacher.shared:
            facts["shared"] = self.teacher.shared
        if self.budget is not None:
            facts["budget"] = self.budget
        if self.failed:
            facts["failed_attempts"] = len(self.failed)
        if self.batch is not None:
            facts["batch"] = self.batch.id
            facts["batch_size"] = self.batch.size
        if self.guided is not None and self.unguided is None:
            facts["guidance_tokens"] = self.kept_tokens
            if self.placement not in (None, "prefix"):
                facts["placement"] = self.placement
        for name, spent in (
            ("admission_ms", _ms(self.started, self.admitted)),
            ("batch_wait_ms", _ms(self.asked, self.granted)),
            ("teacher_ms", _ms(self.granted, self.guided)),
        ):
            if spent is not None:
                facts[name] = spent
        return facts

    def _guidance_facts(self) -> GuidanceFacts | None:
        guidance = self.plan.guidance
        if guidance is None or self.guided is None or self.unguided is not None:
            return None
        return GuidanceFacts(
            guidance.projection.name,
            self.placement or "prefix",
            guidance.tokens,
            self.kept_tokens,
            complete=self.complete,
            cut_short=self.cut_short,
        )

    def _length_facts(self) -> LengthFacts | None:
        chosen = self.plan.length
        if chosen is None:
            return None
        return LengthFacts(
            by=chosen.by,
            prompt=chosen.prompt,
            rule=chosen.rule,
            model=chosen.model,
            score=chosen.score,
            ended=self.ended_at if self.unguided is None else None,
            probe=self.probed,
        )

    def _timings(self) -> Timings:
        return Timings(
            total_ms=_ms(self.started, time.perf_counter()) or 0.0,
            admission_ms=_ms(self.started, self.admitted),
            batch_wait_ms=_ms(self.asked, self.granted),
            teacher_ms=_ms(self.granted, self.guided),
            first_token_ms=_ms(self.started, self.first_token),
        )


def _ms(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round((end - start) * 1000, 3)
