"""The charge of a call: the engine's count where it is possible, otherwise an upper bound within the reservation."""

from __future__ import annotations

import json
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from gateway.accounting.estimate import MAX_BOUNDED_BYTES, Encoding, bound_text, count_text
from gateway.accounting.receipt import Receipt
from gateway.accounting.shares import EngineCall, FailedCall
from gateway.accounting.worst_case import (
    DEFAULT_MAX_OUTPUT_TOKENS,
    MaxOutput,
    budget_max_tokens,
    engine_maxima,
    worst_case,
)
from gateway.engines.base import TokenUsage
from gateway.policy.plan import StudentPlan
from gateway.policy.route_rules import RetryRule
from gateway.pricing import Price
from gateway.protocol.chat import parse_chat
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.text import parse_text_completion
from tests.accounting.receipt_builders import PRICES, builder, plan

if TYPE_CHECKING:
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.policy.plan import Plan
    from gateway.protocol.requests import AnyRequest

MODELS = dict.fromkeys(PRICES, Encoding("o200k_base"))


def chat(**fields: Any) -> AnyRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}], **fields}
    return parse_chat(orjson.dumps(body))


def admitted(one: Plan, request: AnyRequest, **calls: Any) -> ReceiptBuilder:
    """Return the builder of an admitted request with its calls."""
    return builder(one, request=request, reserved=worst_case(one, request, PRICES), **calls)


def call(model: str, request: AnyRequest, usage: TokenUsage | None = None, **more: Any) -> EngineCall:
    return EngineCall(model, request.body.get("messages", ()), usage, **more)


def closed(one: ReceiptBuilder) -> Receipt:
    return one.close("ok", PRICES, MODELS)


def student(request: AnyRequest, usage: TokenUsage | None = None, **more: Any) -> Receipt:
    return closed(admitted(plan("student"), request, student=call("small", request, usage, **more)))


def test_an_uncounted_prompt_includes_the_whole_body() -> None:
    """Tools, schemas and documents count in addition to the messages' text."""
    tools = [
        {"type": "function", "function": {"name": f"f{index}", "description": "a word " * 50}} for index in range(9)
    ]
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"description": "a word " * 50}}}
    for fields in ({"tools": tools}, {"functions": tools}, {"response_format": schema}, {"documents": tools}):
        share = student(chat(**fields)).student
        assert share is not None
        counted = count_text("o200k_base", json.dumps(next(iter(fields.values()))))
        assert counted < share.input_tokens < 2.5 * counted + 600, fields.keys()
        assert share.estimated


def test_the_calls_of_an_assistant_are_a_part_of_the_prompt() -> None:
    message_text = {
        "role": "assistant",
        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "word " * 500}}],
    }
    share = student(chat(messages=[{"role": "user", "content": "Why?"}, message_text])).student
    assert share is not None
    assert share.input_tokens > 500


def test_an_uncounted_image_counts_as_the_largest_one() -> None:
    """The size of an image does not matter, since no model reads its bytes as text."""
    for url in ("https://x.example/a.png", "data:image/png;base64," + "A" * 900_000):
        share = student(
            chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
        )
        assert share.student is not None
        assert 16_384 < share.student.input_tokens < 17_000


def test_a_large_body_is_bounded_by_its_bytes() -> None:
    """Counting it would take too long."""
    request = chat(tools=[{"type": "function", "function": {"name": "f", "description": "word " * 200_000}}])
    assert request.size_bytes > MAX_BOUNDED_BYTES
    one = admitted(plan("student"), request, student=call("small", request))
    share = closed(one).student
    assert share is not None
    assert one.reserved is not None
    assert share.input_tokens == one.reserved.bounds["student", "small"].input_tokens


def test_token_ids_count_as_themselves() -> None:
    request = parse_text_completion(orjson.dumps({"model": "chat", "prompt": [[100_000] * 700], "max_tokens": 1}))
    share = student(request).student
    assert share is not None
    assert 700 <= share.input_tokens < 700 + 200


