"""The baseline of one request: what its baseline model alone would have cost, on what that rests, and its error bound.

The model reads the caller's prompt, once, and writes the whole answer that the caller got. What it counted itself in
this request is taken as it is. The rest is counted in its own tokenizer, where config.yaml names that, or else taken
from whoever did count, and bounded by how far tokenizers are apart (bounds.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from gateway.accounting.bounds import TokenErrorBound, off_recounted, off_template, off_tokens
from gateway.accounting.estimate import TOKENS_PER_MESSAGE, count_messages, count_text, counts, texts_of
from gateway.pricing import baseline_usd, cost_usd, quantized
from gateway.protocol.messages import RULES

if TYPE_CHECKING:
    from decimal import Decimal

    from gateway.accounting.draft import EngineCall, ReceiptBuilder
    from gateway.accounting.receipt import EngineShare
    from gateway.pricing import Price

Basis: TypeAlias = Literal["engine", "tokenizer", "estimate"]
_FROM_BEST: tuple[Basis, ...] = ("engine", "tokenizer", "estimate")
_BYTES_PER_TOKEN = 4
_NOTHING = TokenErrorBound(0, 0)


class Encoding(NamedTuple):
    """What counts a model's tokens. `own`: it is the model's own tokenizer, and no stand-in."""

    name: str
    own: bool = False


class Baseline(NamedTuple):
    """The truth lies within `error_usd` of `usd`; `basis` is that of its weaker part."""

    usd: Decimal
    error_usd: Decimal
    basis: Basis


class Counted(NamedTuple):
    """A number of tokens, and how many it may be off by."""

    tokens: int
    off: int = 0
    basis: Basis = "engine"


def baseline(
    draft: ReceiptBuilder, teacher: EngineShare | None, student: EngineShare | None, price: Price, tokenizer: str | None
) -> Baseline:
    """Args:
    price: the baseline model's.
    tokenizer: the baseline model's own, to count in, which takes milliseconds; None: nothing is counted here.
    """
    last = student or teacher
    if last is None:
        return Baseline(quantized(cost_usd(price, 0, 0)), quantized(cost_usd(price, 0, 0)), "engine")
    model = draft.plan.baseline
    own = teacher if teacher is not None and teacher.model == model else last if last.model == model else None
    # A count beats an estimate, whoever counted.
    read = own if own is not None and (student is None or not own.estimated) else last
    prompt = _prompt(draft, read, teacher, tokenizer)
    turns = _added_turns(draft, draft.teacher) if own is not None and own is teacher else 0
    if turns and read is own and student is not None and not student.estimated:
        # Who read exemplars as well tells less of a short prompt than who did not.
        other = _prompt(draft, student, teacher, tokenizer)
        read, prompt = (student, other) if other.off < prompt.off else (read, prompt)
    answer = _answer(draft, teacher, student, tokenizer)
    cached = stored = 0
    if own is not None and own is read:
        cached, stored = own.cached_input_tokens, own.cache_write_input_tokens
        if turns:
            # They stand before the caller's words, so they were in the cache first.
            added = max(0, own.input_tokens - prompt.tokens)
            cached, stored = max(0, cached - added), max(0, stored - max(0, added - cached))
        # What was added after the caller's words was in no cache yet.
        stored = min(stored, max(0, prompt.tokens - cached))
    return Baseline(
        quantized(baseline_usd(price, prompt.tokens, answer.tokens, cached, stored)),
        quantized(cost_usd(price.dearest if stored else price, prompt.off, answer.off)),
        _weaker(prompt.basis, answer.basis),
    )


def _weaker(one: Basis, other: Basis) -> Basis:
    return one if one == other else max(one, other, key=_FROM_BEST.index)


def _prompt(draft: ReceiptBuilder, read: EngineShare, teacher: EngineShare | None, tokenizer: str | None) -> Counted:
    """The caller's prompt. `read` is the share that tells how long it was, with what was added to it."""
    call = draft.teacher if read is teacher else draft.student
    assert call is not None, "a share is of a call"
    own = read.model == draft.plan.baseline and not read.estimated
    added = _added(draft, call)
    # The guidance was counted by who wrote it; other text that was added is ours, and most likely English.
    guidance = draft.kept_tokens if call is draft.student else 0
    if own and not added and not guidance:
        return Counted(read.input_tokens)
    turns = TOKENS_PER_MESSAGE * _added_turns(draft, call)
    more = TokenErrorBound.of([added]) if added else _NOTHING
    size = more.size_bytes - (TokenErrorBound.of([draft.opening]).size_bytes if guidance else 0)
    ours = max(0, size) // _BYTES_PER_TOKEN + turns
    prompt = max(0, read.input_tokens - guidance - ours)
    extent = TokenErrorBound.of(text for message in call.messages for text in texts_of(message))
    if own:
        said = Counted(prompt, off_tokens(guidance + ours, more) + turns, "estimate")
    else:
        template = off_template(len(call.messages), TOKENS_PER_MESSAGE)
        shown = off_tokens(ours, more) if turns else 0
        said = Counted(prompt, off_tokens(prompt, extent) + shown + template, "estimate")
    if tokenizer is None or read.estimated or not counts(tokenizer, extent.chars):
        return said
    less = count_text(tokenizer, added) + turns + (TOKENS_PER_MESSAGE if draft.shown_tokens and guidance else 0)
    if own:
        return Counted(max(0, read.input_tokens - less), off_recounted(less) + turns, "tokenizer")
    counted = max(0, count_messages(tokenizer, call.messages) - less)
    # An engine that read much more than the words read tools or images as well, which are not counted here.
    return said if abs(counted - said.tokens) > said.off else Counted(counted, template, "tokenizer")


