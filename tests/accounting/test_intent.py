"""The largest cost of a request, and the receipt of a request whose process died."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest
from msgspec import structs

from gateway.accounting.intent import Intent, abandoned, intend
from gateway.accounting.receipt import EngineShare
from gateway.accounting.worst_case import DEFAULT_MAX_OUTPUT_TOKENS, engine_maxima, unknown_max_output, worst_case
from gateway.policy.plan import StudentPlan
from gateway.policy.projections import CUTOFF, PRIMED, Exemplar, SkipRule
from gateway.policy.route_rules import RetryRule
from gateway.protocol.text import parse_text_completion
from tests.accounting.receipt_builders import PRICES, builder, chat, plan

if TYPE_CHECKING:
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.policy.plan import Plan


def intended(one: Plan, **more: object) -> Intent:
    return intend(builder(one), one, worst_case(one, chat(**more), PRICES), "ann")


def test_a_guided_request_reserves_for_both_engines() -> None:
    """400 bytes count as 400 tokens plus a template. The teacher may write m tokens.

    The student also reads these, in its own tokens, and may write its limit. It may be called again without guidance.
    """
    one = intended(plan())
    assert one.teacher == EngineShare("big", 912, 40, Decimal("0.002224000000"), estimated=True)
    assert one.student == EngineShare("small", 1552, 100, Decimal("0.000360400000"), estimated=True)
    assert one.more == (one.student,)
    assert one.reserved_usd == Decimal("0.002944800000")
    assert (one.mode, one.baseline, one.process_id) == ("guided", "big", "ann")


def test_retries_and_other_students_are_reserved_for() -> None:
    """Each engine has the retries of the policy, and the teacher at most one."""
    others = (StudentPlan("small", None), StudentPlan("huge", None))
    one = intended(structs.replace(plan(), students=others, retries=RetryRule(num_retries=2, backoff_s=0.1)))
    assert one.student is not None
    assert one.teacher is not None
    assert [(share.model, share.output_tokens) for share in one.more] == [("big", 40), ("small", 300), ("huge", 300)]
    huge = Decimal(25) * 1552 / 10**6 + Decimal(100) * 100 / 10**6
    assert one.reserved_usd == one.teacher.cost_usd * 2 + one.student.cost_usd * 4 + huge * 3


def test_the_reservation_includes_the_text_of_the_projection() -> None:
    """Each byte of an exemplar counts as a token, with 16 tokens per turn. Dropped guidance counts as well."""
    shown = (Exemplar("One?", "1."), Exemplar("Two?", "2."))
    skip = SkipRule((), 24)
    bare = plan()
    assert bare.guidance is not None
    projection = replace(CUTOFF, exemplars=shown, system="Be terse.", skip=skip)
    added = len("One?1.Two?2.Be terse.") + 5 * 16
    one = intended(structs.replace(bare, guidance=structs.replace(bare.guidance, projection=projection)))
    assert one.teacher is not None
    assert (one.teacher.input_tokens, one.teacher.output_tokens) == (912 + added, 40 + 24)
    assert one.student == intended(bare).student
    assert one.tokens == intended(bare).tokens + added // 4 + 24


def test_the_reservation_excludes_unused_exemplars() -> None:
    bare = plan()
    assert bare.guidance is not None
    primed = structs.replace(bare, guidance=structs.replace(bare.guidance, projection=PRIMED))
    request = parse_text_completion(b'{"model": "chat", "prompt": "Q: Why? A:", "max_tokens": 100}')
    ones = [intend(builder(one), one, worst_case(one, request, PRICES), "ann") for one in (primed, bare)]
    assert ones[0].teacher == ones[1].teacher


def test_a_long_introduction_is_reserved_for() -> None:
    bare = plan(placement="context")
    assert bare.guidance is not None
    long = replace(CUTOFF, introduction="{guidance}" + "a" * 1000)
    one = intended(structs.replace(bare, guidance=structs.replace(bare.guidance, projection=long)))
    assert one.student is not None
    assert one.student.input_tokens == 1552 + 1010 - 256


def test_the_expected_usage_differs_from_the_maximum() -> None:
    """Four bytes count as a token. Both engines read the prompt, and the student reads the guidance."""
    assert intended(plan()).tokens == 100 + 100 + 100 + 2 * 40
    assert intended(plan("student")).tokens == 100 + 100


def test_a_picture_is_larger_than_its_address() -> None:
    parts = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": "https://x.example/a"}}]
    one = intended(plan("student"), non_text_parts=1, body={"messages": [{"role": "user", "content": parts}]})
    assert one.student is not None
    assert one.student.input_tokens == 400 + 512 + 16_384


@pytest.mark.parametrize(
    ("mode", "role", "other"), [("student", "student", "teacher"), ("teacher", "teacher", "student")]
)
def test_a_request_of_one_engine_reserves_for_that_one(mode: str, role: str, other: str) -> None:
    one = intended(plan(mode))
    share = getattr(one, role)
    assert (share.input_tokens, share.output_tokens) == (912, 100)
    assert one.reserved_usd == share.cost_usd
    assert getattr(one, other) is None
    assert one.mode == mode


def test_an_unguided_request_of_a_guided_route_reserves_no_teacher() -> None:
    """The teacher will not be called."""
    one = intended(structs.replace(plan(), guidance=None, unguided="tools"))
    assert (one.mode, one.unguided, one.teacher) == ("student", "tools", None)


def test_each_choice_may_be_as_long_as_the_limit() -> None:
    one = intended(plan("student"), body={"n": 3})
    assert one.student is not None
    assert one.student.output_tokens == 300


def test_without_a_limit_the_largest_answer_of_the_engine_is_reserved_for() -> None:
    """An unknown maximum is the default, which is marked as a lower bound."""
    one, request = structs.replace(plan("student"), max_tokens=None), chat(body={"n": 2})
    for maxima, tokens, at_least in (
        (engine_maxima({"small": 4096}, {}), 8192, False),
        (unknown_max_output, 2 * DEFAULT_MAX_OUTPUT_TOKENS, True),
    ):
        share = intend(builder(one), one, worst_case(one, request, PRICES, maxima), "ann").student
        assert share is not None
        assert (share.output_tokens, share.at_least) == (tokens, at_least)


def test_a_limit_on_tokens_takes_an_answer_without_one_for_an_ordinary_one() -> None:
    """The receipt corrects the estimate at admission. No limit would fit the largest answer."""
    assert intended(structs.replace(plan("student"), max_tokens=None)).tokens == 100 + 1024


def test_an_abandoned_request_loses_what_was_reserved() -> None:
    """The spent amount and the baseline are unknown, so all amounts are estimates."""
    one = intended(plan())
    receipt = abandoned(one, now=one.created + 12.5)
    assert (receipt.status, receipt.mode) == ("abandoned", "guided")
    assert receipt.cost_usd == receipt.baseline_usd == one.reserved_usd > 0
    assert (receipt.savings_class, receipt.savings_usd) == ("failed", -receipt.cost_usd)
    assert receipt.baseline_estimated
    assert receipt.teacher is not None
    assert receipt.student is not None
    assert receipt.teacher.estimated
    assert receipt.student.estimated
    assert [(attempt.engine, attempt.error) for attempt in receipt.attempts] == [("small", "abandoned")]
    shares = (receipt.teacher, receipt.student, *(attempt.share for attempt in receipt.attempts))
    assert receipt.cost_usd == sum(share.cost_usd for share in shares if share is not None)
    assert receipt.timings.total_ms == 12_500
    assert abandoned(one, now=one.created - 5).timings.total_ms == 0, "clocks of two machines differ"
    same = {"id", "created", "tenant", "key", "route", "stream"}
    assert {name: getattr(receipt, name) for name in same} == {name: getattr(one, name) for name in same}


def test_an_intent_survives_the_round_trip_through_redis() -> None:
    """Amounts are text in JSON."""
    one = intended(plan())
    raw = one.to_json()
    assert Intent.from_json(raw) == one
    assert b'"reserved_usd":"0.002944800000"' in raw
    with pytest.raises(msgspec.DecodeError):
        Intent.from_json(b"what is this")


def test_an_intent_contains_no_text_of_the_request() -> None:
    """Prompts are not stored in Redis."""
    one: ReceiptBuilder = builder(plan())
    assert b"ship" not in intend(one, one.plan, worst_case(one.plan, chat(), PRICES), "ann").to_json()


def test_the_tags_of_a_dead_process_are_kept() -> None:
    """A request without tags has none in its intent."""
    tagged = msgspec.structs.replace(builder(plan()), tags=("a", "b"))
    one = Intent.from_json(intend(tagged, tagged.plan, worst_case(tagged.plan, chat(), PRICES), "ann").to_json())
    assert abandoned(one, now=one.created + 1).tags == ("a", "b")
    assert b"tags" not in intended(plan()).to_json()
    assert b"tags" not in abandoned(intended(plan()), now=one.created + 1).to_json()


def test_a_shadow_of_a_dead_process_keeps_its_mode_and_original_id() -> None:
    """A shadow has its own mode and the id of its original request."""
    shadow = msgspec.structs.replace(builder(plan()), shadow_of="req_1")
    one = Intent.from_json(intend(shadow, shadow.plan, worst_case(shadow.plan, chat(), PRICES), "ann").to_json())
    receipt = abandoned(one, now=one.created + 1)
    assert (one.mode, receipt.mode, receipt.shadow_of) == ("shadow", "shadow", "req_1")
    assert receipt.cost_usd == intended(plan()).reserved_usd


def test_the_labels_of_a_dead_process_are_kept() -> None:
    labels = {"team": "research", "app": "web"}
    one = builder(plan())
    one.labels = labels
    intent = Intent.from_json(intend(one, one.plan, worst_case(one.plan, chat(), PRICES), "ann").to_json())
    assert abandoned(intent, 0).labels == labels
    assert one.child_receipt(one.plan, "shadow").labels == labels
    assert b"labels" not in intended(plan()).to_json()
    assert b"labels" not in abandoned(intended(plan()), 0).to_json()