def test_texts_to_embed_have_no_template() -> None:
    request = parse_embeddings(orjson.dumps({"model": "chat", "input": ["a", "b"]}))
    one = EngineCall("small", [{"content": [{"text": text} for text in ("a", "b")]}])
    share = closed(admitted(structs.replace(plan("student"), max_tokens=0), request, student=one)).student
    assert share is not None
    assert share.input_tokens < 60


@pytest.mark.parametrize("text", ["1234567890" * 800, " " * 8000, "a" * 8000, "{}[]:," * 1500, "青い光" * 2000])
def test_the_bound_of_a_text_holds_for_every_tokenizer(text: str) -> None:
    """Callers choose their text, and tokenizers differ most in digits, blanks and other scripts."""
    bound = bound_text("o200k_base", text, own=False)
    assert bound == len(text.encode())
    assert bound >= max(count_text(name, text) for name in ("o200k_base", "cl100k_base", "p50k_base"))


def test_ordinary_text_is_bounded_well_below_its_bytes() -> None:
    text = "A vehicle is any machine that carries people or goods from one place to another. " * 99
    counted = count_text("o200k_base", text)
    assert counted < bound_text("o200k_base", text, own=False) < 2 * counted < len(text) / 2


def test_a_models_own_tokenizer_needs_no_distance() -> None:
    text = "A vehicle is any machine, 12 345." * 20
    counted = count_text("o200k_base", text)
    assert counted <= bound_text("o200k_base", text, own=True) <= counted * 1.02 + 4


def test_an_uncounted_prompt_may_be_a_cache_write() -> None:
    """`huge` stores at 25 and writes at 100 USD per 1M tokens."""
    one = structs.replace(plan("student"), students=(StudentPlan("huge", None),))
    share = closed(admitted(one, chat(), student=call("huge", chat()))).student
    assert share is not None
    assert share.cost_usd == Decimal(25 * share.input_tokens + 100 * share.output_tokens) / 10**6
    assert share.cache_write_input_tokens == 0, "nobody knows"


HOURLY = PRICES | {"huge": Price.of_tokens(Decimal(20), Decimal(100), None, Decimal(25), Decimal(40))}


@pytest.mark.parametrize(
    ("reported", "charged"), [(0, 0), (45, 45), (60, 60), (999, 60), pytest.param(None, 60, id="unknown")]
)
def test_tokens_stored_for_an_hour_have_their_own_price(reported: int | None, charged: int) -> None:
    """Without a reported split, all stored tokens have the higher price."""
    usage = TokenUsage(100, 0, 10, cache_write_input_tokens=60, cache_write_1h_input_tokens=reported)
    one = structs.replace(plan("teacher", baseline="huge"), students=(StudentPlan("huge", None),))
    receipt = admitted(one, chat(), teacher=call("huge", chat(), usage)).build_receipt("ok", HOURLY, MODELS)
    assert receipt.teacher is not None
    assert receipt.teacher.cache_write_input_tokens == 60
    assert receipt.teacher.cache_write_1h_input_tokens == charged
    usd = Decimal(20 * 40 + 25 * (60 - charged) + 40 * charged) / 10**6
    assert receipt.cost_usd == receipt.baseline_usd == usd
    assert Receipt.from_json(receipt.to_json()) == receipt
    assert receipt.as_dict()["teacher"].get("cache_write_1h_input_tokens", 0) == charged


def test_where_lifetimes_cost_the_same_an_unknown_split_is_no_count() -> None:
    usage = TokenUsage(100, 0, 10, cache_write_input_tokens=60)
    receipt = closed(admitted(plan("teacher"), chat(), teacher=call("huge", chat(), usage)))
    assert receipt.teacher is not None
    assert (receipt.teacher.cache_write_input_tokens, receipt.teacher.cache_write_1h_input_tokens) == (60, 0)


