"""Lists of exemplars in files of the policies folder. Content: no mistake repeats any of it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.config.yaml_source import in_file_order, parse, shown
from gateway.policy.named_files import NamedFiles, ParsedFile
from gateway.policy.projection_shapes import MAX_CHARS, ExemplarList

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.errors import ConfigIssue
    from gateway.policy.projections import Exemplar

MAX_BYTES = 256_000
"""Of one file."""
_PLAIN_PLACE = re.compile(r"(\[\d+\])?(\.?[a-z_]{1,20}(\[\d+\])?)*")
_ENTRY = re.compile(r"\[\d+\]")
_FOUND_BY_YAML = ("not valid YAML: found", "not valid YAML: expected")
_QUOTED = re.compile(r"'[^']*'")
ENDINGS = frozenset({".yaml", ".yml", ".json"})
"""Of a file of exemplars."""


def exemplar_files() -> NamedFiles[tuple[Exemplar, ...]]:
    """The files of exemplars that policies and projections name."""
    return NamedFiles("exemplars/arithmetic.yaml", ENDINGS, MAX_BYTES, _parsed)


def _parsed(raw: bytes, file: Path) -> ParsedFile[tuple[Exemplar, ...]]:
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
    return ParsedFile(None if mistakes else exemplars, tuple(in_file_order(map(without_content, mistakes))))


def without_content(mistake: ConfigIssue) -> ConfigIssue:
    """The same without words of the file that a slip has made a key or an alias of."""
    place, message = mistake.field, mistake.message
    if not _PLAIN_PLACE.fullmatch(place):
        place = found[0] if (found := _ENTRY.match(place)) else ""
    if message.startswith(_FOUND_BY_YAML):
        message = _QUOTED.sub("'...'", message)
    return replace(mistake, field=place, message=message)
