"""Schema of the guidance deadline: `deadline: 2s`, or `deadline: auto`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from gateway.config.scalars import Duration, DurationText, InvalidValue, duration_between, read_duration
from gateway.config.yaml_source import StrictModel

_MIN_S, _MAX_S = 0.001, 600.0
_Fixed: TypeAlias = Annotated[Duration, duration_between("1ms", "10m")]


def _deadline(value: object, info: ValidationInfo) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        seconds = read_duration(value, info)
    except InvalidValue as error:
        raise InvalidValue(f"{error}, or auto") from None
    if not _MIN_S <= seconds <= _MAX_S:
        raise InvalidValue("must be between 1ms and 10m, or auto")
    return seconds


Deadline: TypeAlias = Annotated[
    float | Literal["auto"], PlainValidator(_deadline, json_schema_input_type=DurationText | Literal["auto"])
]
"""A duration in seconds, or `auto`."""


class AutoDeadline(StrictModel):
    """Bounds of `deadline: auto`, which follows the teacher's measured times."""

    min_s: _Fixed = Field(0.5, alias="min")
    """Shortest deadline."""
    max_s: _Fixed = Field(15.0, alias="max", validate_default=True)
    """Longest deadline; used while there are no measurements."""

    @field_validator("max_s")
    @classmethod
    def _not_below_min(cls, max_s: float, info: ValidationInfo) -> float:
        if max_s < info.data.get("min_s", 0.0):
            raise InvalidValue("must not be below min")
        return max_s
