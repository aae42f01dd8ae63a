"""What a tenant or a key may use: requests and tokens a minute, requests at a time, and US dollars a period."""

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
"""While Redis cannot count: admit within a local part of limits and budgets; admit uncounted; answer 503."""
_PERIOD = re.compile(r"([1-9][0-9]{0,3})(h|d|w|mo)", re.ASCII)
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400, "mo": 30 * 86_400}
_LONGEST_S = 366 * 86_400


@dataclass(frozen=True, slots=True)
class BudgetDuration:
    """How long a budget lasts: `count` times `unit`, which is `h`, `d`, `w` or `mo`."""

    count: int
    unit: str

    @property
    def seconds(self) -> int:
        """Its length; a month counts as 30 days."""
        return self.count * _SECONDS[self.unit]

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


def _period(value: object) -> BudgetDuration:
    if isinstance(value, BudgetDuration):
        return value
    found = _PERIOD.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidValue("must be a whole number with h, d, w or mo, like 1d or 1mo")
    period = BudgetDuration(int(found[1]), found[2])
    if period.seconds > _LONGEST_S:
        raise InvalidValue("must be at most a year: 366d or 12mo")
    return period


_PeriodText: TypeAlias = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}(h|d|w|mo)$")]
BudgetPeriod: TypeAlias = Annotated[BudgetDuration, BeforeValidator(_period, json_schema_input_type=_PeriodText)]
Count: TypeAlias = Annotated[Whole, Field(ge=1, le=1_000_000_000)]


class LimitsRule(StrictModel):
    """Limits on speed. None: no such limit."""

    rpm_limit: Count | None = None
    """Requests in any 60 seconds."""
    tpm_limit: Count | None = None
    """Tokens in any 60 seconds, read and written, of teacher and student."""
    max_parallel_requests: Count | None = None
    """Requests under way at a time."""

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.rpm_limit, self.tpm_limit, self.max_parallel_requests))


class BudgetRule(StrictModel):
    """A limit on money."""

    max_budget: Usd
    """USD in each period."""
    soft_budget: Usd | None = None
    """From here on `on_soft` holds."""
    budget_duration: BudgetPeriod = BudgetDuration(1, "mo")
    """How long a period is: a number with h, d, w or mo."""
    calendar_aligned: Flag = True
    """Whether a period begins with the day, the week (Monday) or the month, in UTC. Else it is the time just past."""
    on_soft: Literal["warn", "shorten", "student_only"] = "warn"
    """What happens from soft_budget on: a warning, shorter guidance, or the student alone."""
    on_hard: Literal["reject", "student_only"] = "reject"
    """What happens when max_budget is spent: 429, or the student alone."""

    @field_validator("max_budget")
    @classmethod
    def _some(cls, value: Decimal) -> Decimal:
        if not value:
            raise InvalidValue("must be more than 0: who may spend nothing needs no key")
        return value

    @field_validator("soft_budget")
    @classmethod
    def _below_the_hard_one(cls, value: Decimal | None, info: ValidationInfo) -> Decimal | None:
        if value is not None and not 0 < value < info.data.get("max_budget", value + 1):
            raise InvalidValue("must be more than 0 and less than max_budget")
        return value
