"""Files of exemplars in the policies folder. Their content is confidential and appears in no error message."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.config.yaml_source import display_path, in_file_order, parse
from gateway.policy.named_files import NamedFiles, ParsedFile
from gateway.policy.projection_shapes import MAX_CHARS, ExemplarList

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.errors import ConfigIssue
    from gateway.policy.projections import Exemplar

MAX_BYTES = 256_000
"""Maximum size of one file."""
_PLAIN_LOCATION = re.compile(r"(\[\d+\])?(\.?[a-z_]{1,20}(\[\d+\])?)*")
_ENTRY = re.compile(r"\[\d+\]")
_YAML_MESSAGES = ("not valid YAML: found", "not valid YAML: expected")
_QUOTED = re.compile(r"'[^']*'")
ENDINGS = frozenset({".yaml", ".yml", ".json"})
"""Suffixes of files of exemplars."""


def exemplar_files() -> NamedFiles[tuple[Exemplar, ...]]:
    """Return a reader of the files of exemplars that policies and projections name."""
    return NamedFiles("exemplars/arithmetic.yaml", ENDINGS, MAX_BYTES, _parsed)


def _parsed(raw: bytes, file: Path) -> ParsedFile[tuple[Exemplar, ...]]:
    source, issues = parse(raw, display_path(file), list)
    entries: ExemplarList | None = None
    if source is not None:
        entries, found = source.check(ExemplarList)
        issues = [*issues, *found]
    exemplars = entries.exemplars() if entries is not None else ()
    size = sum(len(one.question) + len(one.answer) for one in exemplars)
    if source is not None and size > MAX_CHARS:
        issues.append(
            source.issue(
                (), f"holds {size} characters: a teacher would read them with each request; at most {MAX_CHARS}"
            )
        )
    return ParsedFile(None if issues else exemplars, tuple(in_file_order(map(without_content, issues))))


def without_content(issue: ConfigIssue) -> ConfigIssue:
    """Return the issue without content of the file, which may be part of its location or message."""
    location, message = issue.field, issue.message
    if not _PLAIN_LOCATION.fullmatch(location):
        location = match[0] if (match := _ENTRY.match(location)) else ""
    if message.startswith(_YAML_MESSAGES):
        message = _QUOTED.sub("'...'", message)
    return replace(issue, field=location, message=message)
