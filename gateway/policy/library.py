"""Projections and files that policies name: built-in projections, those in policies/projections, and files by path.

Unchanged files are not parsed again. The content of exemplars is confidential and appears in no error message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import display_path, in_file_order, parse, read_bytes, unreadable
from gateway.errors import ConfigIssue
from gateway.policy.length_model import MAX_FILE_BYTES, FittedLengths, lengths_of
from gateway.policy.projection_shapes import MAX_CHARS, ExemplarList, ProjectionRule
from gateway.policy.projections import PROJECTIONS
from gateway.policy.schema import LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from gateway.config.yaml_messages import Loc
    from gateway.config.yaml_source import YamlSource
    from gateway.policy.projections import Exemplar, Projection
    from gateway.policy.schema import GuidanceRule, TenantPolicy

PROJECTIONS_FOLDER = "projections"
"""Subfolder of the policies folder."""
MAX_BYTES = 256_000
"""Maximum size of one file of exemplars."""
ENDINGS = frozenset({".yaml", ".yml", ".json"})
"""Suffixes of files of exemplars."""
_PLAIN_LOCATION = re.compile(r"(\[\d+\])?(\.?[a-z_]{1,20}(\[\d+\])?)*")
_ENTRY = re.compile(r"\[\d+\]")
_YAML_MESSAGES = ("not valid YAML: found", "not valid YAML: expected")
_QUOTED = re.compile(r"'[^']*'")
T = TypeVar("T")


class CheckedFile(NamedTuple, Generic[T]):
    """A file with its SHA-256, its YAML data and its value. A file that cannot be read has an empty hash and an issue.

    The value is None where there are issues. The source is None where the file is not YAML.
    """

    digest: str
    source: YamlSource | None
    value: T | None
    issues: tuple[ConfigIssue, ...] = ()


def read_checked(
    file: Path,
    max_bytes: int | None,
    previous: CheckedFile[T] | None,
    parse: Callable[[bytes, str, Path], CheckedFile[T]],
) -> CheckedFile[T]:
    """Return the current content of a file; `previous` if it has not changed. Blocks; never raises."""
    raw = read_bytes(file, max_bytes)
    if isinstance(raw, ConfigIssue):
        return CheckedFile("", None, None, (raw,))
    digest = sha256(raw).hexdigest()
    return previous if previous is not None and previous.digest == digest else parse(raw, digest, file)


@dataclass(slots=True)
class NamedFiles(Generic[T]):
    """Read each named file once per reading. An unchanged file is not parsed again.

    Attributes:
        example: a valid path, for messages.
        named: paths named in this reading, existing or not, relative to the policies folder.
    """

    example: str
    endings: frozenset[str]
    max_bytes: int
    parse: Callable[[bytes, str, Path], CheckedFile[T]]
    named: set[str] = field(default_factory=set)
    _folder: Path = Path()
    _previous: dict[str, CheckedFile[T]] = field(default_factory=dict)
    _read: dict[str, CheckedFile[T]] = field(default_factory=dict)

    def begin(self, folder: Path) -> None:
        """Begin a reading."""
        self._folder, self._previous, self._read, self.named = folder, self._read or self._previous, {}, set()

    @property
    def digests(self) -> dict[str, str]:
        """Return the digests of the files read."""
        return {name: checked.digest for name, checked in self._read.items()}

    def of(self, name: str, source: YamlSource, loc: Loc) -> tuple[T | None, list[ConfigIssue]]:
        """Return the content of the file that `source` names at `loc`, or None with issues. Issues of the file itself
        are reported once per reading."""
        if problem := self._name_problem(name) or self._link_problem(name):
            return None, [source.issue(loc, problem)]
        name = str(PurePosixPath(name))
        self.named.add(name)
        if name in self._read:
            return self._read[name].value, []
        checked = read_checked(self._folder / name, self.max_bytes, self._previous.get(name), self.parse)
        if not checked.digest:
            return None, [source.issue(loc, f"{name} {checked.issues[0].message}")]
        self._read[name] = checked
        return checked.value, list(checked.issues)

    def _name_problem(self, name: str) -> str | None:
        path = PurePosixPath(name)
        if not name or not name.isprintable() or path.is_absolute() or ".." in path.parts or "\\" in name:
            return f"must be a file within the policies folder: write its path from there, like {self.example}"
        if path.suffix not in self.endings:
            return f"must end in {', '.join(sorted(self.endings))}"
        hint = f"put it into a folder of its own, like {PurePosixPath(self.example).parent}/"
        if len(path.parts) == 1 and path.suffix != ".json":
            return f"is in the folder of tenants' policies: {hint}"
        if path.parts[0] == PROJECTIONS_FOLDER and len(path.parts) == len(("projections", "it.yaml")):
            return f"is in the folder of projections: {hint}"
        return None

    def _link_problem(self, name: str) -> str | None:
        """Return the problem with a symbolic link. Links within the folder are allowed, as in a ConfigMap."""
        try:
            inside = (self._folder / name).resolve().is_relative_to(self._folder.resolve())
        except (OSError, RuntimeError):
            return "cannot be followed: a link leads in a circle"
        return None if inside else "leads out of the policies folder by a link: put the file itself there"


def yaml_files(folder: Path) -> tuple[list[Path], list[ConfigIssue]]:
    """Return the files of a folder that end in .yaml, and the issues of those that end in .yml. Raises OSError."""
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    misnamed = [file for file in files if file.suffix == ".yml"]
    issues = [ConfigIssue(display_path(file), 0, 0, "", "not read: rename it to end in .yaml") for file in misnamed]
    return [file for file in files if file.suffix == ".yaml"], issues


def length_files() -> NamedFiles[FittedLengths]:
    """Return a reader of the `eval fit` files that policies name."""
    return NamedFiles("lengths/chat.json", frozenset({".json"}), MAX_FILE_BYTES, _parse_lengths)


def _parse_lengths(raw: bytes, digest: str, file: Path) -> CheckedFile[FittedLengths]:
    try:
        return CheckedFile(digest, None, lengths_of(raw))
    except ValueError as error:
        return CheckedFile(digest, None, None, (ConfigIssue(display_path(file), 0, 0, "", str(error)),))


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


class _Resolved(NamedTuple):  # None: no name, or an unchanged built-in one
    projection: Projection | None
    length_model: FittedLengths | None


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
        self._exemplars = NamedFiles("exemplars/arithmetic.yaml", ENDINGS, MAX_BYTES, _parse_exemplars)
        self._lengths = length_files()
        # Checked again in each reading, since the exemplars of a projection may have changed.
        self._parsed: dict[str, CheckedFile[ProjectionRule]] = {}
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
        for index, route in enumerate(source.items("routes")):
            guidance = route.get("guidance") if isinstance(route, dict) else None
            if not isinstance(guidance, dict):
                continue
            loc: Loc = ("routes", index, "guidance")
            name, file, auto = guidance.get("projection"), guidance.get("exemplars"), guidance.get("auto")
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
            if isinstance(auto, dict) and isinstance(file := auto.get("model"), str):
                yield from self._lengths.of(file, source, (*loc, "auto", "model"))[1]

    def bind(self, file: Path, policy: TenantPolicy, source: YamlSource) -> TenantPolicy:
        """Return the policy with its names resolved; the previous object if nothing changed."""
        resolved = tuple(self._resolved(route.guidance, source) for route in policy.routes)
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

    def _resolved(self, rule: GuidanceRule, source: YamlSource) -> _Resolved:
        length_model = None if rule.auto.model is None else self._lengths.of(rule.auto.model, source, ())[0]
        projection = self.projections.get(rule.projection)
        if rule.exemplars is None:
            return _Resolved(None if rule.projection in PROJECTIONS else projection, length_model)
        if projection is None:
            return _Resolved(None, length_model)
        exemplars, _ = self._exemplars.of(rule.exemplars, source, ())
        return _Resolved(replace(projection, exemplars=exemplars) if exemplars else None, length_model)

    def _projection(self, name: str, source: YamlSource, rule: ProjectionRule) -> tuple[Projection, list[ConfigIssue]]:
        path = source.get("exemplars")
        exemplars, issues = self._exemplars.of(path, source, ("exemplars",)) if isinstance(path, str) else (None, [])
        projection = rule.projection(name, exemplars or ())
        return projection, [*issues, *_size_issues(projection, source, ())]


def _bind(rule: GuidanceRule, resolved: _Resolved) -> GuidanceRule:
    if resolved.length_model is not None:
        rule = rule.with_length_model(resolved.length_model)
    if resolved.projection is None:
        return rule
    placement = None if "placement" in rule.model_fields_set else resolved.projection.default_placement
    return rule.with_projection(resolved.projection, placement)


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
