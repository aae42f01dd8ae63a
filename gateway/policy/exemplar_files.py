"""Lists of exemplars in files of the policies folder, as they were read last. Content: no mistake repeats any of it."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from gateway.policy.projection_shapes import MAX_CHARS, ExemplarList
from gateway.yaml_source import Mistake, contents, in_file_order, parse, shown

if TYPE_CHECKING:
    from gateway.policy.projections import Exemplar
    from gateway.yaml_source import Source
    from gateway.yaml_words import Loc

MAX_BYTES = 256_000
"""Of one file."""
PROJECTIONS_FOLDER = "projections"
_PLAIN_PLACE = re.compile(r"(\[\d+\])?(\.?[a-z_]{1,20}(\[\d+\])?)*")
_ENTRY = re.compile(r"\[\d+\]")
_FOUND_BY_YAML = ("not valid YAML: found", "not valid YAML: expected")
_QUOTED = re.compile(r"'[^']*'")
ENDINGS = {".yaml", ".yml", ".json"}
"""Of a file of exemplars."""


class _Kept(NamedTuple):
    digest: str
    exemplars: tuple[Exemplar, ...]
    mistakes: tuple[Mistake, ...]


class ExemplarFiles:
    """Reads each file that is named once in a reading; what has not changed is not parsed again."""

    def __init__(self) -> None:
        self._folder = Path()
        self._kept: dict[str, _Kept] = {}
        self._read: dict[str, _Kept] = {}
        self.named: set[str] = set()
        """The files that were named in this reading, there or not, from the policies folder."""

    def begin(self, folder: Path) -> None:
        """A new reading."""
        self._folder, self._kept, self._read, self.named = folder, self._read or self._kept, {}, set()

    @property
    def digests(self) -> dict[str, str]:
        """Of the files that were read."""
        return {name: kept.digest for name, kept in self._read.items()}

    def of(self, name: str, source: Source, loc: Loc) -> tuple[tuple[Exemplar, ...], list[Mistake]]:
        """The exemplars of the file that `source` names at `loc`; none, with mistakes, where it has some.

        Those of the file itself are told to the first who names it.
        """
        wrong = _wrong_name(name) or self._outside(name)
        if wrong is not None:
            return (), [source.mistake(loc, wrong)]
        name = str(PurePosixPath(name))
        self.named.add(name)
        if name in self._read:
            return self._read[name].exemplars, []
        file = self._folder / name
        raw = contents(file, MAX_BYTES)
        if isinstance(raw, Mistake):
            return (), [source.mistake(loc, f"{name} {raw.message}")]
        digest, kept = sha256(raw).hexdigest(), self._kept.get(name)
        if kept is None or kept.digest != digest:
            kept = _kept(raw, digest, file)
        self._read[name] = kept
        return kept.exemplars, list(kept.mistakes)

    def _outside(self, name: str) -> str | None:
        """Links may turn around within the folder, as those of a ConfigMap do."""
        try:
            inside = (self._folder / name).resolve().is_relative_to(self._folder.resolve())
        except (OSError, RuntimeError):
            return "cannot be followed: a link leads in a circle"
        return None if inside else "leads out of the policies folder by a link: put the file itself there"


def _wrong_name(name: str) -> str | None:
    path = PurePosixPath(name)
    if not name or not name.isprintable() or path.is_absolute() or ".." in path.parts or "\\" in name:
        return "must be a file within the policies folder: write its path from there, like exemplars/arithmetic.yaml"
    if path.suffix not in ENDINGS:
        return f"must end in {', '.join(sorted(ENDINGS))}"
    if len(path.parts) == 1 and path.suffix != ".json":
        return "stands where tenants' policies do: put it into a folder of its own, like exemplars/"
    if path.parts[0] == PROJECTIONS_FOLDER and len(path.parts) == len(("projections", "it.yaml")):
        return "stands where projections do: put it into a folder of its own, like exemplars/"
    return None


def _kept(raw: bytes, digest: str, file: Path) -> _Kept:
    source, mistakes = parse(raw, shown(file), list)
    found: ExemplarList | None = None
    if source is not None:
        found, wrong = source.check(ExemplarList)
        mistakes = [*mistakes, *wrong]
    exemplars = found.exemplars() if found is not None else ()
    size = sum(len(one.question) + len(one.answer) for one in exemplars)
    if source is not None and size > MAX_CHARS:
        mistakes.append(
            source.mistake(
                (), f"holds {size} characters: a teacher would read them with each request; at most {MAX_CHARS}"
            )
        )
    return _Kept(digest, () if mistakes else exemplars, tuple(in_file_order(map(without_content, mistakes))))


def without_content(mistake: Mistake) -> Mistake:
    """The same without words of the file that a slip has made a key or an alias of."""
    place, message = mistake.field, mistake.message
    if not _PLAIN_PLACE.fullmatch(place):
        place = found[0] if (found := _ENTRY.match(place)) else ""
    if message.startswith(_FOUND_BY_YAML):
        message = _QUOTED.sub("'...'", message)
    return replace(mistake, field=place, message=message)