@pytest.mark.parametrize(("read", "written"), [(2_000_000_000, 5), (5, 2_000_000_000), (10**9, 10**9)])
def test_a_count_above_the_maximum_is_capped_at_the_reservation(read: int, written: int) -> None:
    request = chat()
    one = admitted(plan("student"), request, student=call("small", request, TokenUsage(read, written)))
    assert one.needs_estimate
    receipt = closed(one)
    assert receipt.student is not None
    assert one.reserved is not None
    assert receipt.student.usage_error == "too_high"
    assert receipt.student.estimated
    assert receipt.estimated
    bound = one.reserved.bounds["student", "small"]
    assert receipt.student.input_tokens == min(read, bound.input_tokens)
    assert receipt.student.output_tokens == min(written, bound.output_tokens)
    assert receipt.cost_usd <= one.reserved.usd
    assert receipt.baseline_usd < Decimal("0.01"), "what is not possible saves nothing"


def test_the_limit_holds_for_each_choice() -> None:
    """Three answers may have three times the limit, and a final token each that is not charged."""
    request = chat(n=3)
    for written, error in ((300, ""), (303, ""), (304, "too_high")):
        receipt = student(request, TokenUsage(9, written))
        assert receipt.student is not None
        assert (receipt.student.output_tokens, receipt.student.usage_error) == (300, error)


@pytest.mark.parametrize(("text", "written"), [("word " * 10, 0), ("word " * 60, 1)])
def test_a_count_below_the_minimum_is_replaced(text: str, written: int) -> None:
    """No tokens for an answer with words, and one token for three hundred characters."""
    receipt = student(chat(), TokenUsage(9, written), text=StringIO(text))
    assert receipt.student is not None
    assert receipt.student.usage_error == "too_low"
    assert receipt.student.output_tokens >= count_text("o200k_base", text)
    assert receipt.estimated


def test_a_prompt_that_was_to_be_repeated_is_not_a_part_of_the_answer() -> None:
    request = parse_text_completion(b'{"model": "chat", "prompt": "Why? Why?", "max_tokens": 0, "echo": true}')
    receipt = student(request, TokenUsage(9, 0), text=StringIO("Why? Why?"))
    assert receipt.student is not None
    assert (receipt.student.output_tokens, receipt.student.usage_error) == (0, "")


def test_a_count_below_the_words_of_all_answers_is_not_taken() -> None:
    """Eight answers of 100 words each, with the count of the first."""
    receipt = student(chat(n=8), TokenUsage(9, 100), text=StringIO("word " * 800), min_output_tokens=800)
    assert receipt.student is not None
    assert (receipt.student.output_tokens, receipt.student.usage_error) == (800, "too_low")
    assert receipt.estimated


@pytest.mark.parametrize(("written", "error"), [(5, "too_low"), (999, "too_high")])
def test_a_plausible_prompt_count_survives_an_implausible_output_count(written: int, error: str) -> None:
    """llama.cpp counts the output of one of two answers. 40 tokens came from the prompt cache."""
    request = chat(n=2, messages=[{"role": "user", "content": "Why? " * 99}])
    usage = TokenUsage(131, written, 40)
    share = student(request, usage, text=StringIO("word " * 20), min_output_tokens=20).student
    assert share is not None
    assert (share.input_tokens, share.cached_input_tokens, share.usage_error) == (131, 40, error)
    assert share.output_tokens >= 20
    price = PRICES["small"]
    expected_usd = 91 * price.input_usd + 40 * price.cached_input_usd + share.output_tokens * price.output_usd
    assert share.cost_usd == expected_usd


def test_echo_does_not_lift_the_cap_on_a_count() -> None:
    """In a chat, text is evidence of a low count: no engine repeats a prompt there."""
    raw = parse_text_completion(b'{"model": "chat", "prompt": "Why?", "max_tokens": 9, "echo": true}')
    vectors = parse_embeddings(b'{"model": "chat", "input": "Why?", "echo": true}')
    for request in (raw, vectors, chat(echo=True)):
        receipt = student(request, TokenUsage(2_000_000_000, 0))
        assert receipt.student is not None
        assert receipt.student.usage_error == "too_high"
        assert receipt.student.input_tokens < 1000
    short = student(chat(echo=True), TokenUsage(9, 0), text=StringIO("Because.")).student
    assert short is not None
    assert short.usage_error == "too_low"


