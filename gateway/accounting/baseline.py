"""The baseline of one request: the cost of the baseline model alone, how it was counted, and its error bound.

The baseline model would read the caller's prompt once and write the whole answer. Where it took part in the request,
its own counts are used. Other counts come from its tokenizer, if config.yaml names one. Otherwise they come from the
other model, with an error bound for the difference between tokenizers (estimate.py).
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from msgspec.structs import replace

from gateway.accounting.answer_length import UNMEASURED, LengthRule, RouteLengths, apply_rule, doubt_of
from gateway.accounting.estimate import (
    TOKENS_PER_MESSAGE,
    TextSize,
    can_count,
    count_messages,
    count_text,
    recount_error,
    template_error,
    token_error,
    utf8_length,
)
from gateway.accounting.receipt import class_of
from gateway.accounting.savings import GUIDED, MeasuredBaseline
from gateway.pricing import charge_usd
from gateway.protocol.messages import RULES
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from gateway.accounting.receipt import EngineShare, Receipt
    from gateway.accounting.shares import EngineCall
    from gateway.policy.plan import Plan
    from gateway.pricing import Price
    from gateway.protocol.requests import AnyRequest

Basis: TypeAlias = Literal["engine", "tokenizer", "estimate"]
_FROM_BEST: tuple[Basis, ...] = ("engine", "tokenizer", "estimate")
_BYTES_PER_TOKEN = 4
_NOTHING = TextSize(0, 0)


class Baseline(Record, frozen=True):
    """A baseline. The true cost is within `error_usd` of `usd`. `basis` is the less reliable basis of its parts.

    `answer_tokens` is the caller's answer as counted, before the `length_rule` (answer_length.py).
    """

    usd: Decimal
    error_usd: Decimal
    basis: Basis
    answer_tokens: int = 0
    length_rule: LengthRule | None = None


class Counted(Record, frozen=True):
    """A number of tokens with its largest error."""

    tokens: int
    error: int = 0
    basis: Basis = "engine"


class AnsweredRequest(Protocol):
    """The facts of a request that its baseline depends on. `ReceiptBuilder` has them."""

    plan: Plan
    request: AnyRequest | None
    teacher: EngineCall | None
    student: EngineCall | None
    kept_tokens: int
    guidance_text: str
    complete: bool
    continued_tokens: int
    unguided: str | None
    finish_reason: str | None
    lengths: RouteLengths

    @property
    def placement(self) -> str | None: ...

    @property
    def shown_tokens(self) -> int: ...


def baseline(
    builder: AnsweredRequest,
    teacher: EngineShare | None,
    student: EngineShare | None,
    price: Price,
    tokenizer: str | None,
    cost_usd: Decimal,
) -> Baseline:
    """Return the baseline of a request with this cost. Counting by the model's own `tokenizer` takes milliseconds;
    None: no count."""
    if builder.continued_tokens:
        student, teacher = _whole(student, builder), teacher if student is not None else _whole(teacher, builder)
    last = student or teacher
    if last is None:
        return Baseline(charge_usd(price, 0, 0), charge_usd(price, 0, 0), "engine")
    model = builder.plan.baseline
    own = next((share for share in (teacher, last) if share is not None and share.model == model), None)
    # A reported count is better than an estimate, whichever model it comes from.
    read = own if own is not None and (student is None or not own.estimated) else last
    prompt = _prompt(builder, read, teacher, tokenizer)
    turns = 0
    if own is not None and own is teacher and builder.plan.guidance is not None:
        turns = _added_turns(builder, builder.teacher)
    if turns and read is own and student is not None and not student.estimated:
        # A prompt with exemplars says less about a short caller's prompt than the student's prompt does.
        second = _prompt(builder, student, teacher, tokenizer)
        read, prompt = (student, second) if second.error < prompt.error else (read, prompt)
    counted = _answer(builder, teacher, student, tokenizer)
    answer, rule = _by_rule(builder, last, counted)
    cached = stored = stored_1h = 0
    if own is not None and own is read:
        cached, stored = own.cached_input_tokens, own.cache_write_input_tokens
        if turns:
            # The added turns precede the caller's messages, so the cache held them first.
            added = max(0, own.input_tokens - prompt.tokens)
            cached, stored = max(0, cached - added), max(0, stored - max(0, added - cached))
        # Text after the caller's messages was not cached yet.
        stored = min(stored, max(0, prompt.tokens - cached))
        stored_1h = min(stored, own.cache_write_1h_input_tokens)
    usd = charge_usd(price, prompt.tokens, answer.tokens, cached, stored, stored_1h)
    error_usd = charge_usd(price.upper_bound if stored else price, prompt.error, answer.error)
    if rule in UNMEASURED and usd > cost_usd:
        # The answer saves nothing. Its true baseline is between 0 and the largest estimate.
        usd, error_usd = cost_usd, max(usd + error_usd - cost_usd, cost_usd)
    return Baseline(usd, error_usd, _weaker(prompt.basis, answer.basis), counted.tokens, rule)


def _by_rule(builder: AnsweredRequest, last: EngineShare, counted: Counted) -> tuple[Counted, LengthRule | None]:
    """Apply the rule for the length of the answer. What the baseline model completed itself has its own length."""
    call = builder.student if builder.student is not None else builder.teacher
    if last.model == builder.plan.baseline or not counted.tokens or call is None:
        return counted, None
    guided = builder.plan.guidance is not None and builder.unguided is None
    measured = builder.lengths.guided if guided else builder.lengths.student
    texts = ["".join(parts) for parts in call.choice_texts.values()] or [call.text.getvalue()]
    doubt = doubt_of(builder.finish_reason, texts)
    tokens, error, rule = apply_rule(counted.tokens, counted.error, doubt, measured)
    return Counted(tokens, error, counted.basis if measured is None else "estimate"), rule


def _whole(share: EngineShare | None, builder: AnsweredRequest) -> EngineShare | None:
    """Return the share as if its call had written the text of the failed calls that it continued."""
    if share is None:
        return None
    read, written = max(0, share.input_tokens - builder.continued_tokens), share.output_tokens
    return replace(share, input_tokens=read, output_tokens=written + builder.continued_tokens, estimated=True)


def _weaker(first: Basis, second: Basis) -> Basis:
    return first if first == second else max(first, second, key=_FROM_BEST.index)


def _prompt(builder: AnsweredRequest, read: EngineShare, teacher: EngineShare | None, tokenizer: str | None) -> Counted:
    """Count the caller's prompt. `read` is the share whose input contains it, together with added text."""
    call = builder.teacher if read is teacher else builder.student
    assert call is not None, "each share has a call"
    own = read.model == builder.plan.baseline and not read.estimated
    guided = builder.plan.guidance is not None
    added = _added(builder, call) if guided else ""
    # The guidance has a reported count. Other added text comes from the projection and is most likely English.
    guidance = builder.kept_tokens if call is builder.student else 0
    if own and not added and not guidance:
        return Counted(read.input_tokens)
    turns = TOKENS_PER_MESSAGE * _added_turns(builder, call) if guided else 0
    added_size = TextSize.of([added]) if added else _NOTHING
    other_bytes = added_size.size_bytes - (utf8_length(builder.guidance_text) if guidance else 0)
    added_by_gateway = max(0, other_bytes) // _BYTES_PER_TOKEN + turns
    prompt = max(0, read.input_tokens - guidance - added_by_gateway)
    size = TextSize.of_messages(call.messages)
    if own:
        reported = Counted(prompt, token_error(guidance + added_by_gateway, added_size) + turns, "estimate")
    else:
        template = template_error(len(call.messages))
        shown = token_error(added_by_gateway, added_size) if turns else 0
        reported = Counted(prompt, token_error(prompt, size) + shown + template, "estimate")
    if tokenizer is None or read.estimated or not can_count(tokenizer, size.chars):
        return reported
    added_tokens = (
        count_text(tokenizer, added) + turns + (TOKENS_PER_MESSAGE if builder.shown_tokens and guidance else 0)
    )
    if own:
        return Counted(max(0, read.input_tokens - added_tokens), recount_error(added_tokens) + turns, "tokenizer")
    counted = max(0, count_messages(tokenizer, call.messages) - added_tokens)
    # A much larger reported count includes tools or images, which are not counted here.
    return reported if abs(counted - reported.tokens) > reported.error else Counted(counted, template, "tokenizer")


