"""Projections and files that policies name: built-in projections, those in policies/projections, and files by path.

The content of exemplars is confidential and appears in no error message.
"""

from __future__ import annotations

import re
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.scalars import LABEL
from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import display_path, in_file_order, parse, unreadable
from gateway.policy.files import PROJECTIONS_FOLDER, CheckedFile, NamedFiles, read_checked, yaml_files
from gateway.policy.projection_shapes import MAX_CHARS, ExemplarList, ProjectionRule
from gateway.policy.projections import PROJECTIONS
from gateway.policy.split import complete_routes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gateway.config.yaml_messages import Loc
    from gateway.config.yaml_source import YamlSource
    from gateway.errors import ConfigIssue
    from gateway.policy.guidance_rule import GuidanceRule
    from gateway.policy.projections import Exemplar, Projection
    from gateway.policy.schema import Route, TenantPolicy

MAX_BYTES = 256_000
"""Maximum size of one file of exemplars."""
ENDINGS = frozenset({".yaml", ".yml", ".json"})
"""Suffixes of files of exemplars."""
_PLAIN_LOCATION = re.compile(r"(\[\d+\])?(\.?[a-z_]{1,20}(\[\d+\])?)*")
_ENTRY = re.compile(r"\[\d+\]")
_YAML_MESSAGES = ("not valid YAML: found", "not valid YAML: expected")
_QUOTED = re.compile(r"'[^']*'")


def _parse_exemplars(raw: bytes, digest: str, file: Path) -> CheckedFile[tuple[Exemplar, ...]]:
    source, issues = parse(raw, display_path(file), list)
    if source is None:
        return CheckedFile(digest, None, None, tuple(map(without_content, issues)))
    entries, found = source.check(ExemplarList)
    exemplars = entries.exemplars() if entries is not None else ()
    size = sum(len(one.question) + len(one.answer) for one in exemplars)
    if size > MAX_CHARS:
        problem = f"holds {size} characters: a teacher would read them with each request; at most {MAX_CHARS}"
        found = [*found, source.issue((), problem)]
    issues = in_file_order(map(without_content, [*issues, *found]))
    return CheckedFile(digest, None, None if issues else exemplars, tuple(issues))


def without_content(issue: ConfigIssue) -> ConfigIssue:
    """Return the issue without content of a file of exemplars, which its location or message may contain."""
    location, message = issue.field, issue.message
    if not _PLAIN_LOCATION.fullmatch(location):
        location = match[0] if (match := _ENTRY.match(location)) else ""
    if message.startswith(_YAML_MESSAGES):
        message = _QUOTED.sub("'...'", message)
    return replace(issue, field=location, message=message)


class _Bound(NamedTuple):
    parsed: TenantPolicy
    resolved: tuple[Projection | None, ...]  # None: no name, or an unchanged built-in one
    policy: TenantPolicy


