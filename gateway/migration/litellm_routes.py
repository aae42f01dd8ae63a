"""Convert model groups, aliases and fallbacks of a LiteLLM proxy configuration to routes."""

from __future__ import annotations

from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.scalars import ANY_NAME, NAME
from gateway.config.yaml_messages import suggestion
from gateway.errors import StartupError
from gateway.migration.source import SourceKeys
from gateway.pricing import without_trailing_zeros

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.migration.litellm_models import Deployment
    from gateway.migration.notes import ImportNotes
    from gateway.migration.source import SourceField

_UNKNOWN = "no imported model has this name"
_MAX_STUDENTS = 8
_MAX_WEIGHT, _MIN_WEIGHT = Decimal(100), Decimal("0.01")


class RequestedGuidance(NamedTuple):
    """Guidance of one route: the teacher's model_name, whose route is guided, and that of its student."""

    teacher: str
    student: str


class RouteConverter:
    """Builds a route for each model_name. Aliases are further names of its route, and fallbacks its last students."""

    def __init__(self, deployments: Iterable[Deployment], notes: ImportNotes) -> None:
        self._notes = notes
        self._groups: dict[str, list[Deployment]] = {}
        for one in deployments:
            self._groups.setdefault(one.group, []).append(one)
        self._aliases: dict[str, str] = {}  # model_name by alias
        self._fallbacks: dict[str, list[str]] = {}

    def add_aliases(self, field: SourceField | None) -> None:
        """Read model_group_alias: the model_name of each alias, or a mapping with it."""
        for alias in self._notes.children(field, dict):
            target = alias
            if isinstance(alias.value, dict):
                keys = SourceKeys(alias)
                target = keys.take("model") or alias
                self._notes.add_rest(keys)
            if not self._is_group(target.value):
                self._notes.add(alias, _UNKNOWN)
            elif alias.name in self._groups or not NAME.fullmatch(alias.name):
                self._notes.add(alias, "must be no model_name, and have only letters, digits and . _ : / -")
            else:
                self._aliases[alias.name] = target.value

    def add_fallbacks(self, field: SourceField | None, default: SourceField | None) -> None:
        """Read fallbacks and default_fallbacks, after the aliases.

        As in LiteLLM, the first entry of a model_name applies, and the last entry `*`. `default_fallbacks` override it.
        """
        entries = [one for entry in self._notes.children(field, list) for one in self._notes.children(entry, dict)]
        named = [(one.name, one) for one in entries]
        chosen: dict[str, SourceField] = {}
        for name, targets in named if default is None else [*named, (ANY_NAME, default)]:
            if name != ANY_NAME and name not in self._groups:
                self._notes.add(targets, _UNKNOWN)
            elif name == ANY_NAME or name not in chosen:
                self._add_overridden(chosen.get(name))
                chosen[name] = targets
            else:
                self._add_overridden(targets)
        self._fallbacks = {name: self._targets(targets, name) for name, targets in chosen.items()}

    def routes(self, guidance: RequestedGuidance | None) -> list[dict[str, Any]]:
        """Return the routes in the order of the file. Raise StartupError for an unknown name in `guidance`."""
        teacher = student = None
        if guidance is not None:
            teacher, student = self._known(guidance.teacher), self._known(guidance.student)
        routes = []
        for group in self._groups:
            route: dict[str, Any] = {"model": group}
            if aliases := [alias for alias, target in self._aliases.items() if target == group]:
                route["aliases"] = aliases
            guided = student if group == teacher else None
            routes.append(route | (self._engines(group) if guided is None else self._guided_engines(group, guided)))
        return routes

    def _engines(self, group: str) -> dict[str, Any]:
        """Return mode and students of a route without guidance."""
        embeds = self._groups[group][0].embeds
        fallbacks = self._fallbacks.get(group, self._fallbacks.get(ANY_NAME, []))
        others = [one for one in fallbacks if one != group and self._groups[one][0].embeds == embeds]
        return {"mode": "embeddings" if embeds else "student", **self._students(group, others)}

    def _guided_engines(self, teacher: str, student: str) -> dict[str, Any]:
        """Return mode and engines of the guided route.

        The teacher is the last student, except where the students have weights: a drawn student is no teacher.
        """
        fallbacks = [teacher] if len(self._groups[student]) == 1 else []
        for one in chain.from_iterable(self._groups[name] for name in (student, *fallbacks)):
            if "protocol" not in one.data:
                one.data["continuation"] = "auto"  # the default of a provider's model is none
        students = self._students(student, fallbacks)
        name = self._groups[teacher][0].name
        return {"mode": "guided", "teacher": name, **students, "guidance": {"deadline": "auto"}}

    def _students(self, group: str, fallbacks: Sequence[str]) -> dict[str, Any]:
        """Return the key `student` or `students`: deployments of a group that share requests, then all others.

        Requests are shared by weight. A deployment without weight is called after those with one.
        """
        own, *later = (sorted(self._groups[name], key=lambda one: one.order) for name in (group, *fallbacks))
        first = [one for one in own if one.order == own[0].order]
        drawn = [one for one in first if one.weight] or first
        ordered = [*drawn, *(one for one in own if one not in drawn), *(one for tier in later for one in tier)]
        names = list(dict.fromkeys(one.name for one in ordered))
        if len(names) > _MAX_STUDENTS:
            unused = ", ".join(names[_MAX_STUDENTS:])
            self._notes.add(own[0].field, f"a route has at most {_MAX_STUDENTS} students; without {unused}")
            names = names[:_MAX_STUDENTS]
        if len(names) == 1:
            return {"student": names[0]}
        if len(drawn) == 1:
            return {"students": names}
        weights = _weights(drawn, scale=len(drawn) < len(ordered))
        return {"students": [{"model": name, "weight": weights.get(name, _MIN_WEIGHT)} for name in names]}

    def _add_overridden(self, field: SourceField | None) -> None:
        if field is not None:
            self._notes.add(field, "other fallbacks of this name apply, as in LiteLLM")

    def _targets(self, field: SourceField, name: str) -> list[str]:
        """Return the model_names that a list of fallbacks names."""
        found = []
        for one in self._notes.children(field, list):
            target = self._aliases.get(str(one.value), one.value)
            if not self._is_group(target):
                self._notes.add(one, _UNKNOWN)
            elif name != ANY_NAME and self._groups[target][0].embeds != self._groups[name][0].embeds:
                self._notes.add(one, f"{name} and {target} are not both for chats, or both for embeddings")
            else:
                found.append(target)
        return found

    def _is_group(self, name: object) -> bool:
        return isinstance(name, str) and name in self._groups

    def _known(self, name: str) -> str:
        """Return the model_name of a name on the command line. Raise StartupError for an unknown one."""
        group = self._aliases.get(name, name)
        if group not in self._groups:
            known = ", ".join([*self._groups, *self._aliases])
            raise StartupError(f"no imported model is called '{name}': {known}.{suggestion(name, self._groups)}")
        if self._groups[group][0].embeds:
            raise StartupError(f"'{name}' makes embeddings: it can neither be teacher nor student")
        return group


def _weights(drawn: Sequence[Deployment], *, scale: bool) -> dict[str, Decimal]:
    """Return the weights by name, equal ones if there are none. With `scale`, the largest is the largest possible."""
    largest = max(one.weight for one in drawn)
    weights = {one.name: one.weight / largest if largest else Decimal(1) for one in drawn}
    factor = _MAX_WEIGHT if scale or largest > _MAX_WEIGHT else largest or Decimal(1)
    return {
        name: without_trailing_zeros(max(round(weight * factor, 2), _MIN_WEIGHT)) for name, weight in weights.items()
    }
