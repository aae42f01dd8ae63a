"""The receipt of one request. Frozen; money is Decimal and travels as text."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.accounting import savings
from gateway.accounting.savings import MeasuredBaseline

if TYPE_CHECKING:
    from gateway.protocol.body import Json

_REQUEST = r"req_[0-9a-f]{24}"
REQUEST_ID = re.compile(_REQUEST, re.ASCII)
"""What a request is given, and the receipt of it has."""
RECEIPT_ID = re.compile(rf"{_REQUEST}(?:-[a-z]{{1,16}})?|edge_[0-9a-f]{{32}}", re.ASCII)
"""Also of what was done beside a request, and of what a device did alone."""


class EngineShare(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one engine did for the request.

    Attributes:
        cached_input_tokens: the part of `input_tokens` that the engine read from its prompt cache.
        estimated: the engine did not count, or counted a list of calls as one: the gateway had to.
        shared: "flight" or "cache" where the call was an identical request's, which paid for it; then the cost is 0.
        at_least: it may have written more: its reply never came, the request set no limit, and nobody states the
            engine's maximum.
        usage_error: why the count that the engine reported was not taken: "too_high", more than is possible, and the
            share is the most that was reserved for the call; "too_low", hardly any tokens for a text.
        cache_write_input_tokens: another part of `input_tokens`, which the engine wrote to its prompt cache.
    """

    model: str
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    cached_input_tokens: int = 0
    estimated: bool = False
    at_least: bool = False
    shared: str = ""
    usage_error: str = ""
    cache_write_input_tokens: int = 0

    @property
    def fresh_input_tokens(self) -> int:
        """Input tokens that the engine neither read from its prompt cache nor wrote to it."""
        return self.input_tokens - self.cached_input_tokens - self.cache_write_input_tokens


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call that failed, and in whose place another one was made.

    Attributes:
        error: the label of what went wrong.
        share: what it may have cost; None where the engine never got it.
    """

    engine: str
    error: str
    share: EngineShare | None = None


class GuidanceFacts(msgspec.Struct, frozen=True):
    """How the answer was opened.

    Attributes:
        tokens: m, as asked of the teacher.
        kept_tokens: of what it wrote, the part before the seam, in its own tokens.
        complete: the teacher ended its answer by itself.
        cut_short: why the teacher did not come to its end, in the words of `unguided`; its words were shown by then.
    """

    projection: str
    placement: str
    tokens: int
    kept_tokens: int
    complete: bool
    cut_short: str | None = None


class ProbeFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the student was asked before the teacher: its first token.

    Attributes:
        outcome: confident, unsure; no_logprobs, where the engine tells no probabilities; late; failed.
        p1: how likely its likeliest first token was.
        entropy: in nats, over the tokens that it told of.
        ms: how long it took.
    """

    outcome: str
    p1: float | None = None
    entropy: float | None = None
    ms: float | None = None


class LengthFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the length of the guidance was chosen, where the policy says `tokens: auto`.

    Attributes:
        by: what chose it: rule, model, default.
        prompt: what kind of question it was taken for.
        rule, model: the name of the one that chose it.
        score: how likely the model took an answer with so much guidance to be right.
        ended: sentence or step, where the opening ended with one before its length was used up.
        probe: what the student was asked first.
    """

    by: str
    prompt: str
    rule: str | None = None
    model: str | None = None
    score: float | None = None
    ended: str | None = None
    probe: ProbeFacts | None = None


class CloseTerms(msgspec.Struct, frozen=True):
    """Until when a device may report how it finished an answer, and of how much.

    Attributes:
        by: Unix seconds.
        most_output_tokens: what the caller's limit leaves the device to write; None: there is no limit.
    """

    by: int
    most_output_tokens: int | None


class BatchFacts(msgspec.Struct, frozen=True):
    """The batch the teacher's call belonged to; `size` counts calls over the fleet."""

    id: str
    size: int


