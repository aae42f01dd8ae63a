"""Device reports: the accepted values, and the sums of both receipts."""

from __future__ import annotations

import time
from decimal import Decimal
from uuid import UUID

import msgspec
import pytest
from msgspec import structs

from gateway.accounting.edge import (
    DEVICE,
    check_report,
    closing_receipt,
    offline_receipt,
    state_of,
    student_of,
    uncounted,
)
from gateway.accounting.intent import Intent, abandoned, intend
from gateway.accounting.receipt import CloseTerms, Receipt
from gateway.accounting.worst_case import engine_maxima, worst_case
from gateway.errors import EdgeClosed, EdgeExpired, InvalidRequest
from gateway.policy.schema import TenantPolicy
from gateway.pricing import cost_usd
from gateway.protocol.edge import OfflineBody, UsageBody
from gateway.usage.rollup import SumRow, dims_of
from tests.accounting.receipt_builders import PRICES, builder, call, chat, closed, guided, plan

GIVEN = structs.replace(plan(), mode="guidance", students=())
TERMS = CloseTerms(1_700_000_600, 60)
USAGE = UsageBody(150, 55, "my phone's 1B", "stop", 120.0, 900.0, guided=True, at=None)
ROUTE = TenantPolicy.model_validate(
    {"tenant": "acme", "routes": [{"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}]}
).routes[0]
NOW = 1_700_000_000.0
OFFLINE = OfflineBody(**structs.asdict(structs.replace(USAGE, guided=False, at=NOW - 5)), model="chat", id=UUID(int=0))


def given(status: str = "ok", **more: object) -> Receipt:
    """Return the receipt of guidance with 40 tokens for a device."""
    return closed(guided(**({"plan": GIVEN, "student": None, "student_began": None, "terms": TERMS} | more)), status)


def test_the_guidance_costs_the_teacher_and_saves_about_nothing_until_the_rest_is_known() -> None:
    receipt = given()
    assert (receipt.mode, receipt.student, receipt.close, receipt.edge_of) == ("guidance", None, TERMS, None)
    assert receipt.teacher is not None
    assert receipt.cost_usd == receipt.teacher.cost_usd == cost_usd(PRICES["big"], 100, 40)
    assert receipt.savings_usd == 0


@pytest.mark.parametrize("guidance", [given(), given(status="client_gone")], ids=["heard", "gone"])
def test_both_receipts_together_are_those_of_a_whole_answer(guidance: Receipt) -> None:
    """The baseline is the teacher alone for the prompt and the whole answer. The device's part costs nothing."""
    report = closing_receipt(guidance, USAGE, PRICES["big"])
    assert (report.mode, report.edge_of, report.id) == ("edge", guidance.id, f"{guidance.id}-edge")
    assert report.created == guidance.created, "a sum of some time holds both, or neither"
    assert (report.cost_usd, report.savings_usd) == (Decimal(0), cost_usd(PRICES["big"], 0, 55))
    assert guidance.baseline_usd + report.baseline_usd == cost_usd(PRICES["big"], 100, 95)
    assert report.student is not None
    assert (report.student.model, report.student.output_tokens, report.student.cost_usd) == (
        "my phone's 1B",
        55,
        Decimal(0),
    )
    assert (report.unguided, report.finish_reason, report.timings.first_token_ms) == (None, "stop", 120)
    assert Receipt.from_json(report.to_json()) == report


def test_sums_count_the_request_once_and_its_whole_answer() -> None:
    guidance = given()
    report = closing_receipt(guidance, USAGE, PRICES["big"])
    row = SumRow()
    row.merge(SumRow.of(guidance))
    row.merge(SumRow.of(report))
    assert (row.requests, row.guided, row.unguided, row.errors) == (1, 1, {}, {})
    assert (row.answer_tokens, row.teacher_answer_tokens) == (95, 40)
    assert (row.student.output, row.student_pico) == (55, 0)
    assert row.savings_pico == 55 * 10_000_000
    assert [stage.count for stage in row.stages] == [1, 1, 1, 1, 1, 0], "a device's times are no stage's"
    row.merge(SumRow.of(report, -1))
    row.merge(SumRow.of(guidance, -1))
    assert row == SumRow()


def test_a_report_has_the_tags_of_its_guidance() -> None:
    guidance = structs.replace(given(), stored_tags=("a",))
    assert closing_receipt(guidance, USAGE, PRICES["big"]).tags == ("a",)
    assert closing_receipt(given(), USAGE, PRICES["big"]).tags == ()


def test_an_offline_answer_has_the_tags_of_its_metadata() -> None:
    report = structs.replace(OFFLINE, metadata={"tags": ["a", "not a tag"], "user": "ann"})
    assert offline_receipt("acme", "ci", ROUTE, report, PRICES["big"], NOW, 60).tags == ("a",)
    assert b"tags" not in offline_receipt("acme", "ci", ROUTE, OFFLINE, PRICES["big"], NOW, 60).to_json()


def test_model_names_of_devices_do_not_create_rows() -> None:
    report = closing_receipt(given(), USAGE, PRICES["big"])
    assert dims_of(report).student == DEVICE
    assert student_of(given(student=call("small", 1, 1))).model == "small"  # type: ignore[union-attr]


def test_without_guidance_the_baseline_includes_the_prompt() -> None:
    """The guidance was late before any call, so its receipt has no baseline."""
    alone = given(teacher=None, kept_tokens=0, guided=None, unguided="teacher_late", batch=None)
    assert (alone.cost_usd, alone.baseline_usd) == (Decimal(0), Decimal(0))
    report = closing_receipt(alone, structs.replace(USAGE, guided=False), PRICES["big"])
    assert report.baseline_usd == cost_usd(PRICES["big"], 150, 55)
    assert report.unguided == "teacher_late"


def test_a_report_without_guidance_keeps_the_request_of_the_guidance() -> None:
    report = closing_receipt(given(), structs.replace(USAGE, guided=False), PRICES["big"])
    row = SumRow()
    row.merge(SumRow.of(report))
    assert (report.unguided, row.unguided, row.requests) == ("device_alone", {}, 0)


@pytest.mark.parametrize(("wrote", "placement", "whole"), [(55, "prefix", 55), (3, "prefix", 40), (55, "context", 55)])
def test_unused_guidance_is_not_part_of_the_answer(wrote: int, placement: str, whole: int) -> None:
    """The guidance's receipt includes it as one. A baseline is never negative."""
    guidance = given(plan=structs.replace(plan(placement=placement), mode="guidance", students=()))
    report = closing_receipt(guidance, structs.replace(USAGE, output_tokens=wrote, guided=False), PRICES["big"])
    assert guidance.baseline_usd + report.baseline_usd == cost_usd(PRICES["big"], 100, whole)


def test_a_model_without_a_price_any_more_makes_no_baseline() -> None:
    report = closing_receipt(given(), USAGE, None)
    assert (report.baseline_usd, report.baseline_estimated) == (Decimal(0), True)


def test_guidance_in_the_devices_prompt_is_not_part_of_the_answer() -> None:
    hint = given(plan=structs.replace(plan(placement="context"), mode="guidance", students=()))
    assert hint.baseline_usd == cost_usd(PRICES["big"], 100, 0)
    row = SumRow()
    row.merge(SumRow.of(hint))
    assert (row.answer_tokens, row.kept_tokens) == (0, 40)


@pytest.mark.parametrize("status", ["ok", "client_gone", "engine_failed", "shutdown", "guidance_unavailable"])
def test_a_failed_guidance_request_cannot_be_reported(status: str) -> None:
    assert (given(status).close is not None) == (status in {"ok", "client_gone"})


def test_a_report_above_the_requested_limit_is_rejected_with_that_limit() -> None:
    check_report(given(), structs.replace(USAGE, output_tokens=60))
    with pytest.raises(InvalidRequest, match="exceeds the rest of the caller's limit, 60 tokens") as caught:
        check_report(given(), structs.replace(USAGE, output_tokens=61))
    assert caught.value.param == "output_tokens"
    check_report(given(terms=CloseTerms(TERMS.by, None)), structs.replace(USAGE, output_tokens=9_999))


def test_no_device_reports_an_answer_that_its_baseline_could_not_write() -> None:
    """A request without a limit has the largest possible answer as its limit."""
    unlimited, long = given(terms=CloseTerms(TERMS.by, None)), structs.replace(USAGE, output_tokens=5000)
    maxima = engine_maxima({"big": 4999}, {})
    with pytest.raises(InvalidRequest, match="exceeds the largest possible answer, 4999 tokens"):
        check_report(unlimited, long, maxima)
    with pytest.raises(InvalidRequest, match="exceeds the largest possible answer, 4999 tokens"):
        offline_receipt(
            "acme", "ci", ROUTE, structs.replace(OFFLINE, output_tokens=5000), PRICES["big"], NOW, 60, maxima
        )
    check_report(unlimited, structs.replace(USAGE, output_tokens=4999), maxima)


def test_of_a_whole_answer_there_is_nothing_to_report() -> None:
    with pytest.raises(EdgeClosed):
        check_report(given(terms=None), USAGE)


def test_a_report_is_open_until_it_arrives_or_expires() -> None:
    assert state_of(given(), closed=False, now=TERMS.by) == "open"
    assert state_of(given(), closed=True, now=TERMS.by + 9) == "closed"
    assert state_of(given(), closed=False, now=TERMS.by + 1) == "never_closed"
    assert state_of(given(terms=None), closed=False, now=TERMS.by + 1) == "closed"


def test_an_answer_that_was_made_alone_is_one_request_and_would_have_been_all_the_teachers() -> None:
    receipt = offline_receipt("acme", "ci", ROUTE, OFFLINE, PRICES["big"], NOW, 60)
    assert (receipt.id, receipt.edge_of, receipt.created) == ("edge_" + "0" * 32, None, int(NOW - 5))
    assert (receipt.mode, receipt.unguided, receipt.baseline_model) == ("edge", "offline", "big")
    assert receipt.baseline_usd == cost_usd(PRICES["big"], 150, 55)
    assert (receipt.savings_class, receipt.savings_usd) == ("reported", receipt.baseline_usd)
    alone = uncounted(receipt)
    assert (alone.savings_class, alone.savings_usd, alone.baseline_usd) == ("reported", 0, 0)
    assert alone.student == receipt.student
    row = SumRow()
    row.merge(SumRow.of(receipt))
    assert (row.requests, row.unguided, row.answer_tokens) == (1, {"offline": 1}, 55)


@pytest.mark.parametrize(
    ("at", "error"), [(NOW - 61, EdgeExpired), (NOW + 301, InvalidRequest), (NOW + 200, None), (None, None)]
)
def test_an_answer_of_long_ago_or_of_the_future_is_not_accounted_for(at: float | None, error: type[Exception]) -> None:
    """A clock that is slightly ahead is accepted, and its receipt is not in the future."""
    report = structs.replace(OFFLINE, at=at)
    if error is None:
        assert offline_receipt("acme", "ci", ROUTE, report, PRICES["big"], NOW, 60).created == NOW
        return
    with pytest.raises(error) as caught:
        offline_receipt("acme", "ci", ROUTE, report, PRICES["big"], NOW, 60)
    assert caught.value.param == "at"  # type: ignore[attr-defined]


def test_the_teacher_alone_is_reserved_for() -> None:
    """The probe is skipped as well: the answering student runs on the device."""
    whole = intend(builder(plan()), plan(), worst_case(plan(), chat(), PRICES), "ann")
    one = intend(builder(GIVEN, terms=TERMS), GIVEN, worst_case(GIVEN, chat(), PRICES), "ann")
    assert (one.mode, one.teacher, one.student, one.more) == ("guidance", whole.teacher, None, ())
    assert one.teacher is not None
    assert one.reserved_usd == one.teacher.cost_usd
    assert one.tokens == 100 + 40, "of the prompt, as the teacher reads it, and what it may write"
    nothing = structs.replace(GIVEN, guidance=None, unguided="tools")
    assert intend(builder(nothing), nothing, worst_case(nothing, chat(), PRICES), "ann").reserved_usd == Decimal(0)


def test_a_device_may_report_after_the_guidances_process_died() -> None:
    intent = Intent.from_json(
        intend(builder(GIVEN, terms=TERMS), GIVEN, worst_case(GIVEN, chat(), PRICES), "ann").to_json()
    )
    receipt = abandoned(intent, time.time())
    assert (receipt.mode, receipt.close) == ("guidance", TERMS)
    check_report(receipt, USAGE)


def test_receipts_of_earlier_versions_can_be_read() -> None:
    old = msgspec.to_builtins(given(), builtin_types=(Decimal,))
    for name in ("close", "edge_of"):
        del old[name]
    assert Receipt.from_json(msgspec.json.encode(old)).close is None


def test_a_report_has_the_labels_of_its_guidance() -> None:
    guidance = structs.replace(given(), stored_labels={"team": "a"})
    assert closing_receipt(guidance, USAGE, PRICES["big"]).labels == {"team": "a"}
    assert b"labels" not in closing_receipt(given(), USAGE, PRICES["big"]).to_json()