class ProjectionRegistry:
    """The projections and named files of the policies folder. An unchanged file is not parsed again.

    Attributes:
        projections: projections of the last reading, by name.
        digests: digests of the files read, by path from the policies folder.
    """

    def __init__(self) -> None:
        self.projections: Mapping[str, Projection] = PROJECTIONS
        self.digests: dict[str, str] = {}
        self._exemplars = NamedFiles("exemplars/arithmetic.yaml", ENDINGS, MAX_BYTES, _parse_exemplars)
        # Checked again in each reading, since the exemplars of a projection may have changed.
        self._parsed: dict[str, CheckedFile[ProjectionRule]] = {}
        self._invalid: frozenset[str] = frozenset()
        self._bound: dict[str, _Bound] = {}

    @property
    def named(self) -> list[str]:
        """Return the named files of exemplars, existing or not."""
        return sorted(self._exemplars.named)

    def read(self, folder: Path) -> list[ConfigIssue]:
        """Read the projections in `folder` and return their issues. Blocks; never raises."""
        self._exemplars.begin(folder)
        try:
            files, issues = yaml_files(folder / PROJECTIONS_FOLDER)
        except FileNotFoundError:
            files, issues = [], []
        except OSError as error:
            return [unreadable(folder / PROJECTIONS_FOLDER, error)]
        projections: dict[str, Projection] = {}
        parsed: dict[str, CheckedFile[ProjectionRule]] = {}
        for file in files:
            parsed[file.stem] = one = read_checked(file, MAX_BYTES, self._parsed.get(file.stem), _parsed)
            found = list(one.issues)
            if one.source is not None and one.value is not None and not found:
                projections[file.stem], found = self._projection(file.stem, one.source, one.value)
            issues += in_file_order(found)
        self._parsed = parsed
        self._invalid = frozenset(parsed) - frozenset(projections)
        self.projections = MappingProxyType({**PROJECTIONS, **projections})
        return issues

    def check(self, source: YamlSource) -> Iterator[ConfigIssue]:
        """Yield the issues of a policy file's projections and named files."""
        for loc, guidance in _guidance_keys(source):
            name, file = guidance.get("projection"), guidance.get("exemplars")
            if isinstance(name, str) and name not in self.projections and name not in self._invalid:
                hint = nearest(name, self.projections)
                known = "" if hint else f"; known: {', '.join(self.projections)}; or add {PROJECTIONS_FOLDER}/NAME.yaml"
                yield source.issue((*loc, "projection"), f"no projection is called '{name}'{known}", hint)
            if isinstance(file, str):
                exemplars, issues = self._exemplars.of(file, source, (*loc, "exemplars"))
                yield from issues
                projection = self.projections.get(name) if isinstance(name, str) else None
                if projection is not None and exemplars:
                    yield from _size_issues(replace(projection, exemplars=exemplars), source, (*loc, "exemplars"))

    def bind(self, file: Path, policy: TenantPolicy, source: YamlSource) -> TenantPolicy:
        """Return the policy with its names resolved; the previous object if nothing changed."""
        resolved = tuple(self._resolved(route.guidance, source) for route in policy.all_routes)
        if not any(resolved):
            return policy
        bound = self._bound.get(file.name)
        if bound is not None and bound.parsed is policy and bound.resolved == resolved:
            return bound.policy
        each = iter(resolved)
        routes = tuple(_bind_route(route, each) for route in policy.routes)
        bound_policy = policy.model_copy(update={"routes": routes})
        self._bound[file.name] = _Bound(policy, resolved, bound_policy)
        return bound_policy

    def close(self, files: frozenset[str]) -> None:
        """End the reading. Only the policies in `files`, by name, stay in the cache."""
        self._bound = {name: bound for name, bound in self._bound.items() if name in files}
        digests = {f"{PROJECTIONS_FOLDER}/{name}.yaml": parsed.digest for name, parsed in self._parsed.items()}
        self.digests = digests | self._exemplars.digests

    def _resolved(self, rule: GuidanceRule, source: YamlSource) -> Projection | None:
        projection = self.projections.get(rule.projection)
        if rule.exemplars is None:
            return None if rule.projection in PROJECTIONS else projection
        if projection is None:
            return None
        exemplars, _ = self._exemplars.of(rule.exemplars, source, ())
        return replace(projection, exemplars=exemplars) if exemplars else None

    def _projection(self, name: str, source: YamlSource, rule: ProjectionRule) -> tuple[Projection, list[ConfigIssue]]:
        path = source.get("exemplars")
        exemplars, issues = self._exemplars.of(path, source, ("exemplars",)) if isinstance(path, str) else (None, [])
        projection = rule.projection(name, exemplars or ())
        return projection, [*issues, *_size_issues(projection, source, ())]


def _guidance_keys(source: YamlSource) -> Iterator[tuple[Loc, dict[str, Any]]]:
    """Yield the keys of each route's guidance, and of the guidance of variants that differ from it, with locations."""
    for index, route in enumerate(source.items("routes")):
        if not isinstance(route, dict):
            continue
        if isinstance(guidance := route.get("guidance"), dict):
            yield ("routes", index, "guidance"), guidance
        for variant in complete_routes(route):
            if "guidance" in variant.own and isinstance(guidance := variant.route["guidance"], dict):
                yield ("routes", index, *variant.loc("guidance")), guidance


def _bind_route(route: Route, resolved: Iterator[Projection | None]) -> Route:
    """Return the route with its own names and those of its variants resolved, in the order of `all_routes`."""
    one = next(resolved)
    bound = route if one is None else route.model_copy(update={"guidance": _bind(route.guidance, one)})
    variants = [_bind_route(variant.route, resolved) for variant in route.variants]
    return bound.with_variants(variants) if variants else bound


def _bind(rule: GuidanceRule, projection: Projection) -> GuidanceRule:
    placement = None if "placement" in rule.model_fields_set else projection.default_placement
    return rule.with_projection(projection, placement)


def _size_issues(projection: Projection, source: YamlSource, loc: Loc) -> Iterator[ConfigIssue]:
    size = sum(map(len, projection.shown))
    if size > MAX_CHARS:
        yield source.issue(loc, f"adds {size} characters to what the teacher reads; at most {MAX_CHARS}")


def _parsed(raw: bytes, digest: str, file: Path) -> CheckedFile[ProjectionRule]:
    source, issues = parse(raw, display_path(file))
    rule = None
    if source is not None:
        if not LABEL.fullmatch(file.stem):
            issues.append(source.issue((), "its name must be 1 to 64 letters, digits or any of . _ -: rename it"))
        if file.stem in PROJECTIONS:
            issues.append(source.issue((), f"{file.stem} is a built-in projection: rename the file"))
        if not source.data:
            issues.append(source.issue((), "is empty: add at least one field, like instruction"))
        rule, found = source.check(ProjectionRule)
        issues += found
    return CheckedFile(digest, source, rule, tuple(in_file_order(map(without_content, issues))))