def test_a_plausible_count_is_unchanged() -> None:
    receipt = student(chat(), TokenUsage(9, 5, 3), text=StringIO("Because."))
    assert receipt.student is not None
    assert (receipt.student.input_tokens, receipt.student.output_tokens) == (9, 5)
    assert not receipt.student.usage_error
    assert not receipt.estimated
    assert "estimated" not in receipt.facts(show_cost=True)


def test_the_reply_marks_an_estimated_cost() -> None:
    assert student(chat()).facts(show_cost=False)["estimated"] == "true"


def test_missing_output_is_charged_up_to_the_limit() -> None:
    share = student(chat(), lost_tokens=999).student
    assert share is not None
    assert share.output_tokens == 100


def test_without_a_limit_missing_output_is_charged_as_the_engines_longest_answer() -> None:
    """The engine's maximum where it is known. Otherwise the default, which it may exceed."""
    request, one = chat(n=2), structs.replace(plan("student"), max_tokens=None)
    for maxima, tokens, at_least in (
        (engine_maxima({"small": 4096}, {}), 8192, False),
        (engine_maxima({}, {}), 2 * DEFAULT_MAX_OUTPUT_TOKENS, True),
    ):
        lost = call("small", request, unbounded=True)
        receipt = closed(builder(one, request=request, reserved=worst_case(one, request, PRICES, maxima), student=lost))
        assert receipt.student is not None
        assert (receipt.student.output_tokens, receipt.student.at_least) == (tokens, at_least)


def test_the_configured_maximum_precedes_the_engines_and_the_listed_one() -> None:
    maxima = engine_maxima({"a": 1, "b": None}, {"a": 3, "b": 3, "c": 3}, {"a": 2, "b": 2}.get)
    assert [maxima(name) for name in "abcd"] == [
        MaxOutput(1),
        MaxOutput(2),
        MaxOutput(3),
        MaxOutput(DEFAULT_MAX_OUTPUT_TOKENS, known=False),
    ]


def test_the_limit_under_a_budget_is_none_that_an_engine_cannot_take() -> None:
    assert budget_max_tokens(plan("student")) == 1024
    assert budget_max_tokens(plan("student"), engine_maxima({"small": 512}, {})) == 512


def test_the_page_on_costs_has_the_charges_of_failures() -> None:
    """A garbage reply costs its call's bound, and an abandoned request its reservation with two retries."""
    request, prices = chat(max_tokens=4000), PRICES | {"small": Price.of_tokens(Decimal(1), Decimal(10))}
    one = structs.replace(plan("student"), max_tokens=4000, retries=RetryRule())
    reserved = worst_case(one, request, prices)
    garbage = call("small", request, lost_tokens=4000, limit_tokens=4000)
    failed = builder(one, request=request, reserved=reserved, student=garbage).close("failed", prices, MODELS)
    page = (Path(__file__).parents[2] / "docs/cost.md").read_text("utf-8")
    assert f"| {failed.cost_usd:.4f} USD |" in page
    assert f"| {150 * failed.cost_usd:.1f} USD |" in page
    assert f"| {reserved.usd:.4f} USD |" in page


def test_unknown_usage_raises_no_savings() -> None:
    """The cost is an upper bound. The baseline uses the likely share."""
    request = chat(tools=[{"type": "function", "function": {"name": "f", "description": "12345 " * 3000}}])
    known = student(request, TokenUsage(9000, 50))
    unknown = student(request, text=StringIO("word " * 50))
    assert unknown.cost_usd > known.cost_usd
    assert unknown.baseline_usd <= known.baseline_usd


