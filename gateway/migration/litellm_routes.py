"""Convert model groups, aliases and fallbacks of a LiteLLM proxy configuration to routes."""

from __future__ import annotations

from decimal import Decimal
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.yaml_messages import suggestion
from gateway.errors import StartupError
from gateway.migration.builder import DataBuilder
from gateway.migration.litellm_models import NAME_RULE, find_provider, route_name, whole
from gateway.policy.schema import Route
from gateway.pricing import litellm_providers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.migration.context import ImportContext
    from gateway.migration.litellm_models import Deployment
    from gateway.migration.litellm_settings import RouterSettings
    from gateway.migration.source import SourceField

_MAX_STUDENTS = 8
_MAX_RETRIES = "10"
_MAX_WEIGHT, _MIN_WEIGHT = Decimal(100), Decimal("0.01")


class RequestedGuidance(NamedTuple):
    """Guidance of the new routes: the teacher, and the only student; without a student, each route keeps its own."""

    teacher: str
    student: str | None = None


class RouteConverter:
    """Builds one route for each model group and each alias."""

    def __init__(
        self,
        deployments: Sequence[Deployment],
        settings: RouterSettings,
        context: ImportContext,
        guidance: RequestedGuidance | None,
    ) -> None:
        self._groups: dict[str, list[Deployment]] = {}
        for one in deployments:
            group = self._groups.setdefault(one.group, [])
            if group and group[0].embeds != one.embeds:
                context.notice(one.entry, f"no route uses it: {one.group} has chats and embeddings. Name them apart")
            else:
                group.append(one)
        self._settings = settings
        self._context = context
        self._aliases = self._read_aliases()
        self._default_fallbacks: list[str] = []
        self._fallbacks = self._read_fallbacks()
        self._guidance = None
        if guidance is not None:
            student = None if guidance.student is None else self._known(guidance.student)
            self._guidance = RequestedGuidance(self._known(guidance.teacher), student)
            for other in self._groups[self._guidance.teacher][1:]:
                context.notice(other.entry, "not a teacher: a route has one, the first deployment of its model_name")
        self.guided_students: set[str] = set()

    def routes(self) -> list[DataBuilder]:
        """Return the routes, in the order of the file; aliases come last."""
        named = {name: name for name in self._groups} | self._aliases
        routes = []
        for name, group in named.items():
            route = self._route(name, group)
            issue = route.validate(Route, self._context)
            assert issue is None, f"route {name}: {issue}"
            routes.append(route)
        return routes

    def _route(self, name: str, group: str) -> DataBuilder:
        route = DataBuilder({"model": name})
        guidance = self._guidance
        if guidance is None or group not in self._guided_groups(guidance):
            mode = "embeddings" if self._groups[group][0].embeds else "student"
            route.data |= {"mode": mode, **self._students(group, self._fallbacks_of(name, group))}
        else:
            teacher = self._groups[guidance.teacher][0].name
            if guidance.student is None:
                students = self._students(group, self._fallbacks_of(name, group), teacher)
            else:
                students = self._students(guidance.student, [guidance.teacher], teacher)
            route.data |= {"mode": "guided", "teacher": teacher, **students, "guidance": {"deadline": "auto"}}
            self.guided_students |= _names(students)
        self._common(route, group)
        return route

    def _guided_groups(self, guidance: RequestedGuidance) -> set[str]:
        """Return the groups whose routes are guided: the teacher's alone with a student, else all others."""
        if guidance.student is not None:
            return {guidance.teacher}
        return {name for name, group in self._groups.items() if name != guidance.teacher and not group[0].embeds}

    def _fallbacks_of(self, name: str, group: str) -> list[str]:
        """Return the fallback groups of a route: its own, those of its group, or the default ones."""
        targets = self._fallbacks.get(name, self._fallbacks.get(group, self._default_fallbacks))
        return [one for one in targets if one != group and self._have_one_mode(one, group)]

    def _have_one_mode(self, group: str, other: str) -> bool:
        """Return whether both groups make embeddings, or neither does."""
        return self._groups[group][0].embeds == self._groups[other][0].embeds

    def _common(self, route: DataBuilder, group: str) -> None:
        """Add retries and the default of max_tokens."""
        members, context = self._groups[group], self._context
        own = next((one.num_retries for one in members if one.num_retries is not None), None)
        retries = own or self._settings.num_retries
        if retries is not None and (number := context.number(retries)) is not None:
            number = context.clamped(retries, number, "0", _MAX_RETRIES)
            route.put("retries", "num_retries", value=whole(number), field=retries)
        longest = [one.max_tokens for one in members if one.max_tokens is not None]
        if longest and not members[0].embeds and (number := context.number(longest[0])) is not None:
            route.put("default_max_tokens", value=whole(number), field=longest[0])
        chosen = {id(own), id(longest[0]) if longest and not members[0].embeds else None}
        for field in filter(None, (field for one in members for field in (one.num_retries, one.max_tokens))):
            if id(field) not in chosen:
                context.notice(field, "not imported: a route has one value, from its first deployment")

    def _students(self, group: str, fallbacks: Sequence[str], teacher: str | None = None) -> dict[str, Any]:
        """Return the key `student` or `students`: the deployments of a group, then those of its fallbacks.

        A teacher is a fallback only where the students have no weights, since a drawn student differs from its teacher.
        """
        tiers = [tier for name in (group, *fallbacks) for tier in self._tiers(name)]
        first, later = tiers[0], [one for tier in tiers[1:] for one in tier]
        if len(first) > 1:
            if any(one.name == teacher for one in later):
                message = f"{teacher} is no fallback of its route, because several deployments share the requests"
                self._context.notice(first[0].entry, message)
            later = [one for one in later if one.name != teacher]
        names = list(dict.fromkeys(one.name for one in (*first, *later)))
        if len(names) > _MAX_STUDENTS:
            message = f"a route has at most {_MAX_STUDENTS} students: {', '.join(names[_MAX_STUDENTS:])} not called"
            self._context.notice(first[0].entry, message)
            names = names[:_MAX_STUDENTS]
        if len(names) == 1:
            return {"student": names[0]}
        if len(first) == 1:
            return {"students": names}
        weights = _weights(first, scale=bool(later))
        if later:
            message = "fallbacks of several deployments have the smallest weight, so a few first calls go to them"
            self._context.notice(first[0].entry, message)
        return {"students": [{"model": name, "weight": whole(weights.get(name, _MIN_WEIGHT))} for name in names]}

    def _tiers(self, group: str) -> list[list[Deployment]]:
        """Return the deployments of a group by `order`; those with weight 0 are called last."""
        by_order = sorted(self._groups[group], key=lambda one: one.order)
        tiers = [list(tier) for _, tier in groupby(by_order, key=lambda one: one.order)]
        unused = [one for one in tiers[0] if one.weights.get("weight") == 0]
        if unused and len(unused) < len(tiers[0]):
            tiers = [[one for one in tiers[0] if one not in unused], *tiers[1:], unused]
        return tiers

    def _read_aliases(self) -> dict[str, str]:
        """Return the groups of model_group_alias by alias."""
        aliases: dict[str, str] = {}
        for alias in self._context.entries(self._settings.aliases, dict):
            parts = {child.name: child for child in alias.children()}
            target = parts.get("model", alias)
            name, group = route_name(alias.name), route_name(str(target.value))
            if name in self._groups:
                self._context.notice(alias, f"not imported: model_list has {name}, too")
            elif group not in self._groups:
                self._context.notice(alias, f"not imported: no imported model is called {group}")
            else:
                aliases[name] = group
                if name != alias.name:
                    self._context.notice(alias, f"callers must send {name}: {NAME_RULE}")
            if "hidden" in parts:
                self._context.notice(parts["hidden"], "GET /v1/models lists all routes that the key may use")
        return aliases

    def _read_fallbacks(self) -> dict[str, list[str]]:
        """Return the fallback groups by group or alias, and set the default ones.

        The precedence is that of LiteLLM: the first entry of the name, then the last one of the name with or without
        its provider. `default_fallbacks`, else the last entry `*`, are for all other names.
        """
        own: dict[str, SourceField] = {}
        similar: dict[str, SourceField] = {}
        default: SourceField | None = None
        for targets in (one for entry in self._settings.fallbacks for one in self._context.entries(entry, dict)):
            if targets.name == "*":
                self._unused(default, "a later entry * applies")
                default = targets
                continue
            key = route_name(targets.name)
            names = [name for name in (*self._groups, *self._aliases) if name == key or _is_same_model(name, key)]
            if not names:
                self._context.notice(targets, f"not imported: no imported model is called {targets.name}")
            for name in names:
                if name != key:
                    self._unused(similar.get(name), f"later fallbacks of {name} apply")
                    similar[name] = targets
                elif name in own:
                    self._unused(targets, f"the first fallbacks of {name} apply")
                else:
                    own[name] = targets
        if self._settings.default_fallbacks is not None:
            self._unused(default, "default_fallbacks apply")
            default = self._settings.default_fallbacks
        for name in own.keys() & similar.keys():
            self._unused(similar[name], f"fallbacks of exactly {name} apply")
        self._default_fallbacks = self._targets(default)
        return {name: self._targets(field, self._aliases.get(name, name)) for name, field in (similar | own).items()}

    def _unused(self, field: SourceField | None, why: str) -> None:
        """Report fallbacks that others override, if there are any."""
        if field is not None:
            self._context.notice(field, f"not imported: {why}, as in LiteLLM")

    def _targets(self, field: SourceField | None, group: str | None = None) -> list[str]:
        """Return the groups that a list names. A notice states one that cannot be a fallback of `group`."""
        found = []
        for one in self._context.entries(field, list):
            for target in self._target(one):
                if group is None or self._have_one_mode(target, group):
                    found.append(target)
                else:
                    embedding = target if self._groups[target][0].embeds else group
                    self._context.notice(one, f"not imported: only {embedding} makes embeddings")
        return found

    def _target(self, field: SourceField) -> list[str]:
        name = route_name(field.value) if isinstance(field.value, str) else ""
        group = self._aliases.get(name, name)
        if group in self._groups:
            return [group]
        why = f"no imported model is called {name}" if name else "a fallback with messages or parameters of its own"
        self._context.notice(field, f"not imported: {why}")
        return []

    def _known(self, name: str) -> str:
        """Return the group of a name on the command line. Raise StartupError for an unknown name."""
        group = self._aliases.get(name, name)
        if group not in self._groups:
            known = ", ".join([*self._groups, *self._aliases])
            raise StartupError(f"no imported model is called '{name}': {known}.{suggestion(name, self._groups)}")
        if self._groups[group][0].embeds:
            raise StartupError(f"'{name}' makes embeddings: it can neither be teacher nor student")
        return group


