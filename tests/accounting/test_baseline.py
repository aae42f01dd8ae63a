"""The baseline states the basis of its counts and its largest error."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import structs

from gateway.accounting.estimate import MAX_COUNTED_CHARS, Encoding, count_messages, count_text, recount_error
from gateway.accounting.intent import abandoned
from gateway.accounting.receipt import Receipt
from gateway.accounting.shares import EngineCall, FailedCall
from gateway.engines.base import TokenUsage
from gateway.guidance.projection import teacher_messages
from gateway.policy.projections import PRIMED, PROJECTIONS
from gateway.usage.counters import pico
from gateway.usage.rollup import SumRow
from tests.accounting.receipt_builders import ENCODINGS, MESSAGES, PRICES, builder, call, closed, guided, intent, plan
from tests.accounting.test_bounds import TEXTS, bundled

if TYPE_CHECKING:
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.policy.projections import Projection

BIG = PRICES["big"]
OPENING = "The baker sells 24 rolls in the morning"
REST = " and half as many, which is 12, in the afternoon. That makes 36 rolls; at 3 dollars each he takes in 108."


def own(tokenizer: str) -> dict[str, Encoding]:
    """Return the encodings where only `big` has its own tokenizer."""
    return ENCODINGS | {"big": Encoding(tokenizer, own=True)}


def counted_call(text: str, tokenizer: str = "cl100k_base", model: str = "small", read: int = 150) -> EngineCall:
    """Return a call whose engine counts its output with that tokenizer."""
    return call(model, read, count_text(tokenizer, text), text=StringIO(text))


def answered_request(
    rest: str = REST, start_text: str = OPENING, tokenizer: str = "cl100k_base", **more: Any
) -> ReceiptBuilder:
    """`big` wrote the guidance and counts with `tokenizer`. `small` finished it and counts with cl100k_base."""
    kept_count = count_text(tokenizer, start_text)
    facts = {
        "teacher": call("big", 100, kept_count),
        "student": counted_call(rest),
        "kept_tokens": kept_count,
        "guidance_text": start_text,
    }
    return guided(**(facts | more))


def test_counts_of_the_baseline_model_itself_are_exact() -> None:
    receipt = closed(builder(plan("teacher"), teacher=call("big", 100, 200)))
    assert (receipt.baseline_basis, receipt.baseline_error_usd) == ("engine", 0)
    assert not receipt.baseline_estimated


def test_a_student_that_is_the_baseline_counts_for_itself_though_a_teacher_failed() -> None:
    late = call("big", None, lost_tokens=40)
    one = builder(plan(baseline="small"), teacher=late, student=call("small", 100, 10), unguided="teacher_late")
    receipt = closed(one)
    assert (receipt.baseline_basis, receipt.baseline_error_usd) == ("engine", 0)
    assert receipt.baseline_usd == PRICES["small"].input_usd * 100 + PRICES["small"].output_usd * 10


@pytest.mark.parametrize("tokenizer", bundled())
@pytest.mark.parametrize("name", [name for name in TEXTS if len(TEXTS[name]) < 3_000])
def test_the_truth_lies_within_the_stated_error(name: str, tokenizer: str) -> None:
    """The error covers the truth as an estimate, and more narrowly with the model's own tokenizer."""
    start_text, rest = TEXTS[name][:40], TEXTS[name][40:]
    one = answered_request(rest, start_text, tokenizer)
    truth = BIG.input_usd * 100 + BIG.output_usd * count_text(tokenizer, start_text + rest)
    estimate = closed(one)
    assert (estimate.baseline_basis, estimate.baseline_estimated) == ("estimate" if rest else "engine", bool(rest))
    assert estimate.baseline_error_usd is not None
    assert abs(estimate.baseline_usd - truth) <= estimate.baseline_error_usd
    again = answered_request(rest, start_text, tokenizer).close("ok", PRICES, own(tokenizer))
    assert again.baseline_error_usd is not None
    assert again.baseline_error_usd <= estimate.baseline_error_usd
    assert abs(again.baseline_usd - truth) <= again.baseline_error_usd


