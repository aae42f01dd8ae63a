"""What a policy file may say: one tenant, its keys, what they may use, and its routes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator

from gateway.config.limits import BudgetRule, LimitsRule, OnRedisFailure
from gateway.config.scalars import Duration, Flag, InvalidValue, Name, Number, TextPattern, Whole, lasting
from gateway.config.yaml_source import StrictModel
from gateway.policy.conditions import RouteCondition
from gateway.policy.constraints import MAX_ALLOWED_FIELDS, known_fields
from gateway.policy.deadline_rules import AutoDeadline, Deadline
from gateway.policy.length_rules import MOST_TOKENS, AutoRule, Tokens
from gateway.policy.projections import CUTOFF, PROJECTIONS, Placement, Projection
from gateway.policy.quality import Part, QualityRule, part_of

if TYPE_CHECKING:
    from gateway.policy.length_model import LengthModel

Mode = Literal["guided", "student", "teacher", "shadow", "embeddings"]
AskedMode = Literal["guided", "student", "teacher"]
"""The modes that a caller may ask for, where the policy lets it."""
MAX_GUIDANCE_TOKENS = MOST_TOKENS
Boundary = Literal["word", "sentence", "token"]

_NEEDED_IN = {"teacher": {"guided", "teacher", "shadow"}, "student": {"guided", "student", "shadow", "embeddings"}}
_NOT_OF_EMBEDDINGS = ("max_tokens", "tools", "stream")

PLAYGROUND = "playground"
"""Under this name, in the place of a key's, stands in receipts what operators ask in the playground. No key has it."""

_HEX_64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HASH_OF_NOTHING = sha256(b"").hexdigest()
LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def _label(value: str) -> str:
    if not LABEL.fullmatch(value):
        raise InvalidValue("must be 1 to 64 letters, digits or any of . _ -")
    return value


Label = Annotated[str, AfterValidator(_label), TextPattern(LABEL.pattern)]


