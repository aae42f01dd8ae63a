"""Questions answered beforehand, from a file: shown in few-shot prompts, or to the teacher alone (`primed`)."""

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
    """What a YAML or JSON file holds: a list of {question, answer}. Raises ConfigError with every mistake's line."""
    source, mistakes = read(path, of=list)
    if source is None:
        raise ConfigError(mistakes)
    found = []
    for part in source.entries():
        entry, wrong = part.check(ExemplarRule)
        mistakes += wrong
        if entry is not None:
            found.append(entry.exemplar())
    if not mistakes and not found:
        mistakes = [ConfigIssue(source.file, 0, 0, "", f"holds no exemplars: it {_EXPECTED}")]
    if mistakes:
        raise ConfigError(in_file_order(mistakes))
    return tuple(found)


def shipped(scorers: Sequence[str]) -> tuple[Exemplar, ...]:
    """Our own, for questions with these scorers: all numbers, or all choices; none for others."""
    kinds = set(scorers)
    if kinds == {"numeric"}:
        return exemplars(_SHIPPED / "arithmetic.yaml")
    if kinds == {"choice"}:
        return exemplars(_SHIPPED / "choices.yaml")
    return ()