def _added(draft: ReceiptBuilder, call: EngineCall) -> str:
    """What a call's prompt holds that the caller did not send."""
    guidance = draft.plan.guidance
    if guidance is None:
        return ""
    projection = guidance.projection
    if call is draft.teacher:
        return "\n".join(projection.shown if _holds_turns(draft, call) else filter(None, (projection.instruction,)))
    if draft.kept_tokens and draft.placement == "context":
        return projection.introduction.replace("{guidance}", draft.opening)
    return draft.opening


def _added_turns(draft: ReceiptBuilder, call: EngineCall | None) -> int:
    """The messages among the call's that the caller did not send. A system text may have joined the caller's own."""
    guidance = draft.plan.guidance
    if guidance is None or call is None or call is not draft.teacher or not _holds_turns(draft, call):
        return 0
    system = guidance.projection.system
    return guidance.projection.turns - (system is not None and call.messages[0].get("content") != system)


def _holds_turns(draft: ReceiptBuilder, call: EngineCall) -> bool:
    """Whether the projection's turns are in a teacher's prompt: not in a raw one, which is put down as one message."""
    assert draft.plan.guidance is not None, "a teacher was asked for guidance"
    projection = draft.plan.guidance.projection
    rules = projection.system is None or call.messages[0].get("role") in RULES
    return rules and len(call.messages) > 2 * len(projection.exemplars)


def _answer(
    draft: ReceiptBuilder, teacher: EngineShare | None, student: EngineShare | None, tokenizer: str | None
) -> Counted:
    """The answer that the caller got."""
    model, guided = draft.plan.baseline, draft.plan.guidance is not None
    last = student or teacher
    assert last is not None, "there is no answer without a call"
    call = draft.student if student is not None else draft.teacher
    assert call is not None, "a share is of a call"
    if not guided or student is not None:
        opened = draft.shown_tokens if guided else 0
        wrote = last.output_tokens
    else:
        # All that the caller got is the teacher's. Of what a device got, what stands in its prompt is no answer.
        alone = draft.plan.mode != "guidance" or draft.complete
        opened, wrote = draft.kept_tokens if alone else draft.shown_tokens, 0
    said = Counted(wrote) if wrote == 0 or (last.model == model and not last.estimated) else _foreign(call, wrote)
    if opened:
        opening = _opening(draft, teacher, opened, own=teacher is not None and teacher.model == model)
        said = Counted(opening.tokens + said.tokens, opening.off + said.off, _weaker(opening.basis, said.basis))
    if said.basis == "engine" or tokenizer is None:
        return said
    text = call.text.getvalue() if wrote else ""
    shown = draft.opening if opened else ""
    if text.lstrip().startswith(shown.strip()):
        shown = ""  # an engine that repeats what it goes on with
    if (wrote and not text) or not counts(tokenizer, len(shown) + len(text)):
        return said
    counted = count_text(tokenizer, shown + text)
    # Who wrote much more than the caller's words thought unseen, or called tools: that is not counted here.
    if (call.usage is None and call.lost_tokens) or abs(counted - said.tokens) > said.off:
        return said
    return Counted(counted, off_recounted(counted), "tokenizer")


def _opening(draft: ReceiptBuilder, teacher: EngineShare | None, kept: int, *, own: bool) -> Counted:
    """What the teacher wrote of the answer. Of an opening that was cut, it did not count the part."""
    if teacher is None:
        return Counted(kept)
    extent = TokenErrorBound.of([draft.opening])
    if not own or teacher.estimated:
        return Counted(kept, off_tokens(kept, extent), "estimate")
    less = max(0, teacher.output_tokens - kept)
    return Counted(kept, off_tokens(min(kept, less), extent), "estimate") if less else Counted(kept)


def _foreign(call: EngineCall, wrote: int) -> Counted:
    """What was counted by another model's tokenizer, or by none."""
    lost = call.lost_tokens if call.usage is None else 0
    counted = max(0, wrote - lost)
    return Counted(wrote, off_tokens(counted, TokenErrorBound.of([call.text.getvalue()])) + lost, "estimate")