def _is_same_model(name: str, key: str) -> bool:
    """Return whether a name and a key differ in the provider only, like gpt-4o and openai/gpt-4o."""
    prefix, slash, model = name.partition("/")
    if slash:
        return prefix in litellm_providers() and model == key
    provider = find_provider(name)
    return provider is not None and key == f"{provider.name}/{name}"


def _weights(tier: Sequence[Deployment], *, scale: bool) -> Mapping[str, Decimal]:
    """Return the weights of deployments, as LiteLLM's simple-shuffle draws: by weight, else rpm, else tpm.

    With `scale`, the largest weight is the largest that is permitted.
    """
    for name in ("weight", "rpm", "tpm"):
        values = {one.name: max(one.weights.get(name, Decimal(0)), Decimal(0)) for one in tier}
        if largest := max(values.values()):
            factor = _MAX_WEIGHT / largest if scale or largest > _MAX_WEIGHT else Decimal(1)
            return {name: max(round(value * factor, 2), _MIN_WEIGHT) for name, value in values.items()}
    return {one.name: _MAX_WEIGHT if scale else Decimal(1) for one in tier}


def _names(students: Mapping[str, Any]) -> set[str]:
    named = [*students.get("students", ()), *filter(None, [students.get("student")])]
    return {one if isinstance(one, str) else one["model"] for one in named}
