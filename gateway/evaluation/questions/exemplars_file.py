"""Exemplars from a file, for few-shot prompts or for the teacher alone (`primed`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config.yaml_source import in_file_order, read
from gateway.errors import ConfigError, ConfigIssue
from gateway.policy.projection_shapes import ExemplarRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.policy.projections import Exemplar

_SHIPPED = Path(__file__).with_name("shipped")
_EXPECTED = "must be a list: one '- question: ...' with 'answer: ...' per entry"


def exemplars(path: Path) -> tuple[Exemplar, ...]:
    """Read a YAML or JSON list of {question, answer}. Raises ConfigError with the line of every issue."""
    source, issues = read(path, of=list)
    if source is None:
        raise ConfigError(issues)
    result = []
    for part in source.entries():
        entry, entry_issues = part.check(ExemplarRule)
        issues += entry_issues
        if entry is not None:
            result.append(entry.exemplar())
    if not issues and not result:
        issues = [ConfigIssue(source.file, 0, 0, "", f"has no exemplars: it {_EXPECTED}")]
    if issues:
        raise ConfigError(in_file_order(issues))
    return tuple(result)


def shipped(scorers: Sequence[str]) -> tuple[Exemplar, ...]:
    """Return the shipped exemplars for questions with these scorers: all numeric, or all choice; none for others."""
    kinds = set(scorers)
    if kinds == {"numeric"}:
        return exemplars(_SHIPPED / "arithmetic.yaml")
    if kinds == {"choice"}:
        return exemplars(_SHIPPED / "choices.yaml")
    return ()
