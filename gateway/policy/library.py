"""Projections and files that policies may name: built-in projections, and one per file in policies/projections."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import display_path, in_file_order, parse, read_bytes, unreadable
from gateway.errors import ConfigIssue
from gateway.policy.exemplar_files import MAX_BYTES, exemplar_files, without_content
from gateway.policy.length_files import length_files
from gateway.policy.named_files import PROJECTIONS_FOLDER
from gateway.policy.projection_shapes import MAX_CHARS, ProjectionRule
from gateway.policy.projections import PROJECTIONS
from gateway.policy.schema import LABEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gateway.config.yaml_source import YamlSource
    from gateway.policy.length_model import LengthModel
    from gateway.policy.projections import Exemplar, Projection
    from gateway.policy.schema import GuidanceRule, TenantPolicy


class _ParsedProjection(NamedTuple):
    """A parsed projection file. It is checked again in each reading, since its exemplars may have changed."""

    digest: str
    source: YamlSource | None
    rule: ProjectionRule | None
    issues: tuple[ConfigIssue, ...]


class _Resolved(NamedTuple):
    """The projection and length model that a route's guidance names. None: no name, or an unchanged built-in one."""

    projection: Projection | None
    length_model: LengthModel | None


class _Bound(NamedTuple):
    parsed: TenantPolicy
    resolved: tuple[_Resolved, ...]
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
        self._exemplars = exemplar_files()
        self._lengths = length_files()
        self._parsed: dict[str, _ParsedProjection] = {}
        self._invalid: frozenset[str] = frozenset()
        self._bound: dict[str, _Bound] = {}

    @property
    def named(self) -> list[str]:
        """Return the named files of exemplars and of lengths, existing or not."""
        return sorted(self._exemplars.named | self._lengths.named)

    def read(self, folder: Path) -> list[ConfigIssue]:
        """Read the projections in `folder` and return their issues. Blocks; never raises."""
        self._exemplars.begin(folder)
        self._lengths.begin(folder)
        try:
            files = sorted(file for file in (folder / PROJECTIONS_FOLDER).iterdir() if not file.name.startswith("."))
        except FileNotFoundError:
            files = []
        except OSError as error:
            return [unreadable(folder / PROJECTIONS_FOLDER, error)]
        projections: dict[str, Projection] = {}
        issues: list[ConfigIssue] = []
        parsed: dict[str, _ParsedProjection] = {}
        for file in files:
            if file.suffix == ".yml":
                issues.append(ConfigIssue(display_path(file), 0, 0, "", "not read: rename it to end in .yaml"))
            if file.suffix != ".yaml":
                continue
            parsed[file.stem] = one = self._parse(file)
            found = list(one.issues)
            if one.source is not None and one.rule is not None and not found:
                projections[file.stem], found = self._projection(file.stem, one.source, one.rule)
            issues += in_file_order(found)
        self._parsed = parsed
        self._invalid = frozenset(parsed) - frozenset(projections)
        self.projections = MappingProxyType({**PROJECTIONS, **projections})
        return issues

    def check(self, source: YamlSource) -> Iterator[ConfigIssue]:
        """Yield the issues of a policy file's projections and named files."""
        for index, route in enumerate(source.items("routes")):
            guidance = route.get("guidance") if isinstance(route, dict) else None
            if not isinstance(guidance, dict):
                continue
            name, file = guidance.get("projection"), guidance.get("exemplars")
            if isinstance(name, str) and name not in self.projections and name not in self._invalid:
                hint = nearest(name, self.projections)
                known = "" if hint else f"; known: {', '.join(self.projections)}; or add {PROJECTIONS_FOLDER}/NAME.yaml"
                loc = ("routes", index, "guidance", "projection")
                yield source.issue(loc, f"no projection is called '{name}'{known}", hint)
            if isinstance(file, str):
                loc = ("routes", index, "guidance", "exemplars")
                exemplars, issues = self._exemplars.of(file, source, loc)
                yield from issues
                projection = self.projections.get(name) if isinstance(name, str) else None
                if projection is not None and exemplars:
                    yield from _size_issues(replace(projection, exemplars=exemplars), source, loc)
            auto = guidance.get("auto")
            if isinstance(auto, dict) and isinstance(file := auto.get("model"), str):
                yield from self._lengths.of(file, source, ("routes", index, "guidance", "auto", "model"))[1]

    def bind(self, file: Path, policy: TenantPolicy, source: YamlSource) -> TenantPolicy:
        """Return the policy with its names resolved; the previous object if nothing changed."""
        resolved = tuple(
            _Resolved(self._projection_of(route.guidance, source), self._length_model_of(route.guidance, source))
            for route in policy.routes
        )
        if not any(map(any, resolved)):
            return policy
        bound = self._bound.get(file.name)
        if bound is not None and bound.parsed is policy and bound.resolved == resolved:
            return bound.policy
        routes = tuple(
            route.model_copy(update={"guidance": _bind(route.guidance, one)}) if any(one) else route
            for route, one in zip(policy.routes, resolved, strict=True)
        )
        bound_policy = policy.model_copy(update={"routes": routes})
        self._bound[file.name] = _Bound(policy, resolved, bound_policy)
        return bound_policy

    def close(self, files: frozenset[str]) -> None:
        """End the reading. Only the policies in `files`, by name, stay in the cache."""
        self._bound = {name: bound for name, bound in self._bound.items() if name in files}
        digests = {f"{PROJECTIONS_FOLDER}/{name}.yaml": parsed.digest for name, parsed in self._parsed.items()}
        self.digests = digests | self._exemplars.digests | self._lengths.digests

    def _projection_of(self, rule: GuidanceRule, source: YamlSource) -> Projection | None:
        """Return the projection; None: an unchanged built-in one."""
        projection = self.projections.get(rule.projection)
        if projection is None or (rule.exemplars is None and rule.projection in PROJECTIONS):
            return None
        if rule.exemplars is None:
            return projection
        exemplars, _ = self._exemplars.of(rule.exemplars, source, ())
        return replace(projection, exemplars=exemplars) if exemplars else None

    def _length_model_of(self, rule: GuidanceRule, source: YamlSource) -> LengthModel | None:
        return None if rule.auto.model is None else self._lengths.of(rule.auto.model, source, ())[0]

    def _parse(self, file: Path) -> _ParsedProjection:
        raw = read_bytes(file, MAX_BYTES)
        if isinstance(raw, ConfigIssue):
            return _ParsedProjection("", None, None, (raw,))
        digest, previous = sha256(raw).hexdigest(), self._parsed.get(file.stem)
        return previous if previous is not None and previous.digest == digest else _parsed(raw, digest, file)

    def _projection(self, name: str, source: YamlSource, rule: ProjectionRule) -> tuple[Projection, list[ConfigIssue]]:
        path = source.get("exemplars")
        exemplars: tuple[Exemplar, ...] | None = None
        issues: list[ConfigIssue] = []
        if isinstance(path, str):
            exemplars, issues = self._exemplars.of(path, source, ("exemplars",))
        projection = rule.projection(name, exemplars or ())
        return projection, [*issues, *_size_issues(projection, source, ())]


def _bind(rule: GuidanceRule, resolved: _Resolved) -> GuidanceRule:
    if resolved.length_model is not None:
        rule = rule.with_length_model(resolved.length_model)
    if resolved.projection is None:
        return rule
    placement = None if "placement" in rule.model_fields_set else resolved.projection.default_placement
    return rule.with_projection(resolved.projection, placement)


def _size_issues(projection: Projection, source: YamlSource, loc: tuple[str | int, ...]) -> Iterator[ConfigIssue]:
    size = sum(map(len, projection.shown))
    if size > MAX_CHARS:
        yield source.issue(loc, f"adds {size} characters to what the teacher reads; at most {MAX_CHARS}")


def _parsed(raw: bytes, digest: str, file: Path) -> _ParsedProjection:
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
        issues = [*issues, *found]
    return _ParsedProjection(digest, source, rule, tuple(in_file_order(map(without_content, issues))))
