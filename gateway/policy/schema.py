"""Schema of a policy file: one tenant with its keys, limits and routes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway.config.limits import BudgetRule, LimitsRule, OnRedisFailure
from gateway.config.scalars import ANY_NAME, Flag, InvalidValue, Label, Number, RouteName, Whole
from gateway.config.yaml_messages import follows_from_another
from gateway.config.yaml_source import StrictModel
from gateway.policy.caller_fields import CallerFieldsRule
from gateway.policy.conditions import RouteCondition
from gateway.policy.guidance_rule import MAX_GUIDANCE_TOKENS, GuidanceRule
from gateway.policy.identities import IdentityRule
from gateway.policy.key_entry import DeviceRule, KeyEntry
from gateway.policy.labels import PolicyLabels, undeclared
from gateway.policy.route_rules import (
    Collect,
    QualityRule,
    RetryRule,
    Shadow,
    ShadowRule,
    Student,
    StudentRule,
    quality_of_short_form,
)
from gateway.policy.split import SplitRule, complete_routes
from gateway.policy.stored_responses import StoredResponsesRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Mode = Literal["guided", "student", "teacher", "shadow", "embeddings"]
OverrideMode = Literal["guided", "student", "teacher"]
"""Modes that a caller may request by header, if the policy allows it."""

_NEEDED_IN = {"teacher": {"guided", "teacher", "shadow"}, "student": {"guided", "student", "shadow", "embeddings"}}

MAX_NAME_CHARS = 256
"""Longest name of a model for which a route `*` is used."""
MAX_SLICES = 16
"""Most slices of a tenant. A refused request costs a script call in each slice."""


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

    model: RouteName
    """Value of `model` in requests, and name of the route in receipts, metrics and usage. `*`: every model that is no
    other route's name or alias."""
    aliases: Annotated[tuple[RouteName, ...], Field(max_length=100)] = ()
    """Other values of `model` in requests."""
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
    """max_tokens of requests without one; a guided raw prompt has OpenAI's 16. Default: the engine decides; under a
    budget, 1024 (`gkt-gateway docs policies#the-largest-answer`)."""
    max_tokens_limit: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = None
    """Largest max_tokens, and the default without `default_max_tokens`. A larger one of a chat is reduced, and
    `x-gkt-max-tokens` has the new one; a raw prompt gets a 400. None: no maximum."""
    guidance: GuidanceRule = GuidanceRule()
    """Guidance by the teacher."""
    shadow: Shadow = ShadowRule()
    """Settings of mode shadow. In mode guided, a part such as 1% is short for `quality.sample`."""
    quality: QualityRule | None = Field(default_factory=quality_of_short_form)
    """In mode guided, how answers are compared with those of each engine alone; None: no comparison."""
    collect: Collect = None
    """Collection of a sample of requests, with their text, for evaluations; None: no request is collected."""
    split: SplitRule | None = None
    """Variants of the route, each for a share of its callers or conversations; None: one route for all."""
    overrides: OverridesRule | None = None
    """Overrides that callers may request by header; None: the tenant's `overrides`."""
    _variants: tuple[RouteVariant, ...] = PrivateAttr(())
    key_hints: ClassVar[Mapping[str, str]] = {
        "model_name": "here it is called model",
        "model_group_alias": "write the other names of the route under aliases",
        "fallbacks": "write students: each is called after those before it failed",
        "num_retries": "write it under retries",
    }

    @field_validator("aliases")
    @classmethod
    def _differ(cls, aliases: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        names = [info.data.get("model"), *aliases]
        if repeated := next((name for name in aliases if names.count(name) > 1), None):
            raise InvalidValue(f"names {repeated} twice, or repeats model: remove one of the two")
        return aliases

    @field_validator("max_tokens_limit")
    @classmethod
    def _at_least_the_default(cls, most: int | None, info: ValidationInfo) -> int | None:
        default = info.data.get("default_max_tokens")
        if most is not None and default is not None and most < default:
            raise InvalidValue(f"is below default_max_tokens, which is {default}: raise it, or lower that")
        return most

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

    @field_validator("split")
    @classmethod
    def _can_be_split(cls, split: SplitRule | None, info: ValidationInfo) -> SplitRule | None:
        if split is not None and info.data.get("mode") in {"shadow", "embeddings"}:
            raise InvalidValue(f"does not apply to mode {info.data['mode']}: remove it")
        return split

    @model_validator(mode="wrap")
    @classmethod
    def _with_variants(cls, data: Any, check: ModelWrapValidatorHandler[Route], info: ValidationInfo) -> Route:
        """Check each variant as a complete route. Its issues have the locations of its own keys."""
        route = check(data)
        if not isinstance(data, dict) or route.split is None:
            return route
        routes, wrong = {}, []
        for variant in complete_routes(data):
            try:
                routes[variant.name] = cls.model_validate(
                    variant.route, context=info.context, by_alias=True, by_name=info.context is None
                )
            except ValidationError as error:
                details = error.errors(include_url=False)
                wrong += [variant.issue(detail, cls) for detail in details if not follows_from_another(detail)]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return route.with_variants([routes[name] for name in route.split.variants])

    @property
    def variants(self) -> tuple[RouteVariant, ...]:
        """Return the variants of `split` as complete routes."""
        return self._variants

    def with_variants(self, routes: Sequence[Route]) -> Route:
        """Return a copy with these routes as variants, in the order of `split`."""
        route = self.model_copy()
        rules = self.split.variants.items() if self.split is not None else ()
        variants = (RouteVariant(name, rule.share, one) for (name, rule), one in zip(rules, routes, strict=True))
        route._variants = tuple(variants)  # noqa: SLF001  same class
        return route

    @cached_property
    def all_students(self) -> tuple[StudentRule, ...]:
        """Return the students, from `students` or `student`."""
        return self.students or ((StudentRule(model=self.student),) if self.student else ())

    @cached_property
    def quality_window(self) -> str:
        """Return a hash of the settings that guided answers depend on. Comparisons of other settings do not count."""
        rule = self.quality
        compared = None if rule is None else (rule.compare, rule.judge)
        settings = (self.when, self.teacher, self.all_students, self.guidance, compared)
        return sha256(repr(settings).encode()).hexdigest()[:16]

    def has_engines_of(self, mode: OverrideMode) -> bool:
        """Return whether the route names the engines of this mode; a route for embeddings has none."""
        has = {"teacher": self.teacher is not None, "student": bool(self.all_students)}
        return self.mode != "embeddings" and all(has[role] for role, modes in _NEEDED_IN.items() if mode in modes)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the values of `model` in requests: `model` and `aliases`."""
        return self.model, *self.aliases

    @property
    def engines(self) -> frozenset[str]:
        """Return every model of config.yaml that this route names."""
        judge = self.quality.judge if self.quality is not None else None
        own = filter(None, (self.teacher, *[one.model for one in self.all_students], self.baseline, judge))
        return frozenset(own).union(*(variant.route.engines for variant in self.variants))


class RouteVariant(NamedTuple):
    """A variant of a route, as a complete route."""

    name: str
    share: float
    route: Route


def _by_name(
    routes: Sequence[Route], names: Callable[[Route], tuple[str, ...]]
) -> dict[str, tuple[tuple[int, Route], ...]]:
    by_name: dict[str, list[tuple[int, Route]]] = {}
    for index, route in enumerate(routes):
        for name in names(route):
            by_name.setdefault(name, []).append((index, route))
    return {name: tuple(found) for name, found in by_name.items()}


def _all_limits(data: Mapping[str, Any]) -> Iterator[tuple[str, LimitsRule | None]]:
    """Yield the limits in the valid fields of a policy, with their places."""
    yield from ((name, data.get(name)) for name in ("limits", "key_limits"))
    for name in ("keys", "identities"):
        yield from ((f"{name}[{index}].limits", one.limits) for index, one in enumerate(data.get(name, ())))
    for name, rule in data.get("labels", {}).items():
        yield f"labels.{name}.limits", rule.limits
        yield from ((f"labels.{name}.exceptions.{value}.limits", one.limits) for value, one in rule.exceptions.items())


def _first_student(data: dict[str, Any]) -> str | None:
    students = data.get("students")
    return students[0].model if students else data.get("student")


class TenantPolicy(StrictModel):
    """A file in the policies folder: one tenant."""

    tenant: Label
    """Name of the tenant in logs, metrics and receipts."""
    labels: PolicyLabels = Field({})
    """Labels of requests, such as a team, by which costs are attributed and limited."""
    keys: tuple[KeyEntry, ...] = ()
    """Keys of the tenant's callers."""
    identities: Annotated[tuple[IdentityRule, ...], Field(max_length=100)] = ()
    """Callers with a token of an issuer of config.yaml, in the order in which the rules are tried."""
    limits: LimitsRule | None = None
    """Limits of all keys together; None: `defaults` of config.yaml."""
    key_limits: LimitsRule | None = None
    """Limits of each key without its own; None: `defaults` of config.yaml."""
    budget: BudgetRule | None = None
    """Budget of all keys together; None: `defaults` of config.yaml."""
    key_budget: BudgetRule | None = None
    """Budget of each key without its own; None: `defaults` of config.yaml."""
    key_device: DeviceRule | None = None
    """Marks each key without its own `device` as that of an edge device; None: reports of devices save nothing."""
    on_redis_failure: OnRedisFailure | None = None
    """Handling of requests while Redis cannot count limits and budgets; None: redis.on_failure."""
    redis_slices: Annotated[Whole, Field(ge=1, le=MAX_SLICES)] = 1
    """Slices of a tenant with more requests than one node of a Redis Cluster can admit. Each slice has its own hash
    slot, and an equal part of each limit and budget (`gkt-gateway docs deployment#slices-of-a-very-large-tenant`)."""
    log_content: Flag = False
    """Whether prompts and answers may be logged."""
    stored_responses: StoredResponsesRule | None = None
    """Storage of responses of /v1/responses; None: no response is stored."""
    weight: Annotated[Number, Field(ge=0.01, le=100)] = 1.0
    """Share of contended teachers, request slots and connections, relative to the other tenants' weights."""
    overrides: OverridesRule | None = None
    """Overrides that callers may request by header, on routes without `overrides`."""
    caller_fields: CallerFieldsRule = CallerFieldsRule()
    """Fields and addresses that reach the server of an engine itself."""
    routes: Annotated[tuple[Route, ...], Field(min_length=1)]
    """Routes of the tenant. Among those with the requested model, the first whose `when` matches serves the request."""

    @field_validator("keys")
    @classmethod
    def _declared_labels(cls, keys: tuple[KeyEntry, ...], info: ValidationInfo) -> tuple[KeyEntry, ...]:
        for key in keys if "labels" in info.data else ():
            if (name := undeclared(key.labels, info.data["labels"])) is not None:
                raise InvalidValue(f"key {key.id} has the label {name}: declare it, with `labels: {{{name}: {{}}}}`")
        return keys

    @field_validator("redis_slices")
    @classmethod
    def _fit_in_limits(cls, slices: int, info: ValidationInfo) -> int:
        for where, limits in _all_limits(info.data):
            if limits is not None and (name := limits.first_below(slices)) is not None:
                least = f"{where}.{name} is {getattr(limits, name)}, below the number of slices"
                raise InvalidValue(f"{least}: raise it to at least {slices}, or set fewer slices")
        return slices

    @field_validator("routes")
    @classmethod
    def _conditions_on_labels(cls, routes: tuple[Route, ...], info: ValidationInfo) -> tuple[Route, ...]:
        named = [name for route in routes if route.when is not None for name in route.when.named_labels]
        for name in named if "labels" in info.data else ():
            if name not in info.data["labels"] or info.data["labels"][name].hash:
                raise InvalidValue(f"a condition names the label {name}, which is hashed or not declared in `labels`")
        return routes

    @cached_property
    def limited_labels(self) -> tuple[str, ...]:
        """Return the labels whose values have limits or budgets."""
        return tuple(name for name, rule in self.labels.items() if rule.is_limited)

    @cached_property
    def routes_of(self) -> dict[str, tuple[tuple[int, Route], ...]]:
        """Return the routes by `model`, without aliases, in order, each with its index in the file."""
        return _by_name(self.routes, lambda route: (route.model,))

    @cached_property
    def routes_by_name(self) -> dict[str, tuple[tuple[int, Route], ...]]:
        """Return the routes by `model` and alias, in order, each with its index in the file."""
        return _by_name(self.routes, lambda route: route.names)

    def routes_named(self, name: str) -> tuple[tuple[int, Route], ...]:
        """Return the routes of a request with this `model`: those of that name, else those of `*`.

        A reply repeats the name, so a long one has no route.
        """
        found = self.routes_by_name.get(name, ())
        return found if found or len(name) > MAX_NAME_CHARS else self.routes_by_name.get(ANY_NAME, ())

    @property
    def all_routes(self) -> tuple[Route, ...]:
        """Return the routes, each followed by its variants."""
        return tuple(one for route in self.routes for one in (route, *(variant.route for variant in route.variants)))

    def overrides_of(self, route: Route) -> OverridesRule:
        """Return what callers may request: the route's overrides, else the tenant's, else none."""
        return route.overrides or self.overrides or OverridesRule()

    def max_guidance_tokens(self, route: Route) -> int:
        """Return the most tokens that the route's teacher generates as guidance; 0 without guidance."""
        rule = self.overrides_of(route)
        guided = route.mode in {"guided", "shadow"} or ("guided" in rule.modes and route.has_engines_of("guided"))
        most, skipped = max(route.guidance.tokens, rule.guidance_tokens or 0), route.guidance.resolved_projection
        return most + skipped.skip_tokens if guided else 0
