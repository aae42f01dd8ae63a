"""Limits and budgets as files say them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from gateway.config.limits import BudgetDuration, BudgetRule, LimitsRule
from gateway.config.yaml_source import load
from gateway.policy.schema import KeyEntry, TenantPolicy

if TYPE_CHECKING:
    from pathlib import Path


def test_a_budget_has_a_month_and_warns_before_it_refuses() -> None:
    rule = BudgetRule(max_budget=Decimal(100), soft_budget=Decimal(80))
    assert (str(rule.budget_duration), rule.calendar_aligned, rule.on_soft, rule.on_hard) == (
        "1mo",
        True,
        "warn",
        "reject",
    )


@pytest.mark.parametrize(
    ("text", "seconds"), [("1d", 86_400), ("12h", 43_200), ("2w", 14 * 86_400), ("1mo", 30 * 86_400)]
)
def test_a_period_is_a_number_of_hours_days_weeks_or_months(text: str, seconds: int) -> None:
    period = BudgetRule.model_validate({"max_budget": 1, "budget_duration": text}).budget_duration
    assert (period.seconds, str(period)) == (seconds, text)
    assert period == BudgetDuration(int(text.rstrip("hdwmo")), text.lstrip("0123456789"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("budget_duration: 30", "must be a whole number with h, d, w or mo, like 1d or 1mo"),
        ("budget_duration: 0d", "must be a whole number with h, d, w or mo, like 1d or 1mo"),
        ("budget_duration: 13mo", "must be at most a year: 366d or 12mo"),
        ("soft_budget: 100", "must be more than 0 and less than max_budget"),
        ("soft_budget: 0", "must be more than 0 and less than max_budget"),
        ("on_soft: shorter", "must be warn, shorten or student_only. Did you mean 'shorten'?"),
        ("max_buget: 3", "unknown key. Did you mean 'max_budget'?"),
    ],
)
def test_an_issue_in_a_budget_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.yaml"
    file.write_text(
        f"tenant: a\nroutes:\n  - {{model: x, mode: student, student: s}}\nbudget:\n  max_budget: 100\n  {more}\n"
    )
    assert [str(one) for one in load(file, TenantPolicy)[1]] == [
        f"a.yaml:6: budget.{more.partition(':')[0]}: {message}"
    ]


def test_a_tenant_without_spending_needs_no_budget() -> None:
    with pytest.raises(ValidationError, match="more than 0"):
        BudgetRule(max_budget=Decimal(0))


def test_limits_without_a_limit_are_none_at_all() -> None:
    assert not LimitsRule()
    assert LimitsRule(rpm_limit=1)


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("2027-06-30", datetime(2027, 7, 1, tzinfo=UTC)),
        ("2027-06-30T12:00:00Z", datetime(2027, 6, 30, 12, tzinfo=UTC)),
        ("2027-06-30 14:00:00+02:00", datetime(2027, 6, 30, 12, tzinfo=UTC)),
        ("2027-06-30T12:00:00", datetime(2027, 6, 30, 12, tzinfo=UTC)),
    ],
)
def test_a_key_holds_until_a_time_or_through_a_day(text: str, until: datetime) -> None:
    key = KeyEntry.model_validate({"id": "a", "sha256": "f" * 64, "expires": text})
    assert key.expires == until.timestamp()


@pytest.mark.parametrize("text", ["soon", "2027-02-30", "30.06.2027", "", True, None])
def test_an_expiry_that_is_no_time_is_refused(text: object) -> None:
    if text is None:
        assert KeyEntry(id="a", sha256="f" * 64, expires=None).expires is None
        return
    with pytest.raises(ValidationError, match="must be a date like 2027-06-30"):
        KeyEntry.model_validate({"id": "a", "sha256": "f" * 64, "expires": text})