def _added(builder: AnsweredRequest, call: EngineCall) -> str:
    """Return the text that the gateway added to a call's prompt."""
    guidance = builder.plan.guidance
    if guidance is None:
        return ""
    projection = guidance.projection
    if call is builder.teacher:
        if not projection.turns:
            return projection.instruction or ""
        return "\n".join(projection.shown if _holds_turns(builder, call) else filter(None, (projection.instruction,)))
    if builder.kept_tokens and builder.placement == "context":
        return projection.introduction.replace("{guidance}", builder.guidance_text)
    return builder.guidance_text


def _added_turns(builder: AnsweredRequest, call: EngineCall | None) -> int:
    """Return the number of messages that the gateway added. A system text may be part of the caller's own message."""
    guidance = builder.plan.guidance
    if guidance is None or call is None or not guidance.projection.turns:
        return 0
    if call is not builder.teacher or not _holds_turns(builder, call):
        return 0
    system = guidance.projection.system
    return guidance.projection.turns - (system is not None and call.messages[0].get("content") != system)


def _holds_turns(builder: AnsweredRequest, call: EngineCall) -> bool:
    """Return whether a teacher's prompt contains the projection's turns. A raw prompt is one message without them."""
    assert builder.plan.guidance is not None, "a teacher call has a guidance plan"
    projection = builder.plan.guidance.projection
    rules = projection.system is None or call.messages[0].get("role") in RULES
    return rules and len(call.messages) > 2 * len(projection.exemplars)


