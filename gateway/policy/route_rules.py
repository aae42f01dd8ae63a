"""Schema of a route's retries, students and shadow."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from gateway.config.scalars import Duration, Number, Whole, duration_between
from gateway.config.yaml_source import StrictModel
from gateway.policy.quality import Part, part_of


class RetryRule(StrictModel):
    """Retries of failed calls before the first token was sent to the caller."""

    num_retries: Annotated[Whole, Field(ge=0, le=10)] = 2
    """Retries at the same engine before the next student is called."""
    backoff_s: Annotated[Duration, duration_between("1ms", "10s")] = Field(0.1, alias="backoff")
    """The first pause; each later pause is twice as long, with jitter."""
    max_per_request: Annotated[Whole, Field(ge=0, le=30)] | None = None
    """Retries of one request at its teacher and all its students together. Default: num_retries, one for each further
    student, and one for the teacher of a guided answer."""
    share: Annotated[Number, Field(ge=0, le=10)] = 0.2
    """Retries of a tenant at one engine, relative to its calls there that succeeded in the last 10 s."""
    floor: Annotated[Whole, Field(ge=0, le=10_000)] = 10
    """Additional retries in 10 s. All tenants of one engine together have twice as many."""


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


Shadow: TypeAlias = Annotated[ShadowRule, BeforeValidator(_shadow, json_schema_input_type=Part | ShadowRule)]
"""A part of the requests, or a rule."""