words = st.text(st.characters(min_codepoint=32, max_codepoint=0x3FFF, exclude_categories=["Cs"]), max_size=400)
numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**31 - 1))
stored_numbers = {"cache_write_input_tokens": numbers, "cache_write_1h_input_tokens": st.none() | numbers}
usages = st.one_of(st.none(), st.builds(TokenUsage, numbers, numbers, numbers, **stored_numbers))


@st.composite
def behaviors(draw: st.DrawFn) -> tuple[ReceiptBuilder, AnyRequest]:
    """A random plan and body, and engines that report any usage or none and fail as often as the plan allows."""
    retries = draw(st.integers(0, 2))
    limit = draw(st.one_of(st.none(), st.integers(1, 5000)))
    mode = draw(st.sampled_from(["guided", "student", "teacher"]))
    others = (StudentPlan("big" if mode == "teacher" else "small", None), StudentPlan("huge", None))
    one = structs.replace(plan(mode), max_tokens=limit, retries=RetryRule(num_retries=retries), students=others)
    fields: dict[str, Any] = {
        "n": draw(st.integers(1, 3)),
        "messages": [{"role": "user", "content": "?" + draw(words)}],
    }
    if draw(st.booleans()):
        fields["tools"] = [{"type": "function", "function": {"name": "f", "description": draw(words)}}]
    request = chat(**fields)

    def made(model: str, role: Any = "student") -> EngineCall:
        return EngineCall(
            model,
            request.body["messages"],
            draw(usages),
            StringIO(draw(words)),
            lost_tokens=draw(st.integers(0, 10_000)),
            unbounded=limit is None and draw(st.booleans()),
            role=role,
        )

    failed = [
        FailedCall(engine.engine, "engine_failed", made(engine.engine))
        for engine in others
        for _ in range(draw(st.integers(0, retries)))
    ]
    teacher, last = None, made(draw(st.sampled_from([engine.engine for engine in others])))
    if mode == "guided":
        teacher = made("big", "guidance")
        failed += [FailedCall("big", "engine_failed", made("big", "guidance"))] * draw(st.integers(0, min(1, retries)))
    calls = {"teacher": last} if mode == "teacher" else {"teacher": teacher, "student": last}
    return admitted(one, request, failed=failed, **calls), request


@settings(deadline=None)  # the first example loads a tokenizer
@given(behaviors(), st.booleans())
def test_no_request_is_charged_more_than_it_reserved(made: tuple[ReceiptBuilder, AnyRequest], counts: bool) -> None:
    one, _ = made
    assert one.reserved is not None
    receipt = one.build_receipt("ok", PRICES, MODELS if counts else None)
    assert 0 <= receipt.cost_usd <= one.reserved.usd
    assert receipt.tokens <= sum(
        share.input_tokens + share.output_tokens
        for share in (one.reserved.teacher, one.reserved.student, *one.reserved.more)
        if share is not None
    )


@settings(deadline=None)  # the first example loads a tokenizer
@given(words, words, words, st.sampled_from(["o200k_base", "cl100k_base", "p50k_base"]), st.booleans())
def test_unknown_usage_is_never_charged_less_than_the_engine_counted(
    message_text: str, described: str, answer: str, tokenizer: str, counts: bool
) -> None:
    """The engine has its own tokenizer and template, and reads tools as JSON."""
    tools = [{"type": "function", "function": {"name": "f", "description": described}}]
    request = chat(messages=[{"role": "user", "content": "?" + message_text}], tools=tools, max_tokens=5000)
    prompt = f"<|system|>Tools:\n{json.dumps(tools, ensure_ascii=False)}\n<|user|>\n?{message_text}\n<|assistant|>\n"
    read, written = count_text(tokenizer, prompt), count_text(tokenizer, answer)
    one = structs.replace(plan("student"), max_tokens=5000)
    made = admitted(one, request, student=call("small", request, text=StringIO(answer)))
    share = made.build_receipt("client_gone", PRICES, MODELS if counts else None).student
    assert share is not None
    assert share.input_tokens >= read
    assert share.output_tokens >= written
