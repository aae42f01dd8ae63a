"""What policies may name: projections, shipped ones and one for each file in policies/projections; and files."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import contents, in_file_order, parse, shown, unreadable
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


class _Kept(NamedTuple):
    """A file as it was read; what it says is checked anew, for the exemplars that it names may have changed."""

    digest: str
    source: YamlSource | None
    rule: ProjectionRule | None
    mistakes: tuple[ConfigIssue, ...]


class _Meant(NamedTuple):
    """What the names in a route's guidance stand for. None: it names none, or a shipped projection as it is."""

    projection: Projection | None
    learned: LengthModel | None


class _Bound(NamedTuple):
    page: TenantPolicy
    meant: tuple[_Meant, ...]
    policy: TenantPolicy


class ProjectionRegistry:
    """Reads the folder again and again; what has not changed is not parsed again.

    Attributes:
        projections: by name, as they were read last.
        digests: of the files that were read, by their paths from the policies folder.
    """

    def __init__(self) -> None:
        self.projections: Mapping[str, Projection] = PROJECTIONS
        self.digests: dict[str, str] = {}
        self._exemplars = exemplar_files()
        self._lengths = length_files()
        self._kept: dict[str, _Kept] = {}
        self._broken: frozenset[str] = frozenset()
        self._bound: dict[str, _Bound] = {}

    @property
    def named(self) -> list[str]:
        """The files of exemplars and of lengths that are named, there or not."""
        return sorted(self._exemplars.named | self._lengths.named)

    def read(self, folder: Path) -> list[ConfigIssue]:
        """The projections beside the policies in `folder`. Blocks; never raises."""
        self._exemplars.begin(folder)
        self._lengths.begin(folder)
        try:
            files = sorted(file for file in (folder / PROJECTIONS_FOLDER).iterdir() if not file.name.startswith("."))
        except FileNotFoundError:
            files = []
        except OSError as error:
            return [unreadable(folder / PROJECTIONS_FOLDER, error)]
        found: dict[str, Projection] = {}
        mistakes: list[ConfigIssue] = []
        kept: dict[str, _Kept] = {}
        for file in files:
            if file.suffix == ".yml":
                mistakes.append(ConfigIssue(shown(file), 0, 0, "", "not read: rename it to end in .yaml"))
            if file.suffix != ".yaml":
                continue
            kept[file.stem] = one = self._one(file)
            wrong = list(one.mistakes)
            if one.source is not None and one.rule is not None and not wrong:
                found[file.stem], wrong = self._projection(file.stem, one.source, one.rule)
            mistakes += in_file_order(wrong)
        self._kept = kept
        self._broken = frozenset(kept) - frozenset(found)
        self.projections = MappingProxyType({**PROJECTIONS, **found})
        return mistakes

    def check(self, source: YamlSource) -> Iterator[ConfigIssue]:
        """What a policy file says of projections and files, whatever else may be wrong with it."""
        for index, route in enumerate(source.items("routes")):
            guidance = route.get("guidance") if isinstance(route, dict) else None
            if not isinstance(guidance, dict):
                continue
            name, file = guidance.get("projection"), guidance.get("exemplars")
            if isinstance(name, str) and name not in self.projections and name not in self._broken:
                hint = nearest(name, self.projections)
                known = "" if hint else f"; known: {', '.join(self.projections)}; or add {PROJECTIONS_FOLDER}/NAME.yaml"
                loc = ("routes", index, "guidance", "projection")
                yield source.mistake(loc, f"no projection is called '{name}'{known}", hint)
            if isinstance(file, str):
                loc = ("routes", index, "guidance", "exemplars")
                exemplars, wrong = self._exemplars.of(file, source, loc)
                yield from wrong
                projection = self.projections.get(name) if isinstance(name, str) else None
                if projection is not None and exemplars:
                    yield from _too_much(replace(projection, exemplars=exemplars), source, loc)
            auto = guidance.get("auto")
            if isinstance(auto, dict) and isinstance(file := auto.get("model"), str):
                yield from self._lengths.of(file, source, ("routes", index, "guidance", "auto", "model"))[1]

    def bind(self, file: Path, policy: TenantPolicy, source: YamlSource) -> TenantPolicy:
        """The policy with what its names stand for. The same as last time, where that is the same."""
        meant = tuple(
            _Meant(self._asked(route.guidance, source), self._learned(route.guidance, source))
            for route in policy.routes
        )
        if not any(map(any, meant)):
            return policy
        bound = self._bound.get(file.name)
        if bound is not None and bound.page is policy and bound.meant == meant:
            return bound.policy
        routes = tuple(
            route.model_copy(update={"guidance": _as_meant(route.guidance, one)}) if any(one) else route
            for route, one in zip(policy.routes, meant, strict=True)
        )
        made = policy.model_copy(update={"routes": routes})
        self._bound[file.name] = _Bound(policy, meant, made)
        return made

    def close(self, files: frozenset[str]) -> None:
        """The reading is over; `files`: the names of the policies, whose alone are remembered."""
        self._bound = {name: bound for name, bound in self._bound.items() if name in files}
        own = {f"{PROJECTIONS_FOLDER}/{name}.yaml": kept.digest for name, kept in self._kept.items()}
        self.digests = own | self._exemplars.digests | self._lengths.digests

    def _asked(self, rule: GuidanceRule, source: YamlSource) -> Projection | None:
        """None: a shipped one, as it is."""
        projection = self.projections.get(rule.projection)
        if projection is None or (rule.exemplars is None and rule.projection in PROJECTIONS):
            return None
        if rule.exemplars is None:
            return projection
        exemplars, _ = self._exemplars.of(rule.exemplars, source, ())
        return replace(projection, exemplars=exemplars) if exemplars else None

    def _learned(self, rule: GuidanceRule, source: YamlSource) -> LengthModel | None:
        return None if rule.auto.model is None else self._lengths.of(rule.auto.model, source, ())[0]

    def _one(self, file: Path) -> _Kept:
        raw = contents(file, MAX_BYTES)
        if isinstance(raw, ConfigIssue):
            return _Kept("", None, None, (raw,))
        digest, kept = sha256(raw).hexdigest(), self._kept.get(file.stem)
        return kept if kept is not None and kept.digest == digest else _parsed(raw, digest, file)

    def _projection(self, name: str, source: YamlSource, rule: ProjectionRule) -> tuple[Projection, list[ConfigIssue]]:
        path = source.get("exemplars")
        exemplars: tuple[Exemplar, ...] | None = None
        wrong: list[ConfigIssue] = []
        if isinstance(path, str):
            exemplars, wrong = self._exemplars.of(path, source, ("exemplars",))
        projection = rule.projection(name, exemplars or ())
        return projection, [*wrong, *_too_much(projection, source, ())]


