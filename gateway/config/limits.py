"""Limits of a tenant or a key: requests and tokens per minute, concurrent requests, and USD per period."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gateway.config.scalars import Flag, InvalidValue, Usd, Whole
from gateway.config.yaml_source import StrictModel

if TYPE_CHECKING:
    from decimal import Decimal

OnRedisFailure: TypeAlias = Literal["degrade", "allow", "reject"]
"""While Redis is unavailable: admit within a local share of limits and budgets, admit uncounted, or answer 503."""
_PERIOD = re.compile(r"([1-9][0-9]{0,3})(h|d|w|mo)", re.ASCII)
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400, "mo": 30 * 86_400}
_LONGEST_S = 366 * 86_400


@dataclass(frozen=True, slots=True)
class BudgetDuration:
    """Length of a budget's period: `count` times `unit`, which is `h`, `d`, `w` or `mo`."""

    count: int
    unit: str

    @property
    def seconds(self) -> int:
        """Length in seconds. A month counts as 30 days."""
        return self.count * _SECONDS[self.unit]

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


def _period(value: object) -> BudgetDuration:
    if isinstance(value, BudgetDuration):
        return value
    match = _PERIOD.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidValue("must be a whole number with h, d, w or mo, like 1d or 1mo")
    period = BudgetDuration(int(match[1]), match[2])
    if period.seconds > _LONGEST_S:
        raise InvalidValue("must be at most a year: 366d or 12mo")
    return period


_PeriodText: TypeAlias = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}(h|d|w|mo)$")]
BudgetPeriod: TypeAlias = Annotated[BudgetDuration, BeforeValidator(_period, json_schema_input_type=_PeriodText)]
Count: TypeAlias = Annotated[Whole, Field(ge=1, le=1_000_000_000)]


class LimitsRule(StrictModel):
    """Rate and concurrency limits. None: no such limit."""

    rpm_limit: Count | None = None
    """Requests in any 60 seconds."""
    tpm_limit: Count | None = None
    """Input and output tokens of teacher and student in any 60 seconds."""
    max_parallel_requests: Count | None = None
    """Concurrent requests."""

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.rpm_limit, self.tpm_limit, self.max_parallel_requests))

    def first_below(self, least: int) -> str | None:
        """Return the name of the first limit below `least`; None if there is none."""
        limits = ((name, getattr(self, name)) for name in type(self).model_fields)
        return next((name for name, limit in limits if limit is not None and limit < least), None)


class BudgetRule(StrictModel):
    """A limit on cost."""

    max_budget: Usd
    """USD in each period."""
    soft_budget: Usd | None = None
    """USD in each period from which `on_soft` applies."""
    budget_duration: BudgetPeriod = BudgetDuration(1, "mo")
    """Length of a period: a number with h, d, w or mo."""
    calendar_aligned: Flag = True
    """Whether a period starts with the day, the week (Monday) or the month, in UTC. Otherwise the period is a rolling
    window that ends now."""
    on_soft: Literal["warn", "shorten", "student_only"] = "warn"
    """Action from soft_budget on: a warning, shorter guidance, or the student alone."""
    on_hard: Literal["reject", "student_only"] = "reject"
    """Action when max_budget is spent: 429, or the student alone."""

    @field_validator("max_budget")
    @classmethod
    def _above_zero(cls, value: Decimal) -> Decimal:
        if not value:
            raise InvalidValue("must be more than 0: to allow no spending, remove the key")
        return value

    @field_validator("soft_budget")
    @classmethod
    def _below_max_budget(cls, value: Decimal | None, info: ValidationInfo) -> Decimal | None:
        if value is not None and not 0 < value < info.data.get("max_budget", value + 1):
            raise InvalidValue("must be more than 0 and less than max_budget")
        return value