def test_the_answer_is_counted_in_the_baseline_models_own_tokenizer_where_that_is_known() -> None:
    tokenizer = bundled()[-1]
    receipt = answered_request().close("ok", PRICES, own(tokenizer))
    counted = count_text(tokenizer, OPENING + REST)
    assert (receipt.baseline_basis, receipt.baseline_estimated) == ("tokenizer", False)
    assert receipt.baseline_usd == BIG.input_usd * 100 + BIG.output_usd * counted
    assert receipt.savings_usd == receipt.baseline_usd - receipt.cost_usd
    assert receipt.baseline_error_usd == BIG.output_usd * recount_error(counted)


def test_a_prompt_that_the_baseline_model_did_not_read_is_counted_in_its_own_tokenizer() -> None:
    tokenizer = bundled()[-1]
    read = count_messages("cl100k_base", MESSAGES)
    one = builder(plan("student"), student=counted_call(REST, read=read))
    receipt = one.close("ok", PRICES, own(tokenizer))
    prompt, answer = count_messages(tokenizer, MESSAGES), count_text(tokenizer, REST)
    assert receipt.baseline_basis == "tokenizer"
    assert receipt.baseline_usd == BIG.input_usd * prompt + BIG.output_usd * answer
    assert receipt.baseline_error_usd is not None
    assert receipt.baseline_error_usd > BIG.output_usd * recount_error(answer), "its template is not known"


@pytest.mark.parametrize("name", ["concise", "hint"])
def test_the_baseline_does_not_read_what_a_projection_adds_to_the_prompt(name: str) -> None:
    """The caller did not send that text. It is subtracted, with an error bound."""
    instruction = PROJECTIONS[name].instruction
    assert instruction is not None
    shown = {"plan": plan(projection=name, placement="prefix")}
    tokenizer = bundled()[0]
    counted = count_text(tokenizer, instruction)
    exact = BIG.input_usd * (100 - counted) + BIG.output_usd * count_text(tokenizer, OPENING + REST)
    receipt = answered_request(tokenizer=tokenizer, **shown).close("ok", PRICES, own(tokenizer))
    assert (receipt.baseline_usd, receipt.baseline_basis) == (exact, "tokenizer")
    estimate = closed(answered_request(tokenizer=tokenizer, **shown))
    assert estimate.baseline_error_usd is not None
    assert abs(estimate.baseline_usd - exact) <= estimate.baseline_error_usd


def primed(
    messages: list[dict[str, Any]], tokenizer: str, projection: Projection = PRIMED, **more: Any
) -> ReceiptBuilder:
    """`big` read exemplars before the caller's chat. It counts with `tokenizer` and three template tokens per turn."""
    sent = teacher_messages(projection, messages)
    read = count_messages(tokenizer, sent) - len(sent)
    kept_count = count_text(tokenizer, OPENING)
    base = plan()
    assert base.guidance is not None
    facts = {
        "plan": structs.replace(base, guidance=structs.replace(base.guidance, projection=projection)),
        "teacher": EngineCall(
            "big",
            sent,
            TokenUsage(read, kept_count, more.pop("cached", 0), cache_write_input_tokens=more.pop("stored", 0)),
        ),
        "student": EngineCall(
            "small", messages, TokenUsage(count_messages("cl100k_base", messages) + kept_count, 30), StringIO(REST)
        ),
        "kept_tokens": kept_count,
        "guidance_text": OPENING,
    }
    return guided(**(facts | more))


LONG = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "How far is it from here to there? " * 200},
]
SYSTEM = replace(PRIMED, system="You answer at once.")


@pytest.mark.parametrize("tokenizer", bundled())
@pytest.mark.parametrize("messages", [MESSAGES, LONG], ids=["short", "long"])
@pytest.mark.parametrize("projection", [PRIMED, SYSTEM], ids=["exemplars", "system"])
def test_the_baseline_reads_no_exemplars(messages: Any, tokenizer: str, projection: Projection) -> None:
    """The baseline prompt contains the caller's messages and the template, but no exemplars."""
    prompt = count_messages(tokenizer, messages) - len(messages)
    truth = BIG.input_usd * prompt + BIG.output_usd * count_text(tokenizer, OPENING + REST)
    for receipt in (
        closed(primed(messages, tokenizer, projection)),
        primed(messages, tokenizer, projection).close("ok", PRICES, own(tokenizer)),
    ):
        assert receipt.baseline_error_usd is not None
        assert abs(receipt.baseline_usd - truth) <= receipt.baseline_error_usd
        assert receipt.baseline_error_usd < BIG.input_usd * (prompt + 60) + BIG.output_usd * 60