def _moment(value: object) -> float:
    """A date, which lasts until its end in UTC, or a date and time -> Unix seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        text = value if isinstance(value, str) else ""
        if len(text) == len("2027-06-30"):
            next_day = date.fromisoformat(text) + timedelta(days=1)
            return datetime(next_day.year, next_day.month, next_day.day, tzinfo=UTC).timestamp()
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidValue("must be a date like 2027-06-30, or a time like 2027-06-30T12:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_MomentText: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+(Z|[+-][0-9:]+)?)?$")]
Moment: TypeAlias = Annotated[float, BeforeValidator(_moment, json_schema_input_type=_MomentText)]
"""Unix seconds."""


class KeyEntry(StrictModel):
    """One caller's key, wherever it is kept: a name for logs, the SHA-256 of the whole key, and what it may do."""

    id: Label
    """Its name in logs and receipts; one tenant's differ."""
    sha256: Annotated[str, TextPattern("[0-9a-fA-F]{64}")] = Field(repr=False)
    """64 hex digits."""
    expires: Moment | None = None
    """When it stops to hold."""
    models: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """The models it may name; None: all of its tenant's."""
    limits: LimitsRule | None = None
    """Its own limits, beside its tenant's; None: the tenant's `key_limits`."""
    budget: BudgetRule | None = None
    """Its own budget, beside its tenant's; None: the tenant's `key_budget`."""
    foreign: ClassVar[Mapping[str, str]] = {
        "key_alias": "here it is called id",
        "duration": "here it is called expires, and is a date or a time",
    }

    @field_validator("id")
    @classmethod
    def _not_the_playgrounds(cls, value: str) -> str:
        if value == PLAYGROUND:
            raise InvalidValue("is what the playground's requests are called in receipts: choose another")
        return value

    @field_validator("sha256")
    @classmethod
    def _a_hash(cls, value: str) -> str:
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
    """How the teacher opens an answer, how the student gets it, and how long a request waits for it."""

    tokens: Tokens = 40
    """How long the opening may be; auto: it is chosen for each request, as `auto` below says."""
    auto: AutoRule = AutoRule()
    """How the length is chosen, where `tokens` is auto."""
    projection: Label = "cutoff"
    """What is asked of the teacher: cutoff, concise, hint, primed, or the name of a file in policies/projections."""
    exemplars: str | None = None
    """The exemplars of projection primed, or of one of your own: a file of question and answer, from the policies
    folder, like exemplars/arithmetic.yaml. None: those it has."""
    placement: Placement = Field(
        default_factory=lambda data: PROJECTIONS.get(data.get("projection", ""), CUTOFF).default_placement
    )
    """Where it stands: the caller sees it and the student goes on with it (prefix), or the student alone sees it."""
    boundary: Boundary = "word"
    """Where a guidance that was cut for length may end."""
    stream: Flag = True
    """Whether a caller who streams hears the teacher as it writes; for placement prefix."""
    temperature: Annotated[Number, Field(ge=0, le=2)] = 0.0
    """The teacher's; 0 always takes the likeliest token."""
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    """The teacher's; unset: not sent."""
    seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] | None = None
    """The teacher's; unset: not sent."""
    max_wait_s: Annotated[Duration, lasting("1ms", "1s")] = Field(0.01, alias="max_wait")
    """How long a request may wait for others to share its batch."""
    auto_deadline: AutoDeadline = AutoDeadline()
    """The bounds of `deadline: auto`."""
    deadline: Deadline = Field(2.0, validate_default=True)
    """How long a request waits for its guidance altogether, `max_wait` included; auto: as long as 95 % of the teacher's
    measured guidance takes, with a quarter more, within `auto_deadline`."""
    on_failure: Literal["student", "reject"] = "student"
    """No guidance in time: the student answers without, or 503."""
    on_queue_full: Literal["student", "reject"] = "student"
    """Too many requests of this tenant wait: the student answers, or 429."""
    cache_ttl_s: Annotated[Duration, lasting("0s", "30d")] = Field(3600.0, alias="cache_ttl")
    """How long greedy guidance may answer for the same request again; 0 keeps none."""
    share: Literal["tenant", "all"] = "tenant"
    """Among whom one guidance serves identical requests: this tenant's, or those of all who say `all`."""
    allow_fields: Annotated[tuple[Label, ...], Field(max_length=MAX_ALLOWED_FIELDS)] = ()
    """Request fields that the gateway does not know and that constrain no answer. With any other unknown field, a
    request goes without guidance."""
    _asks: Projection | None = PrivateAttr(None)

    @cached_property
    def asks(self) -> Projection:
        """The projection itself: the shipped one, or what `asking` was told. Kept, for every guided request looks."""
        return self._asks or PROJECTIONS[self.projection]

    def asking(self, projection: Projection, placement: Placement | None = None) -> GuidanceRule:
        """The same with a projection of the library. `placement` None: it stays as it is."""
        changed = {"projection": projection.name} | ({"placement": placement} if placement is not None else {})
        rule = self.model_copy(update=changed)
        rule.__dict__.pop("asks", None)  # a copy takes what was kept along
        rule._asks = projection  # noqa: SLF001  its own kind
        return rule

    def going_by(self, learned: LengthModel) -> GuidanceRule:
        """The same with the model that `auto` names."""
        return self.model_copy(update={"auto": self.auto.going_by(learned)})

    @field_validator("allow_fields")
    @classmethod
    def _not_known(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        if known := sorted(known_fields().intersection(fields)):
            raise InvalidValue(
                f"{known[0]}: the gateway knows this field (docs/reference/request-fields.md): list unknown fields only"
            )
        return fields

    @field_validator("exemplars")
    @classmethod
    def _of_use(cls, exemplars: str | None, info: ValidationInfo) -> str | None:
        shipped = PROJECTIONS.get(info.data.get("projection", ""))
        if exemplars is not None and shipped is not None and not shipped.exemplars:
            raise InvalidValue(
                f"projection {shipped.name} shows the teacher none: say projection: primed, or one of your own"
            )
        return exemplars

    @property
    def most_tokens(self) -> int:
        """The longest opening."""
        return self.auto.max if self.tokens == "auto" else self.tokens

    @property
    def longest_deadline_s(self) -> float:
        """The longest time that a request may wait for guidance."""
        return self.auto_deadline.max_s if self.deadline == "auto" else self.deadline

    @field_validator("deadline")
    @classmethod
    def _past_the_window(cls, deadline: Deadline, info: ValidationInfo) -> Deadline:
        bounds = info.data.get("auto_deadline")
        shortest_s = (bounds.min_s if bounds is not None else math.inf) if deadline == "auto" else deadline
        if shortest_s <= info.data.get("max_wait_s", 0.0):
            of = "auto_deadline.min must be" if deadline == "auto" else "must be"
            raise InvalidValue(f"{of} longer than max_wait, which is part of it")
        return deadline


class RetryRule(StrictModel):
    """How often an engine that failed is asked again, before the first word of it was sent on."""

    num_retries: Annotated[Whole, Field(ge=0, le=10)] = 2
    """How often the same engine is asked again; then the next student is."""
    backoff_s: Annotated[Duration, lasting("1ms", "10s")] = Field(0.1, alias="backoff")
    """The first pause; each later one is twice as long, and a part of each is left to chance."""
    max_per_request: Annotated[Whole, Field(ge=0, le=30)] | None = None
    """Calls that one request may make in the place of failed ones: at its teacher and all its students together.
    Default: num_retries, one for each further student, and one for the teacher of a guided answer."""
    share: Annotated[Number, Field(ge=0, le=10)] = 0.2
    """Retries of a tenant at one engine, as a share of its calls there that succeeded in the last 10 s."""
    floor: Annotated[Whole, Field(ge=0, le=10_000)] = 10
    """And as many in 10 s besides, however few calls succeeded. All tenants of one engine have twice as many."""


class StudentRule(StrictModel):
    """One of several students: a name alone, or with its share of the requests."""

    model: str
    """A model of config.yaml."""
    weight: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    """Its share of the requests, beside those of the others."""


def _student(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


Student: TypeAlias = Annotated[StudentRule, BeforeValidator(_student, json_schema_input_type=str | StudentRule)]
"""A name alone, or a rule."""


class ShadowRule(StrictModel):
    """Mode shadow: who answers, and for how many requests the guided answer is made beside it, unseen."""

    serves: Literal["teacher", "student"] = "teacher"
    """Who answers the caller, as mode teacher or mode student would."""
    sample: Part = 1.0
    """The part of the requests that have a shadow: 1 is all of them, 0.1 or 10% every tenth."""


class ShadowPart(ShadowRule):
    """`shadow: 1%`, in short: of mode shadow its sample, of mode guided that of its quality guard."""


def _shadow(value: object) -> object:
    return value if isinstance(value, dict | ShadowRule) else ShadowPart(sample=part_of(value))


Shadow: TypeAlias = Annotated[ShadowRule, BeforeValidator(_shadow, json_schema_input_type=Part | ShadowRule)]
"""A part of the requests alone, or a rule."""


def _quality_in_short(data: dict[str, Any]) -> QualityRule | None:
    shadow = data.get("shadow")
    guided = data.get("mode") == "guided" and isinstance(shadow, ShadowPart)
    return QualityRule(sample=shadow.sample) if guided and shadow is not None else None


class OverridesRule(StrictModel):
    """What callers may ask for by headers of their own."""

    modes: tuple[AskedMode, ...] = ()
    """What x-gkt-mode may say beside the route's own mode."""
    guidance_tokens: Annotated[Whole, Field(ge=1, le=MAX_GUIDANCE_TOKENS)] | None = None
    """The most that x-gkt-guidance-tokens may say; None: it may not be sent."""


class Route(StrictModel):
    """What happens to the requests that name `model`, and of which `when` holds. The first such route takes them.

    A route may name more roles than its mode uses, so that changing `mode` is enough to switch guidance off.
    """

    model: Name
    """What callers send as `model`."""
    mode: Mode
    """Who answers."""
    when: RouteCondition | None = None
    """Which of these requests it takes. Without it: all."""
    teacher: str | None = Field(None, validate_default=True)
    """The model of config.yaml that opens answers, or in mode teacher writes them."""
    students: Annotated[tuple[Student, ...], Field(min_length=1, max_length=8)] | None = None
    """Several students: each is asked when those before it failed. With weights, the first is drawn by them."""
    student: str | None = Field(None, validate_default=True)
    """The only student."""
    retries: RetryRule = RetryRule()
    """When an engine fails before the first word of its answer."""
    baseline: str = Field(default_factory=lambda data: data.get("teacher") or _first_student(data) or "")
    """The model that savings are measured against. Default: the teacher; without one, the student."""
    show_cost: Flag = True
    """Whether callers see what an answer cost and saved."""
    default_max_tokens: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = None
    """What a caller gets who sends no max_tokens; None leaves it to the engine."""
    guidance: GuidanceRule = GuidanceRule()
    """How the teacher opens answers."""
    shadow: Shadow = ShadowRule()
    """Of mode shadow; or in short a part alone, which of mode guided is the part that `quality` compares."""
    quality: QualityRule | None = Field(default_factory=_quality_in_short)
    """Of mode guided: how many answers are compared with those of each engine alone; None: none."""
    overrides: OverridesRule | None = None
    """What callers may ask for by header; None: what the tenant's `overrides` say."""
    foreign: ClassVar[Mapping[str, str]] = {
        "model_name": "here it is called model",
        "fallbacks": "write students: each is asked when those before it failed",
        "num_retries": "write it under retries",
    }

    @field_validator("when", mode="before")
    @classmethod
    def _with_a_condition(cls, when: object) -> object:
        if when is None:
            raise InvalidValue(
                "empty: name a condition, or remove the line: without `when` a route takes every request"
            )
        return when

    @field_validator("when")
    @classmethod
    def _can_hold(cls, when: RouteCondition, info: ValidationInfo) -> RouteCondition:
        lost = [name for name in _NOT_OF_EMBEDDINGS if when.names(name)]
        if info.data.get("mode") == "embeddings" and lost:
            raise InvalidValue(f"embeddings have no {lost[0]}: ask for prompt_bytes, header, contains or matches")
        return when

    @field_validator("overrides")
    @classmethod
    def _has_the_engines(cls, rule: OverridesRule | None, info: ValidationInfo) -> OverridesRule | None:
        if rule is None or not {"mode", "teacher", "students", "student"} <= info.data.keys():
            return rule
        if info.data["mode"] == "embeddings":
            raise InvalidValue("is not for mode embeddings, which has nothing to ask for: remove it")
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
            raise InvalidValue("give each a weight, or none: without weights the order says who is asked first")
        if students is not None and len({one.model for one in students}) < len(students):
            raise InvalidValue("names a student twice: how often one is asked again is said under retries")
        return students

    @field_validator("teacher", "student")
    @classmethod
    def _enough_for_the_mode(cls, name: str | None, info: ValidationInfo) -> str | None:
        mode, role = info.data.get("mode"), str(info.field_name)
        several = role == "student" and info.data.get("students") is not None
        if several and name is not None:
            raise InvalidValue("is one student, and students are several: keep one of the two")
        unread = role == "student" and "students" not in info.data  # it has a mistake of its own
        if name is None and not several and not unread and mode in _NEEDED_IN[role]:
            raise InvalidValue(f"missing: mode {mode} needs a {role}")
        return name

    @cached_property
    def all_students(self) -> tuple[StudentRule, ...]:
        """Its students, however the file says it."""
        return self.students or ((StudentRule(model=self.student),) if self.student else ())

    def has_engines_of(self, mode: AskedMode) -> bool:
        """Whether it names the engines that this mode needs; a route for embeddings has none of them."""
        has = {"teacher": self.teacher is not None, "student": bool(self.all_students)}
        return self.mode != "embeddings" and all(has[role] for role, modes in _NEEDED_IN.items() if mode in modes)

    @property
    def engines(self) -> frozenset[str]:
        """Every model of config.yaml that this route names."""
        students = (one.model for one in self.all_students)
        judge = self.quality.judge if self.quality is not None else None
        return frozenset(name for name in (self.teacher, *students, self.baseline, judge) if name)


def _first_student(data: dict[str, Any]) -> str | None:
    students = data.get("students")
    return students[0].model if students else data.get("student")


class TenantPolicy(StrictModel):
    """One file in the policies folder."""

    tenant: Label
    """Its name in logs, metrics and receipts."""
    keys: tuple[KeyEntry, ...] = ()
    """Who may call."""
    limits: LimitsRule | None = None
    """Of all its keys together; None: `defaults` of config.yaml."""
    key_limits: LimitsRule | None = None
    """Of each key that has none of its own; None: `defaults` of config.yaml."""
    budget: BudgetRule | None = None
    """Of all its keys together; None: `defaults` of config.yaml."""
    key_budget: BudgetRule | None = None
    """Of each key that has none of its own; None: `defaults` of config.yaml."""
    on_redis_failure: OnRedisFailure | None = None
    """What becomes of requests while Redis cannot count limits and budgets; None: as redis.on_failure says."""
    log_content: Flag = False
    """Whether the log may hold what was asked and answered."""
    weight: Annotated[Number, Field(ge=0.01, le=100)] = 1.0
    """Its share of what tenants contend for (teachers, request slots, connections), relative to the other tenants'."""
    overrides: OverridesRule | None = None
    """What callers may ask for by header, on routes that do not say it themselves."""
    routes: Annotated[tuple[Route, ...], Field(min_length=1)]
    """What callers may ask for. Of those with the name that was sent, the first whose `when` holds is taken."""

    @cached_property
    def routes_of(self) -> dict[str, tuple[tuple[int, Route], ...]]:
        """The routes of each model name, in their order, each with its place in the file."""
        found: dict[str, list[tuple[int, Route]]] = {}
        for index, route in enumerate(self.routes):
            found.setdefault(route.model, []).append((index, route))
        return {name: tuple(routes) for name, routes in found.items()}

    def overrides_of(self, route: Route) -> OverridesRule:
        """What callers of this route may ask for: the route's word, else the tenant's, else nothing."""
        return route.overrides or self.overrides or OverridesRule()

    def most_guidance_tokens(self, route: Route) -> int:
        """The most that its teacher may be asked for; 0 where it is never asked for guidance."""
        rule = self.overrides_of(route)
        guided = route.mode in {"guided", "shadow"} or ("guided" in rule.modes and route.has_engines_of("guided"))
        if not guided:
            return 0
        return max(route.guidance.most_tokens, rule.guidance_tokens or 0) + route.guidance.asks.skip_tokens
