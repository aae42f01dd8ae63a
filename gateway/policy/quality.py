"""Schema of the quality guard: sample, comparison and budget."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from gateway.config.scalars import InvalidValue, Usd, Whole
from gateway.config.yaml_source import StrictModel

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%", re.ASCII)


def part_of(value: object) -> float:
    """Return the part of 0.01 or "1%". Raises InvalidValue."""
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        part = float(Decimal(match[1]) / 100)
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
"""A part of the requests: 0.01 or 1%."""


class QualityRule(StrictModel):
    """Comparison of sampled guided answers with the answers of each engine alone."""

    sample: Part = 0.01
    """Part of the guided answers that is compared: 0.01 or 1%."""
    compare: Literal["words", "exact", "numeric", "choice", "judge"] = "words"
    """Compare shared words, the exact text, the resulting number, the chosen option, or use a judge."""
    judge: str | None = Field(None, validate_default=True)
    """Model of config.yaml that grades the agreement of two answers; for compare judge."""
    max_budget: Annotated[Usd, Field(json_schema_extra={"default": 1})] = Decimal(1)
    """Maximum cost of comparisons per UTC day for this route, in USD."""
    max_in_flight: Annotated[Whole, Field(ge=1, le=64)] = 2
    """Concurrent comparisons of this route in each process; further ones are dropped."""

    @field_validator("judge")
    @classmethod
    def _needed_for_compare_judge(cls, judge: str | None, info: ValidationInfo) -> str | None:
        if judge is None and info.data.get("compare") == "judge":
            raise InvalidValue("missing: compare judge needs a model that grades")
        return judge
