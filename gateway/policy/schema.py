"""Schema of a policy file: one tenant with its keys, limits and routes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, field_validator

from gateway.config.limits import BudgetRule, LimitsRule, OnRedisFailure
from gateway.config.scalars import (
    Duration,
    Flag,
    InvalidValue,
    Moment,
    Name,
    Number,
    Whole,
    duration_between,
    text_pattern,
)
from gateway.config.yaml_source import StrictModel
from gateway.policy.conditions import RouteCondition
from gateway.policy.constraints import MAX_ALLOWED_FIELDS, known_fields
from gateway.policy.length import MAX_TOKENS, AutoRule, Tokens
from gateway.policy.projections import CUTOFF, PROJECTIONS, Placement, Projection
from gateway.policy.route_rules import (
    AutoDeadline,
    Deadline,
    QualityRule,
    RetryRule,
    Shadow,
    ShadowRule,
    Student,
    StudentRule,
    quality_of_short_form,
)
from gateway.policy.stored_responses import StoredResponsesRule

if TYPE_CHECKING:
    from gateway.policy.length_model import FittedLengths

Mode = Literal["guided", "student", "teacher", "shadow", "embeddings"]
OverrideMode = Literal["guided", "student", "teacher"]
"""Modes that a caller may request by header, if the policy allows it."""
MAX_GUIDANCE_TOKENS = MAX_TOKENS
Boundary = Literal["word", "sentence", "token"]

_NEEDED_IN = {"teacher": {"guided", "teacher", "shadow"}, "student": {"guided", "student", "shadow", "embeddings"}}

PLAYGROUND = "playground"
"""Key name of playground requests in receipts. No key may have this name."""

_HEX_64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HASH_OF_NOTHING = sha256(b"").hexdigest()
LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def _label(value: str) -> str:
    if not LABEL.fullmatch(value):
        raise InvalidValue("must be 1 to 64 letters, digits or any of . _ -")
    return value


Label = Annotated[str, AfterValidator(_label), text_pattern(LABEL.pattern)]


class KeyEntry(StrictModel):
    """A caller's key: its name for logs, the SHA-256 of the whole key, and its permissions."""

    id: Label
    """Name in logs and receipts, unique within the tenant."""
    sha256: Annotated[str, text_pattern("[0-9a-fA-F]{64}")] = Field(repr=False)
    """SHA-256 of the key, 64 hex digits."""
    expires: Moment | None = None
    """Expiry of the key: a date, valid until its end in UTC, or a time."""
    models: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Models that the key may use; None: all models of the tenant."""
    limits: LimitsRule | None = None
    """Limits of this key, in addition to the tenant's; None: the tenant's `key_limits`."""
    budget: BudgetRule | None = None
    """Budget of this key, in addition to the tenant's; None: the tenant's `key_budget`."""
    key_hints: ClassVar[Mapping[str, str]] = {
        "key_alias": "here it is called id",
        "duration": "here it is called expires, and is a date or a time",
    }

    @field_validator("id")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value == PLAYGROUND:
            raise InvalidValue("is reserved for playground requests: choose another id")
        return value

    @field_validator("sha256")
    @classmethod
    def _is_a_hash(cls, value: str) -> str:
        if not _HEX_64.fullmatch(value.lower()):
            raise InvalidValue(
                "must be the key's SHA-256, 64 hex digits, never the key itself: "
                'printf %s "$KEY" | sha256sum (and if a real key stood here, replace it)'
            )
        if value.lower() == _HASH_OF_NOTHING:
            raise InvalidValue(
                "is the SHA-256 of an empty text: $KEY was empty. Create a key with `gkt-gateway keys create`"
            )
        return value.lower()


class GuidanceRule(StrictModel):
    """Guidance: length, projection, placement, and the longest wait for it."""

    tokens: Tokens = 40
    """Maximum length of the guidance in tokens; auto: chosen for each request by the rules in `auto`."""
    auto: AutoRule = AutoRule()
    """Choice of the length if `tokens` is auto."""
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
    """Whether the teacher's text is streamed to callers as it is generated; for placement prefix."""
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

    def with_length_model(self, model: FittedLengths) -> GuidanceRule:
        """Return a copy with the length model that `auto` names."""
        return self.model_copy(update={"auto": self.auto.with_length_model(model)})

    @field_validator("allow_fields")
    @classmethod
    def _not_known(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        if known := sorted(known_fields().intersection(fields)):
            where = "docs/reference/request-fields.md"
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
    def max_tokens(self) -> int:
        """Return the maximum length of the guidance, in tokens."""
        return self.auto.max if self.tokens == "auto" else self.tokens

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


class OverridesRule(StrictModel):
    """Overrides that callers may request by header."""

    modes: tuple[OverrideMode, ...] = ()
    """Values allowed in x-gkt-mode in addition to the route's own mode."""
    guidance_tokens: Annotated[Whole, Field(ge=1, le=MAX_GUIDANCE_TOKENS)] | None = None
    """Largest value allowed in x-gkt-guidance-tokens; None: the header is rejected."""


class Route(StrictModel):
    """A route. The first route whose `model` and `when` match a request serves it.

    A route may name engines that its mode does not use, so that changing `mode` alone disables guidance.
    """

    model: Name
    """Value of `model` in requests."""
    mode: Mode
    """Which engines answer."""
    when: RouteCondition | None = None
    """Condition on the requests; None: all requests match."""
    teacher: str | None = Field(None, validate_default=True)
    """Model of config.yaml that begins answers, or generates them in mode teacher."""
    students: Annotated[tuple[Student, ...], Field(min_length=1, max_length=8)] | None = None
    """Several students, called in order after failures. With weights, the first is drawn by weight, see `affinity`."""
    student: str | None = Field(None, validate_default=True)
    """The only student."""
    affinity: Literal["conversation", "none"] = "conversation"
    """Draw of the first student by weight: once for each conversation, so that its prompts are in that engine's cache;
    none: for each request."""
    retries: RetryRule = RetryRule()
    """Retries after an engine failed before the first token of its answer."""
    baseline: str = Field(default_factory=lambda data: data.get("teacher") or _first_student(data) or "")
    """Model that savings are measured against. Default: the teacher; without a teacher, the student."""
    show_cost: Flag = True
    """Whether callers see the cost and the savings of an answer."""
    reply_model: Literal["route", "engine"] = "route"
    """Value of `model` in replies: the route, or the model of config.yaml that completes the answer."""
    default_max_tokens: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = None
    """max_tokens of requests without one; None: the engine decides; a guided raw prompt has OpenAI's 16."""
    guidance: GuidanceRule = GuidanceRule()
    """Guidance by the teacher."""
    shadow: Shadow = ShadowRule()
    """Settings of mode shadow. In mode guided, a part such as 1% is short for `quality.sample`."""
    quality: QualityRule | None = Field(default_factory=quality_of_short_form)
    """In mode guided, how answers are compared with those of each engine alone; None: no comparison."""
    overrides: OverridesRule | None = None
    """Overrides that callers may request by header; None: the tenant's `overrides`."""
    key_hints: ClassVar[Mapping[str, str]] = {
        "model_name": "here it is called model",
        "fallbacks": "write students: each is called after those before it failed",
        "num_retries": "write it under retries",
    }

    @field_validator("when", mode="before")
    @classmethod
    def _not_empty_condition(cls, when: object) -> object:
        if when is None:
            raise InvalidValue(
                "empty: add a condition, or remove the line: a route without `when` matches every request"
            )
        return when

    @field_validator("when")
    @classmethod
    def _can_match(cls, when: RouteCondition, info: ValidationInfo) -> RouteCondition:
        unavailable = next(filter(when.names, ("max_tokens", "tools", "stream")), None)
        if info.data.get("mode") == "embeddings" and unavailable is not None:
            raise InvalidValue(f"embeddings have no {unavailable}: use prompt_bytes, header, contains or matches")
        return when

    @field_validator("overrides")
    @classmethod
    def _has_the_engines(cls, rule: OverridesRule | None, info: ValidationInfo) -> OverridesRule | None:
        if rule is None or not {"mode", "teacher", "students", "student"} <= info.data.keys():
            return rule
        if info.data["mode"] == "embeddings":
            raise InvalidValue("does not apply to mode embeddings: remove it")
        roles = {"teacher": info.data["teacher"], "student": info.data["student"] or info.data.get("students")}
        for mode in rule.modes:
            for role, engine in roles.items():
                if mode in _NEEDED_IN[role] and not engine:
                    raise InvalidValue(f"modes: {mode} needs a {role}, and this route names none")
        return rule

    @field_validator("students")
    @classmethod
    def _one_kind(cls, students: tuple[StudentRule, ...] | None) -> tuple[StudentRule, ...] | None:
        if students is not None and len({one.weight is None for one in students}) > 1:
            raise InvalidValue("give each student a weight, or none: without weights the order counts")
        if students is not None and len({one.model for one in students}) < len(students):
            raise InvalidValue("names a student twice: set the number of retries under retries")
        return students

    @field_validator("teacher", "student")
    @classmethod
    def _enough_for_the_mode(cls, name: str | None, info: ValidationInfo) -> str | None:
        mode, role = info.data.get("mode"), str(info.field_name)
        several = role == "student" and info.data.get("students") is not None
        if several and name is not None:
            raise InvalidValue("is one student, and students are several: keep one of the two")
        invalid = role == "student" and "students" not in info.data  # reported by its own validator
        if name is None and not several and not invalid and mode in _NEEDED_IN[role]:
            raise InvalidValue(f"missing: mode {mode} needs a {role}")
        return name

    @cached_property
    def all_students(self) -> tuple[StudentRule, ...]:
        """Return the students, from `students` or `student`."""
        return self.students or ((StudentRule(model=self.student),) if self.student else ())

    def has_engines_of(self, mode: OverrideMode) -> bool:
        """Return whether the route names the engines of this mode; a route for embeddings has none."""
        has = {"teacher": self.teacher is not None, "student": bool(self.all_students)}
        return self.mode != "embeddings" and all(has[role] for role, modes in _NEEDED_IN.items() if mode in modes)

    @property
    def engines(self) -> frozenset[str]:
        """Return every model of config.yaml that this route names."""
        judge = self.quality.judge if self.quality is not None else None
        return frozenset(filter(None, (self.teacher, *[one.model for one in self.all_students], self.baseline, judge)))


def _first_student(data: dict[str, Any]) -> str | None:
    students = data.get("students")
    return students[0].model if students else data.get("student")


class TenantPolicy(StrictModel):
    """A file in the policies folder: one tenant."""

    tenant: Label
    """Name of the tenant in logs, metrics and receipts."""
    keys: tuple[KeyEntry, ...] = ()
    """Keys of the tenant's callers."""
    limits: LimitsRule | None = None
    """Limits of all keys together; None: `defaults` of config.yaml."""
    key_limits: LimitsRule | None = None
    """Limits of each key without its own; None: `defaults` of config.yaml."""
    budget: BudgetRule | None = None
    """Budget of all keys together; None: `defaults` of config.yaml."""
    key_budget: BudgetRule | None = None
    """Budget of each key without its own; None: `defaults` of config.yaml."""
    on_redis_failure: OnRedisFailure | None = None
    """Handling of requests while Redis cannot count limits and budgets; None: redis.on_failure."""
    log_content: Flag = False
    """Whether prompts and answers may be logged."""
    stored_responses: StoredResponsesRule | None = None
    """Storage of responses of /v1/responses; None: no response is stored."""
    weight: Annotated[Number, Field(ge=0.01, le=100)] = 1.0
    """Share of contended teachers, request slots and connections, relative to the other tenants' weights."""
    overrides: OverridesRule | None = None
    """Overrides that callers may request by header, on routes without `overrides`."""
    routes: Annotated[tuple[Route, ...], Field(min_length=1)]
    """Routes of the tenant. Among those with the requested model, the first whose `when` matches serves the request."""

    @cached_property
    def routes_of(self) -> dict[str, tuple[tuple[int, Route], ...]]:
        """Return the routes by model name, in order, each with its index in the file."""
        by_model: dict[str, list[tuple[int, Route]]] = {}
        for index, route in enumerate(self.routes):
            by_model.setdefault(route.model, []).append((index, route))
        return {name: tuple(routes) for name, routes in by_model.items()}

    def overrides_of(self, route: Route) -> OverridesRule:
        """Return what callers may request: the route's overrides, else the tenant's, else none."""
        return route.overrides or self.overrides or OverridesRule()

    def max_guidance_tokens(self, route: Route) -> int:
        """Return the most tokens that the route's teacher generates as guidance; 0 without guidance."""
        rule = self.overrides_of(route)
        guided = route.mode in {"guided", "shadow"} or ("guided" in rule.modes and route.has_engines_of("guided"))
        most, skipped = max(route.guidance.max_tokens, rule.guidance_tokens or 0), route.guidance.resolved_projection
        return most + skipped.skip_tokens if guided else 0
