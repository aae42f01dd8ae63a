"""Schema of a route's guidance: length, projection, placement, deadlines and cache."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from gateway.config.scalars import Duration, Flag, InvalidValue, Label, Number, Whole, duration_between
from gateway.config.yaml_source import StrictModel
from gateway.policy.constraints import MAX_ALLOWED_FIELDS, known_fields
from gateway.policy.projections import CUTOFF, PROJECTIONS, Placement, Projection
from gateway.policy.route_rules import AutoDeadline, Deadline

MAX_GUIDANCE_TOKENS = 4096
Boundary = Literal["word", "sentence", "token"]


class GuidanceRule(StrictModel):
    """Guidance: length, projection, placement, and the longest wait for it."""

    tokens: Annotated[Whole, Field(ge=1, le=MAX_GUIDANCE_TOKENS)] = 40
    """Maximum length of the guidance in tokens."""
    projection: Label = "cutoff"
    """Projection for the teacher: cutoff, concise, hint, primed, or the name of a file in policies/projections."""
    exemplars: str | None = None
    """Exemplars for projection primed or for your own: a file of questions and answers in the policies folder, such as
    exemplars/arithmetic.yaml. None: the projection's own exemplars."""
    placement: Placement = Field(
        default_factory=lambda data: PROJECTIONS.get(data.get("projection", ""), CUTOFF).default_placement
    )
    """Placement of guidance: prefix begins the answer with it; context and input put it in the student's prompt."""
    boundary: Boundary = "word"
    """Permitted end of guidance that was cut for length."""
    stream: Flag = True
    """Stream the teacher's text to callers as it is generated; for placement prefix."""
    warm_student: Flag = False
    """Have the student read the prompt while the teacher writes, to fill its prefix cache. Needs placement prefix."""
    temperature: Annotated[Number, Field(ge=0, le=2)] = 0.0
    """The teacher's sampling temperature; 0 is greedy decoding."""
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    """The teacher's top_p; unset: not sent."""
    seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] | None = None
    """The teacher's seed; unset: not sent."""
    max_wait_s: Annotated[Duration, duration_between("1ms", "1s")] = Field(0.01, alias="max_wait")
    """Longest time that a request waits for its batch to fill."""
    auto_deadline: AutoDeadline = AutoDeadline()
    """The bounds of `deadline: auto`."""
    deadline: Deadline = Field(2.0, validate_default=True)
    """Longest time that a request waits for guidance, `max_wait` included. auto: 1.25 times the 95th percentile of the
    teacher's measured times, within `auto_deadline`."""
    on_failure: Literal["student", "reject"] = "student"
    """Without guidance in time: the student answers alone, or the request fails with 503."""
    on_queue_full: Literal["student", "reject"] = "student"
    """If too many requests of this tenant wait: the student answers alone, or the request fails with 429."""
    cache_ttl_s: Annotated[Duration, duration_between("0s", "30d")] = Field(3600.0, alias="cache_ttl")
    """Cache time of greedy guidance for identical requests; 0 disables the cache."""
    share: Literal["tenant", "all"] = "tenant"
    """Sharing of guidance among identical requests: of this tenant, or of all tenants with `all`."""
    allow_fields: Annotated[tuple[Label, ...], Field(max_length=MAX_ALLOWED_FIELDS)] = ()
    """Request fields unknown to the gateway that do not constrain the answer. With any other unknown field, a request
    gets no guidance."""
    _resolved_projection: Projection | None = PrivateAttr(None)

    @cached_property
    def resolved_projection(self) -> Projection:
        """Return the projection that `projection` names: a built-in one, or that of `with_projection`."""
        return self._resolved_projection or PROJECTIONS[self.projection]

    def with_projection(self, projection: Projection, placement: Placement | None = None) -> GuidanceRule:
        """Return a copy with another projection, and with another placement unless it is None."""
        changed = {"projection": projection.name} | ({"placement": placement} if placement is not None else {})
        rule = self.model_copy(update=changed)
        rule.__dict__.pop("resolved_projection", None)  # copied from the cache of `self`
        rule._resolved_projection = projection  # noqa: SLF001  same class
        return rule

    @field_validator("allow_fields")
    @classmethod
    def _not_known(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        if known := sorted(known_fields().intersection(fields)):
            where = "`gkt-gateway docs request-fields`"
            raise InvalidValue(f"{known[0]}: the gateway knows this field ({where}): list unknown fields only")
        return fields

    @field_validator("exemplars")
    @classmethod
    def _has_exemplars(cls, exemplars: str | None, info: ValidationInfo) -> str | None:
        shipped = PROJECTIONS.get(info.data.get("projection", ""))
        if exemplars is not None and shipped is not None and not shipped.exemplars:
            advice = "use projection: primed, or one of your own"
            raise InvalidValue(f"projection {shipped.name} shows the teacher no exemplars: {advice}")
        return exemplars

    @property
    def max_deadline_s(self) -> float:
        """Return the longest time that a request waits for guidance, in seconds."""
        return self.auto_deadline.max_s if self.deadline == "auto" else self.deadline

    @field_validator("deadline")
    @classmethod
    def _longer_than_max_wait(cls, deadline: Deadline, info: ValidationInfo) -> Deadline:
        bounds = info.data.get("auto_deadline")
        shortest_s = (bounds.min_s if bounds is not None else math.inf) if deadline == "auto" else deadline
        if shortest_s <= info.data.get("max_wait_s", 0.0):
            subject = "auto_deadline.min must be" if deadline == "auto" else "must be"
            raise InvalidValue(f"{subject} longer than max_wait, which is part of it")
        return deadline
