"""A receipt as JSON, and its facts in the reply."""

from __future__ import annotations

import json

import msgspec
import pytest

from gateway.accounting.receipt import RECEIPT_ID, SHADOW_NAMES, Receipt
from tests.accounting.receipt_builders import builder, closed, guided, plan


def test_a_receipt_survives_json() -> None:
    """A receipt with every part, and one with none."""
    for receipt in (closed(guided()), closed(builder(plan("student")), "client_gone")):
        assert Receipt.from_json(receipt.to_json()) == receipt


def test_money_travels_as_text_without_an_exponent() -> None:
    """A float would be rounded, and some readers reject 1E-7."""
    raw = json.loads(closed(guided()).to_json())
    money = [raw["cost_usd"], raw["baseline_usd"], raw["savings_usd"]]
    money += [raw[role]["cost_usd"] for role in ("teacher", "student")]
    assert money[0] == "0.000710000000"
    assert all(isinstance(amount, str) and "E" not in amount for amount in money)
    nothing = json.loads(closed(builder(plan("student"))).to_json())
    assert float(nothing["cost_usd"]) == 0
    assert "E" not in nothing["cost_usd"]


def test_a_value_that_is_no_receipt_is_rejected() -> None:
    """Other values under the key must not become an incomplete receipt."""
    for raw in (b"{}", b"[]", b"not json"):
        with pytest.raises(msgspec.DecodeError):
            Receipt.from_json(raw)


def test_callers_see_costs_only_if_the_policy_shows_them() -> None:
    """All other facts are in the reply in any case."""
    receipt = closed(guided())
    shown, hidden = receipt.facts(show_cost=True), receipt.facts(show_cost=False)
    money = {"cost_usd": "0.00071", "baseline_usd": "0.0022", "savings_usd": "0.00149", "savings_class": "guided"}
    assert shown == hidden | money
    assert hidden | {"total_ms": 0, "admission_ms": 0, "first_token_ms": 0} == {
        "mode": "guided",
        "teacher": "big",
        "teacher_tokens": "100+40",
        "student": "small",
        "student_tokens": "150+160",
        "guidance_tokens": 40,
        "batch": "b7",
        "batch_size": 12,
        "admission_ms": 0,
        "batch_wait_ms": 250,
        "teacher_ms": 750,
        "first_token_ms": 0,
        "handover_ms": 500,
        "total_ms": 0,
    }


def test_the_receipt_states_the_reason_for_missing_guidance() -> None:
    """A guided route that was answered without guidance states the reason."""
    assert closed(builder(plan(), unguided="teacher_late")).facts(show_cost=False)["unguided"] == "teacher_late"


def test_shadows_and_quality_samples_have_valid_ids() -> None:
    """GET /v1/receipts/{id} returns each receipt of the caller's tenant, as GET /receipts/{id} does."""
    request_id = "req_6926dd1c0011223344556677"
    assert all(RECEIPT_ID.fullmatch(f"{request_id}-{name}") for name in SHADOW_NAMES)
    assert not RECEIPT_ID.fullmatch(f"{request_id}-shadow-judge-guided-more")
    assert not RECEIPT_ID.fullmatch(f"{request_id}-Shadow")
