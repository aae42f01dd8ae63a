"""What a policy says of the quality guard: for how many guided answers, compared how, and at what cost."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gateway.config.scalars import InvalidValue, Usd, Whole
from gateway.config.yaml_source import StrictModel

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%", re.ASCII)


def part_of(value: object) -> float:
    """0.01 or "1%" -> 0.01. Raises Wrong."""
    if isinstance(value, str) and (found := _PERCENT.fullmatch(value)):
        part = float(Decimal(found[1]) / 100)
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        part = float(value)
    else:
        raise InvalidValue("must be a part of the requests: a number from 0 to 1, or a percentage like 1%")
    if part > 1:
        raise InvalidValue("must be at most 1, which is 100%")
    if not part >= 0:
        raise InvalidValue("must be at least 0")
    return part


_PartText: TypeAlias = (
    Annotated[float, Field(ge=0, le=1)] | Annotated[str, Field(pattern=r"^[0-9]{1,3}(\.[0-9]{1,6})? ?%$")]
)
Part: TypeAlias = Annotated[float, BeforeValidator(part_of, json_schema_input_type=_PartText)]
"""A part of the requests: 0.01, or 1%."""


class QualityRule(StrictModel):
    """Of guided answers that were given, some are compared with what each engine alone would have answered."""

    sample: Part = 0.01
    """The part of the guided answers that is compared: 0.01 or 1%."""
    compare: Literal["words", "exact", "numeric", "choice", "judge"] = "words"
    """By the words that two answers share, their text, the number they come to, their choice; or by a judge."""
    judge: str | None = Field(None, validate_default=True)
    """The model of config.yaml that grades how far two answers agree; for compare judge."""
    max_budget: Annotated[Usd, Field(json_schema_extra={"default": 1})] = Decimal(1)
    """USD that this may cost on one day of UTC, for this route."""
    max_in_flight: Annotated[Whole, Field(ge=1, le=64)] = 2
    """Comparisons of this route under way at a time, in each process; those beyond are dropped."""

    @field_validator("judge")
    @classmethod
    def _where_one_is_asked(cls, judge: str | None, info: ValidationInfo) -> str | None:
        if judge is None and info.data.get("compare") == "judge":
            raise InvalidValue("missing: compare judge needs a model that grades")
        return judge