def test_a_cache_that_holds_the_exemplars_makes_no_prompt_of_the_callers_cheaper() -> None:
    """The exemplars precede the prompt, so they are cached first."""
    tokenizer = bundled()[-1]
    receipts = [
        primed(MESSAGES, tokenizer, cached=cached, student=None, complete=True).build_receipt(
            "ok", PRICES, own(tokenizer)
        )
        for cached in (0, 200)
    ]
    assert receipts[0].baseline_usd == receipts[1].baseline_usd
    assert receipts[0].cost_usd > receipts[1].cost_usd


def test_exemplars_in_the_cache_make_no_prompt_of_the_callers_dearer() -> None:
    """The caller's tokens are the last of the tokens that the teacher stored in its cache."""
    tokenizer = bundled()[-1]
    prices = PRICES | {"big": replace(BIG, cache_write_usd=Decimal("0.0000025"))}
    fresh, exemplars, both, all_of_it = (
        primed(LONG, tokenizer, cached=cached, stored=stored, student=None, complete=True).build_receipt(
            "ok", prices, own(tokenizer)
        )
        for cached, stored in ((0, 0), (0, 200), (200, 1_000), (0, 10_000))
    )
    assert exemplars.baseline_usd == fresh.baseline_usd < both.baseline_usd < all_of_it.baseline_usd
    assert fresh.baseline_error_usd is not None
    assert all_of_it.baseline_error_usd is not None
    assert fresh.baseline_error_usd < all_of_it.baseline_error_usd <= Decimal("1.25") * fresh.baseline_error_usd


def test_of_a_raw_prompt_no_exemplars_are_counted_out() -> None:
    """A raw prompt contains no exemplars."""
    one = primed(
        MESSAGES, bundled()[-1], teacher=EngineCall("big", MESSAGES, TokenUsage(100, 10)), student=None, complete=True
    )
    assert (
        closed(one).baseline_usd
        == closed(
            answered_request(student=None, complete=True, teacher=call("big", 100, 10), kept_tokens=one.kept_tokens)
        ).baseline_usd
    )


@pytest.mark.parametrize("placement", ["prefix", "context", "input"])
def test_a_baseline_that_finished_the_answer_does_not_read_the_guidance(placement: str) -> None:
    """`small` is the baseline, and its prompt contained the guidance of `big`."""
    projection = PROJECTIONS["cutoff"]
    added = projection.introduction.replace("{guidance}", OPENING) if placement == "context" else OPENING
    tokenizer = "cl100k_base"
    read = 100 + count_text(tokenizer, added) + (4 if placement == "prefix" else 0)
    one = answered_request(student=counted_call(REST, read=read), plan=plan(placement=placement, baseline="small"))
    encodings = ENCODINGS | {"small": Encoding(tokenizer, own=True)}
    receipt = one.close("ok", PRICES, encodings)
    answer = count_text(tokenizer, OPENING + REST if placement == "prefix" else REST)
    exact = PRICES["small"].input_usd * 100 + PRICES["small"].output_usd * answer
    assert (receipt.baseline_usd, receipt.baseline_basis) == (exact, "tokenizer")
    estimate = closed(
        answered_request(student=counted_call(REST, read=read), plan=plan(placement=placement, baseline="small"))
    )
    assert estimate.baseline_error_usd is not None
    assert abs(estimate.baseline_usd - exact) <= estimate.baseline_error_usd


def test_guidance_repeated_by_the_student_is_counted_once() -> None:
    tokenizer = bundled()[-1]
    one = answered_request(student=call("small", 150, count_text("cl100k_base", REST), text=StringIO(OPENING + REST)))
    receipt = one.close("ok", PRICES, own(tokenizer))
    assert receipt.baseline_usd == BIG.input_usd * 100 + BIG.output_usd * count_text(tokenizer, OPENING + REST)


