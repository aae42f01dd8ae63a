"""Read the files of the policies folder. Unchanged files are not parsed again."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from gateway.config.yaml_source import display_path, read_bytes
from gateway.errors import ConfigIssue

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config.yaml_messages import Loc
    from gateway.config.yaml_source import YamlSource

PROJECTIONS_FOLDER = "projections"
"""Subfolder of the policies folder."""
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