def _answer(
    builder: AnsweredRequest, teacher: EngineShare | None, student: EngineShare | None, tokenizer: str | None
) -> Counted:
    """Count the answer that the caller received."""
    model, guided = builder.plan.baseline, builder.plan.guidance is not None
    last = student or teacher
    assert last is not None, "an answer has at least one call"
    call = builder.student if student is not None else builder.teacher
    assert call is not None, "each share has a call"
    if not guided or student is not None:
        kept = builder.shown_tokens if guided else 0
        written = last.output_tokens
    else:
        # The teacher wrote the whole answer. For a device, guidance in its prompt is no part of the answer.
        whole = builder.plan.mode != "guidance" or builder.complete
        kept, written = builder.kept_tokens if whole else builder.shown_tokens, 0
    reported = (
        Counted(written) if written == 0 or (last.model == model and not last.estimated) else _foreign(call, written)
    )
    if kept:
        guidance = _guidance_tokens(builder, teacher, kept, own=teacher is not None and teacher.model == model)
        reported = Counted(
            guidance.tokens + reported.tokens, guidance.error + reported.error, _weaker(guidance.basis, reported.basis)
        )
    if reported.basis == "engine" or tokenizer is None:
        return reported
    text = call.text.getvalue() if written else ""
    shown = builder.guidance_text if kept else ""
    if text.lstrip().startswith(shown.strip()):
        shown = ""  # the engine repeated the guidance in its own text
    if (written and not text) or not can_count(tokenizer, len(shown) + len(text)):
        return reported
    counted = count_text(tokenizer, shown + text)
    # A much larger reported count includes hidden reasoning or tool calls, which are not counted here.
    if (call.usage is None and call.lost_tokens) or abs(counted - reported.tokens) > reported.error:
        return reported
    return Counted(counted, recount_error(counted), "tokenizer")


def _guidance_tokens(builder: AnsweredRequest, teacher: EngineShare | None, kept: int, *, own: bool) -> Counted:
    """Count the guidance in the answer. The teacher's usage does not state the size of a part of its text."""
    if teacher is None:
        return Counted(kept)
    size = TextSize.of([builder.guidance_text])
    if not own or teacher.estimated:
        return Counted(kept, token_error(kept, size), "estimate")
    dropped = max(0, teacher.output_tokens - kept)
    return Counted(kept, token_error(min(kept, dropped), size), "estimate") if dropped else Counted(kept)


def _foreign(call: EngineCall, written: int) -> Counted:
    """Count tokens of another model's tokenizer, or of an estimate."""
    lost = call.lost_tokens if call.usage is None else 0
    counted = max(0, written - lost)
    return Counted(written, token_error(counted, TextSize.of([call.text.getvalue()])) + lost, "estimate")


def measure(served: Receipt | None, teacher: EngineShare | None, price: Price) -> MeasuredBaseline | None:
    """Return the measured baseline of a request, from the baseline model's own answer to it.

    The call that guided the request has warmed the engine's prefix cache. So the prompt counts as cached only as far as
    that call found it cached. Tokens that the call wrote to the cache count as written.

    Return None where the guided request has not settled yet, another model answered, or no usage was reported.
    """
    if served is None or teacher is None or class_of(served) != GUIDED:
        return None
    if teacher.model != served.baseline_model or teacher.estimated or teacher.at_least:
        return None
    guidance_call = served.teacher
    cached, stored = teacher.cached_input_tokens, teacher.cache_write_input_tokens
    stored_1h = teacher.cache_write_1h_input_tokens
    if guidance_call is not None and guidance_call.model == teacher.model:
        warmed = max(0, cached - guidance_call.cached_input_tokens)
        written = min(warmed, guidance_call.cache_write_input_tokens)
        cached, stored = cached - warmed, stored + written
        stored_1h += min(written, guidance_call.cache_write_1h_input_tokens)
    usd = charge_usd(price, teacher.input_tokens, teacher.output_tokens, cached, stored, stored_1h)
    return MeasuredBaseline(usd, served.baseline_usd, served.baseline_error_usd or Decimal(0))