def test_output_other_than_text_makes_the_baseline_an_estimate() -> None:
    """Only the engine counts hidden reasoning, and tools and images in a prompt."""
    tokenizer = bundled()[-1]
    thinking = answered_request(student=call("small", 150, 5_000, text=StringIO(REST)))
    receipt = thinking.close("ok", PRICES, own(tokenizer))
    assert receipt.baseline_basis == "estimate"
    assert receipt.baseline_usd >= BIG.output_usd * 5_000
    tools = builder(plan("student"), student=counted_call(REST, read=4_000))
    receipt = tools.close("ok", PRICES, own(tokenizer))
    assert receipt.baseline_basis == "estimate"
    assert receipt.baseline_usd >= BIG.input_usd * 4_000


def test_the_error_of_trimmed_guidance_is_the_trimmed_part() -> None:
    """The teacher counted 40 tokens, of which about 30 were kept."""
    one = guided(student=None, kept_tokens=30, guidance_text=OPENING, complete=True)
    receipt = closed(one)
    assert receipt.baseline_basis == "estimate"
    assert receipt.baseline_error_usd is not None
    assert 0 < receipt.baseline_error_usd <= BIG.output_usd * 10


def test_the_error_includes_output_that_never_arrived() -> None:
    lost = call("small", None, lost_tokens=500, text=StringIO("Once"))
    receipt = closed(builder(plan("student"), student=lost), "engine_unreachable")
    assert receipt.baseline_error_usd is not None
    assert receipt.baseline_error_usd >= BIG.output_usd * 500


def test_a_very_long_answer_stays_an_estimate() -> None:
    """Counting it would take too long."""
    long = "a story " * (MAX_COUNTED_CHARS // 8 + 1)
    receipt = answered_request(student=call("small", 150, 12_000, text=StringIO(long))).close(
        "ok", PRICES, own(bundled()[-1])
    )
    assert receipt.baseline_basis == "estimate"


def test_an_abandoned_request_may_have_spared_all_or_nothing() -> None:
    receipt = abandoned(intent(), 1_700_000_100.0)
    assert receipt.baseline_basis == "estimate"
    assert receipt.baseline_error_usd == receipt.baseline_usd == receipt.cost_usd > 0


def test_a_receipt_of_an_earlier_version_has_no_baseline_basis() -> None:
    raw = msgspec.json.decode(closed(guided()).to_json())
    del raw["baseline_basis"], raw["baseline_error_usd"]
    old = Receipt.from_json(msgspec.json.encode(raw))
    assert (old.baseline_basis, old.baseline_error_usd) == (None, None)
    row = SumRow()
    row.merge(SumRow.of(old))
    assert row.baseline_error_pico == 0


def test_hidden_costs_hide_the_error_as_well() -> None:
    shown = closed(guided()).as_dict(show_cost=False)
    assert not any(name.endswith("_usd") for name in shown)
    assert "baseline_error_usd" in closed(guided()).as_dict()


def test_rows_add_up_errors_and_the_cost_of_each_engine() -> None:
    """Failed calls are included. Removing a receipt leaves nothing behind. A shadow saves nothing."""
    failed = guided(failed=[FailedCall("other", "engine_timeout", call("huge", 10, 1))])
    receipts = [
        closed(one) for one in (failed, answered_request(), builder(plan("teacher"), teacher=call("big", 9, 9)))
    ]
    whole, halves = SumRow(), [SumRow(), SumRow()]
    for place, receipt in enumerate(receipts):
        whole.merge(SumRow.of(receipt))
        halves[place % 2].merge(SumRow.of(receipt))
    assert whole.baseline_error_pico == sum(pico(one.baseline_error_usd or Decimal(0)) for one in receipts) > 0
    assert sum(whole.engines.values()) == whole.cost_pico
    assert set(whole.engines) == {"big", "small", "huge"}
    halves[0].merge(halves[1])
    assert halves[0] == whole == SumRow.from_bytes(whole.to_bytes())
    for receipt in receipts:
        whole.merge(SumRow.of(receipt, -1))
    assert (whole.engines, whole.baseline_error_pico) == ({}, 0)
    shadow = SumRow()
    shadow.merge(SumRow.of(msgspec.structs.replace(receipts[1], shadow_of="another", savings_class=None)))
    assert shadow.baseline_error_pico == 0
    assert shadow.engines


def test_an_engine_that_costs_nothing_does_not_disturb_the_sums() -> None:
    row, receipt = SumRow(), closed(guided(teacher=call("big", 100, 40, shared="cache"), batch=None, granted=None))
    row.merge(SumRow.of(receipt))
    assert set(row.engines) == {"small"}