class Timings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Milliseconds since the request came in, or of the stage; None where the stage did not happen."""

    total_ms: float
    admission_ms: float | None = None
    batch_wait_ms: float | None = None
    teacher_ms: float | None = None
    first_token_ms: float | None = None


class Receipt(msgspec.Struct, frozen=True):
    """One request, accounted for.

    Attributes:
        mode: what happened: guided, teacher_complete (the teacher's opening was the whole answer), student, teacher;
            shadow: an answer that nobody got, made beside another request; guidance: the opening alone, for a device
            that finishes the answer; edge: what that device reports of it.
        status: ok, or the label of what went wrong (errors.py), or client_gone.
        unguided: why a guided route was answered without guidance.
        baseline_usd: the baseline model alone, on the same prompt and the same answer.
        baseline_estimated: whether a token count in it is another tokenizer's, or an estimate.
        savings_usd: the savings that count, by the rules of savings.py. They may be negative.
        budget: "soft" where a budget of the tenant or the key had passed its soft line.
        attempts: the calls that failed before the answer came; what they may have cost is in the cost.
        shadow_of: of a shadow, the id of that request.
        baseline_basis: where its counts are from: engine, tokenizer or estimate; None on receipts of earlier versions.
        baseline_error_usd: by how much it may be wrong, either way; None likewise.
        length: how the guidance's length was chosen, also where it came to none; None where nobody chose.
        probe: what it cost to ask the student for its first token before the teacher; it is in the cost.
        close: of a guidance, until when its device may report; None: there is nothing to report.
        edge_of: of what a device reports, the id of the guidance; None where it had none from here.
        hint: the setting to change and its value, where the guidance was late and the route's guidance is often late.
        savings_class: why `savings_usd` counts, or does not (savings.py).
        measured: of a quality sample's teacher call, the baseline that it measured for the request in `shadow_of`.
        estimated: whether a share in the cost is an estimate: then the cost is an upper bound.
    """

    id: str
    created: int
    tenant: str
    key: str
    route: str
    mode: str
    stream: bool
    status: str
    finish_reason: str | None
    unguided: str | None
    teacher: EngineShare | None
    student: EngineShare | None
    guidance: GuidanceFacts | None
    batch: BatchFacts | None
    cost_usd: Decimal
    baseline_model: str
    baseline_usd: Decimal
    baseline_estimated: bool
    savings_usd: Decimal
    timings: Timings
    attempts: tuple[Attempt, ...] = ()
    shadow_of: str | None = None
    budget: str | None = None
    baseline_basis: Literal["engine", "tokenizer", "estimate"] | None = None
    baseline_error_usd: Decimal | None = None
    length: LengthFacts | None = None
    probe: EngineShare | None = None
    close: CloseTerms | None = None
    edge_of: str | None = None
    hint: str | None = None
    savings_class: str | None = None
    measured: MeasuredBaseline | None = None
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """All that its engines read and wrote for it, failed calls too; what was another request's does not count."""
        shares = (self.teacher, self.student, self.probe, *(attempt.share for attempt in self.attempts))
        return sum(one.input_tokens + one.output_tokens for one in shares if one is not None and not one.shared)

    def as_dict(self, *, show_cost: bool = True) -> Json:
        """Plain values; money as text without an exponent, which every reader takes, or left out."""
        plain: Json = msgspec.to_builtins(self, builtin_types=(Decimal,))
        failed = (attempt["share"] for attempt in plain["attempts"] if "share" in attempt)
        named = (plain[name] or {} for name in ("teacher", "student", "probe", "measured"))
        for holder in (plain, *named, *failed):
            for name in [name for name, value in holder.items() if isinstance(value, Decimal)]:
                money = holder.pop(name)
                if show_cost:
                    holder[name] = f"{money:f}"
        if show_cost:
            found = savings.savings_of(self)
            plain["savings_about_zero"] = savings.is_about_zero(found.usd, found.error_usd)
        elif self.measured is not None:
            plain["measured"] = None
        return plain

    def to_json(self) -> bytes:
        """As it is kept; callers are shown `as_dict`."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Receipt:
        """Decode a receipt. One of an earlier version, which has no savings class, gets its class and its savings.

        Raises msgspec.DecodeError when `raw` is not a receipt.
        """
        receipt = _DECODER.decode(raw).checked()
        return receipt if receipt.savings_class is not None else savings.with_savings(receipt)

    def checked(self) -> Receipt:
        """The same. Raises msgspec.ValidationError where money is no number, which no sum could be made of."""
        amounts = [self.cost_usd, self.baseline_usd, self.savings_usd]
        if self.baseline_error_usd is not None:
            amounts.append(self.baseline_error_usd)
        for share in (self.teacher, self.student, self.probe):
            if share is not None:
                amounts.append(share.cost_usd)  # noqa: PERF401 - a comprehension takes twice as long
        if self.attempts:
            amounts += [attempt.share.cost_usd for attempt in self.attempts if attempt.share is not None]
        if (found := self.measured) is not None:
            amounts += (found.baseline_usd, found.estimated_usd, found.estimated_error_usd)
        if not all(map(Decimal.is_finite, amounts)):
            raise msgspec.ValidationError("money must be a number")
        return self

    def facts(self, *, show_cost: bool) -> Json:
        """What the caller is told in the reply itself: as `x-gkt-` headers, or in the last chunk."""
        facts: Json = {"mode": self.mode}
        if self.unguided is not None:
            facts["unguided"] = self.unguided
        if self.hint is not None:
            facts["hint"] = self.hint
        facts |= self._facts_of_shares()
        if self.guidance is not None:
            facts["guidance_tokens"] = self.guidance.kept_tokens
            if self.guidance.placement != "prefix":
                facts["placement"] = self.guidance.placement
        if self.teacher is not None and self.teacher.shared:
            facts["shared"] = self.teacher.shared
        if self.budget is not None:
            facts["budget"] = self.budget
        if self.attempts:
            facts["failed_attempts"] = len(self.attempts)
        if self.batch is not None:
            facts["batch"] = self.batch.id
            facts["batch_size"] = self.batch.size
        times = ("admission_ms", "batch_wait_ms", "teacher_ms", "first_token_ms", "total_ms")
        facts |= {name: spent for name in times if (spent := getattr(self.timings, name)) is not None}
        if show_cost:
            facts["cost_usd"] = f"{self.cost_usd.normalize():f}"
            facts["baseline_usd"] = f"{self.baseline_usd.normalize():f}"
            found = savings.savings_of(self)
            facts["savings_usd"] = savings.shown(found.usd, found.error_usd)
            facts["savings_class"] = savings.class_of(self)
        return facts

    def _facts_of_shares(self) -> Json:
        facts: Json = {}
        for role, share in (("teacher", self.teacher), ("student", self.student)):
            if share is not None:
                facts[role] = share.model
                facts[f"{role}_tokens"] = f"{share.input_tokens}+{share.output_tokens}"
        if self.estimated:
            facts["estimated"] = "true"
        return facts


# Made at the import: the first decoding of a type in two threads at once may crash the process (msgspec 0.22).
_DECODER = msgspec.json.Decoder(Receipt)
