"""What a request may cost at most, and what is settled when nobody can say what it did cost."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.ledger.intent import Intent, abandoned, intend
from gateway.ledger.receipt import EngineShare
from tests.ledger.drafts import PRICES, chat, draft, plan

if TYPE_CHECKING:
    from gateway.ledger.draft import Draft
    from gateway.policy.resolve import Plan


def intended(one: Plan, **more: object) -> Intent:
    return intend(draft(one), chat(**more), PRICES, "ann")


def test_a_guided_request_reserves_for_both_engines() -> None:
    """400 bytes are 100 tokens; the teacher may write m, the student reads them too and may write the limit."""
    one = intended(plan())
    assert one.teacher == EngineShare("big", 100, 40, Decimal("0.000600000000"), estimated=True)
    assert one.student == EngineShare("small", 140, 100, Decimal("0.000078000000"), estimated=True)
    assert one.reserved_usd == Decimal("0.000678000000")
    assert (one.mode, one.baseline, one.owner) == ("guided", "big", "ann")


@pytest.mark.parametrize(
    ("mode", "role", "other"), [("student", "student", "teacher"), ("teacher", "teacher", "student")]
)
def test_a_request_of_one_engine_reserves_for_that_one(mode: str, role: str, other: str) -> None:
    one = intended(plan(mode))
    share = getattr(one, role)
    assert (share.input_tokens, share.output_tokens) == (100, 100)
    assert one.reserved_usd == share.cost_usd
    assert getattr(one, other) is None
    assert one.mode == mode


def test_a_guided_route_that_goes_unguided_says_so() -> None:
    """The teacher will not be asked."""
    one = intended(replace(plan(), guidance=None, unguided="tools"))
    assert (one.mode, one.unguided, one.teacher) == ("student", "tools", None)


def test_each_choice_may_be_as_long_as_the_limit() -> None:
    one = intended(plan("student"), body={"n": 3})
    assert one.student is not None
    assert one.student.output_tokens == 300


def test_without_a_limit_a_length_is_assumed_and_said_to_be_the_least() -> None:
    one = intended(replace(plan("student"), max_tokens=None), body={"n": 2})
    assert one.student is not None
    assert one.student.output_tokens == 2048
    assert one.student.at_least


def test_an_abandoned_request_costs_what_was_reserved_and_saves_nothing() -> None:
    """Nobody knows what it spent or would have spent: all of it is marked as an estimate."""
    one = intended(plan())
    receipt = abandoned(one, now=one.created + 12.5)
    assert (receipt.status, receipt.mode) == ("abandoned", "guided")
    assert receipt.cost_usd == receipt.baseline_usd == one.reserved_usd > 0
    assert receipt.savings_usd == 0
    assert receipt.baseline_estimated
    assert receipt.teacher is not None
    assert receipt.student is not None
    assert receipt.teacher.estimated
    assert receipt.student.estimated
    assert receipt.cost_usd == receipt.teacher.cost_usd + receipt.student.cost_usd
    assert receipt.timings.total_ms == 12_500
    assert abandoned(one, now=one.created - 5).timings.total_ms == 0, "clocks of two machines differ"
    same = {"id", "created", "tenant", "key", "route", "stream"}
    assert {name: getattr(receipt, name) for name in same} == {name: getattr(one, name) for name in same}


def test_an_intent_survives_its_way_through_redis() -> None:
    """Money as text."""
    one = intended(plan())
    raw = one.to_json()
    assert Intent.from_json(raw) == one
    assert b'"reserved_usd":"0.000678000000"' in raw
    with pytest.raises(msgspec.DecodeError):
        Intent.from_json(b"what is this")


def test_an_intent_tells_of_no_word_that_was_said() -> None:
    """Prompts do not travel through Redis."""
    one: Draft = draft(plan())
    assert b"ship" not in intend(one, chat(), PRICES, "ann").to_json()