def _as_meant(rule: GuidanceRule, meant: _Meant) -> GuidanceRule:
    if meant.learned is not None:
        rule = rule.going_by(meant.learned)
    if meant.projection is None:
        return rule
    placed = None if "placement" in rule.model_fields_set else meant.projection.default_placement
    return rule.asking(meant.projection, placed)


def _too_much(projection: Projection, source: YamlSource, loc: tuple[str | int, ...]) -> Iterator[ConfigIssue]:
    size = sum(map(len, projection.shown))
    if size > MAX_CHARS:
        yield source.mistake(loc, f"adds {size} characters to what the teacher reads; at most {MAX_CHARS}")


def _parsed(raw: bytes, digest: str, file: Path) -> _Kept:
    source, mistakes = parse(raw, shown(file))
    rule = None
    if source is not None:
        if not LABEL.fullmatch(file.stem):
            mistakes.append(source.mistake((), "its name must be 1 to 64 letters, digits or any of . _ -: rename it"))
        if file.stem in PROJECTIONS:
            mistakes.append(source.mistake((), f"{file.stem} is a projection that is shipped: rename the file"))
        if not source.data:
            mistakes.append(source.mistake((), "is empty: say what is asked of the teacher, like instruction"))
        rule, wrong = source.check(ProjectionRule)
        mistakes = [*mistakes, *wrong]
    return _Kept(digest, source, rule, tuple(in_file_order(map(without_content, mistakes))))
