"""Schema of parts of a route: quality guard, retries, students, shadow and the guidance deadline."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo, field_validator

from gateway.config.scalars import (
    Duration,
    DurationText,
    InvalidValue,
    Number,
    Size,
    Usd,
    Whole,
    duration_between,
    read_duration,
    size_between,
)
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
    min_agreement: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Lowest mean agreement of guided answers with the teacher's. Below it, guidance of the route is switched off until
    an operator switches it on. None: it is never switched off."""
    fallback: Literal["teacher", "student"] = "teacher"
    """Engine that answers while guidance is switched off by min_agreement. The teacher costs more than guidance."""

    @field_validator("judge")
    @classmethod
    def _needed_for_compare_judge(cls, judge: str | None, info: ValidationInfo) -> str | None:
        if judge is None and info.data.get("compare") == "judge":
            raise InvalidValue("missing: compare judge needs a model that grades")
        return judge


class CollectRule(StrictModel):
    """Consent to keep a random sample of the route's requests in Redis, for `gkt-gateway eval collect`.

    A collected request contains its system prompt and all its turns.
    """

    sample: Part = 0.01
    """Part of the answered requests from which the sample is drawn: 0.01 or 1%."""
    max_requests: Annotated[Whole, Field(ge=1, le=10_000)] = 500
    """Largest number of requests. Beyond it, a new request replaces a random one."""
    max_total_bytes: Annotated[Size, size_between("200kB", "1GB")] = Field(5_000_000, alias="max_total")
    """Most memory in Redis for the route's requests."""
    ttl_s: Annotated[Duration, duration_between("1s", "90d")] = Field(604_800.0, alias="ttl")
    """Time from the first request of a sample to the deletion of the whole sample. A new sample begins then."""


def _of_chats(rule: CollectRule | None, info: ValidationInfo) -> CollectRule | None:
    if rule is not None and info.data.get("mode") == "embeddings":
        raise InvalidValue("does not apply to mode embeddings: remove it")
    return rule


Collect: TypeAlias = Annotated[CollectRule | None, AfterValidator(_of_chats)]
"""A rule for a route that answers chats."""


class RetryRule(StrictModel):
    """Retries of failed calls, and calls that continue a broken stream."""

    num_retries: Annotated[Whole, Field(ge=0, le=10)] = 2
    """Retries at the same engine before the next student is called."""
    backoff_s: Annotated[Duration, duration_between("1ms", "10s")] = Field(0.1, alias="backoff")
    """The first pause; each later pause is twice as long, with jitter."""
    content_filter: Literal["final", "next_engine"] = "final"
    """A request that the content filter of the teacher or a student refuses. final: the caller gets the refusal.
    next_engine: the student answers instead of the teacher, or the next student instead of the first."""

    @property
    def is_filter_final(self) -> bool:
        """Return whether the caller gets a refusal by a content filter."""
        return self.content_filter == "final"


class StudentRule(StrictModel):
    """A student among several: a name, or a name with its share of the requests."""

    model: str
    """A model of config.yaml."""
    weight: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    """Share of the requests, relative to the weights of the other students."""


def _student(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


Student: TypeAlias = Annotated[StudentRule, BeforeValidator(_student, json_schema_input_type=str | StudentRule)]
"""A name, or a rule."""


class ShadowRule(StrictModel):
    """Mode shadow: the engine that answers, and the part of requests for which a hidden guided answer is generated."""

    serves: Literal["teacher", "student"] = "teacher"
    """The engine that answers the caller, as in mode teacher or mode student."""
    sample: Part = 1.0
    """Part of the requests with a shadow: 1 is all requests, 0.1 or 10% every tenth."""


class ShadowPart(ShadowRule):
    """Short form `shadow: 1%`: the sample of mode shadow, or in mode guided the sample of the quality guard."""


def _shadow(value: object) -> object:
    return value if isinstance(value, dict | ShadowRule) else ShadowPart(sample=part_of(value))


def quality_of_short_form(data: dict[str, Any]) -> QualityRule | None:
    """Return the quality rule of a guided route whose `shadow` is a part of the requests."""
    shadow = data.get("shadow")
    guided = data.get("mode") == "guided" and isinstance(shadow, ShadowPart)
    return QualityRule(sample=shadow.sample) if guided and shadow is not None else None


Shadow: TypeAlias = Annotated[ShadowRule, BeforeValidator(_shadow, json_schema_input_type=Part | ShadowRule)]
"""A part of the requests, or a rule."""

_Fixed: TypeAlias = Annotated[Duration, duration_between("1ms", "10m")]


def _deadline(value: object, info: ValidationInfo) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        seconds = read_duration(value, info)
    except InvalidValue as error:
        raise InvalidValue(f"{error}, or auto") from None
    if not 0.001 <= seconds <= 600:
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
