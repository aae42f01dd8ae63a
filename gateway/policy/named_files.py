"""Files that policies name by their paths from the policies folder, with a cache of their parsed content."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Generic, TypeVar

from gateway.config.yaml_source import read_bytes
from gateway.errors import ConfigIssue

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config.yaml_messages import Loc
    from gateway.config.yaml_source import YamlSource

PROJECTIONS_FOLDER = "projections"
"""Subfolder of the policies folder."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ParsedFile(Generic[T]):
    """The parsed content of a file; None, with issues, if it is invalid."""

    value: T | None
    issues: tuple[ConfigIssue, ...] = ()


class NamedFiles(Generic[T]):
    """Read each named file once per reading. An unchanged file is not parsed again.

    Args:
        example: a valid path, for messages.
        endings: allowed suffixes.
        max_bytes: maximum size of one file.
        parse: parses the content of a file.
    """

    def __init__(
        self, example: str, endings: frozenset[str], max_bytes: int, parse: Callable[[bytes, Path], ParsedFile[T]]
    ) -> None:
        self._example = example
        self._endings = endings
        self._most_bytes = max_bytes
        self._parse = parse
        self._folder = Path()
        self._previous: dict[str, tuple[str, ParsedFile[T]]] = {}
        self._read: dict[str, tuple[str, ParsedFile[T]]] = {}
        self.named: set[str] = set()
        """Paths named in this reading, existing or not, relative to the policies folder."""

    def begin(self, folder: Path) -> None:
        """Begin a reading."""
        self._folder, self._previous, self._read, self.named = folder, self._read or self._previous, {}, set()

    @property
    def digests(self) -> dict[str, str]:
        """Return the digests of the files read."""
        return {name: digest for name, (digest, _) in self._read.items()}

    def of(self, name: str, source: YamlSource, loc: Loc) -> tuple[T | None, list[ConfigIssue]]:
        """Return the content of the file that `source` names at `loc`, or None with issues.

        Issues of the file itself are reported once per reading.
        """
        problem = self._name_problem(name) or self._link_problem(name)
        if problem is not None:
            return None, [source.issue(loc, problem)]
        name = str(PurePosixPath(name))
        self.named.add(name)
        if name in self._read:
            return self._read[name][1].value, []
        file = self._folder / name
        raw = read_bytes(file, self._most_bytes)
        if isinstance(raw, ConfigIssue):
            return None, [source.issue(loc, f"{name} {raw.message}")]
        digest, previous = sha256(raw).hexdigest(), self._previous.get(name)
        parsed = previous[1] if previous is not None and previous[0] == digest else self._parse(raw, file)
        self._read[name] = digest, parsed
        return parsed.value, list(parsed.issues)

    def _name_problem(self, name: str) -> str | None:
        path = PurePosixPath(name)
        if not name or not name.isprintable() or path.is_absolute() or ".." in path.parts or "\\" in name:
            return f"must be a file within the policies folder: write its path from there, like {self._example}"
        if path.suffix not in self._endings:
            return f"must end in {', '.join(sorted(self._endings))}"
        hint = f"put it into a folder of its own, like {PurePosixPath(self._example).parent}/"
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
