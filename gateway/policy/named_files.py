"""Files that policies name, by their paths from the policies folder, as they were read last."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Generic, TypeVar

from gateway.config.yaml_source import contents
from gateway.errors import ConfigIssue

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config.yaml_messages import Loc
    from gateway.config.yaml_source import YamlSource

PROJECTIONS_FOLDER = "projections"
"""In the policies folder."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ParsedFile(Generic[T]):
    """What a file holds; None, with mistakes, where it has some."""

    value: T | None
    mistakes: tuple[ConfigIssue, ...] = ()


class NamedFiles(Generic[T]):
    """Reads each file that is named once in a reading; what has not changed is not parsed again.

    Args:
        example: a path as it may be.
        endings: of their names.
        most_bytes: of one file.
        parse: makes something of what stands in a file.
    """

    def __init__(
        self, example: str, endings: frozenset[str], most_bytes: int, parse: Callable[[bytes, Path], ParsedFile[T]]
    ) -> None:
        self._example = example
        self._endings = endings
        self._most_bytes = most_bytes
        self._parse = parse
        self._folder = Path()
        self._kept: dict[str, tuple[str, ParsedFile[T]]] = {}
        self._read: dict[str, tuple[str, ParsedFile[T]]] = {}
        self.named: set[str] = set()
        """The files that were named in this reading, there or not, from the policies folder."""

    def begin(self, folder: Path) -> None:
        """A new reading."""
        self._folder, self._kept, self._read, self.named = folder, self._read or self._kept, {}, set()

    @property
    def digests(self) -> dict[str, str]:
        """Of the files that were read."""
        return {name: digest for name, (digest, _) in self._read.items()}

    def of(self, name: str, source: YamlSource, loc: Loc) -> tuple[T | None, list[ConfigIssue]]:
        """What the file holds that `source` names at `loc`; None, with mistakes, where it has some.

        Those of the file itself are told to the first who names it.
        """
        wrong = self._wrong_name(name) or self._outside(name)
        if wrong is not None:
            return None, [source.mistake(loc, wrong)]
        name = str(PurePosixPath(name))
        self.named.add(name)
        if name in self._read:
            return self._read[name][1].value, []
        file = self._folder / name
        raw = contents(file, self._most_bytes)
        if isinstance(raw, ConfigIssue):
            return None, [source.mistake(loc, f"{name} {raw.message}")]
        digest, kept = sha256(raw).hexdigest(), self._kept.get(name)
        parsed = kept[1] if kept is not None and kept[0] == digest else self._parse(raw, file)
        self._read[name] = digest, parsed
        return parsed.value, list(parsed.mistakes)

    def _wrong_name(self, name: str) -> str | None:
        path = PurePosixPath(name)
        if not name or not name.isprintable() or path.is_absolute() or ".." in path.parts or "\\" in name:
            return f"must be a file within the policies folder: write its path from there, like {self._example}"
        if path.suffix not in self._endings:
            return f"must end in {', '.join(sorted(self._endings))}"
        own = f"put it into a folder of its own, like {PurePosixPath(self._example).parent}/"
        if len(path.parts) == 1 and path.suffix != ".json":
            return f"stands where tenants' policies do: {own}"
        if path.parts[0] == PROJECTIONS_FOLDER and len(path.parts) == len(("projections", "it.yaml")):
            return f"stands where projections do: {own}"
        return None

    def _outside(self, name: str) -> str | None:
        """Links may turn around within the folder, as those of a ConfigMap do."""
        try:
            inside = (self._folder / name).resolve().is_relative_to(self._folder.resolve())
        except (OSError, RuntimeError):
            return "cannot be followed: a link leads in a circle"
        return None if inside else "leads out of the policies folder by a link: put the file itself there"
