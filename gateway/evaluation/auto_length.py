"""The rule by which a run chooses m for each question: a policy's `auto` block from a file, or the built-in rule."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gateway.config.scalars import ValueOrigin
from gateway.config.yaml_source import read
from gateway.errors import ConfigError
from gateway.policy.length_files import length_files
from gateway.policy.length_rules import DEFAULT_RULES, AutoRule

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.policy.length_model import FittedLengths


@dataclass(frozen=True, slots=True)
class AutoLength:
    """A rule, and its policy block.

    Attributes:
        block: The complete `auto:` block, including defaults, since later versions may have other defaults.
        file: The file of the rule; None for the built-in rule.
        learned: The contents of the rule's model file.
    """

    rule: AutoRule
    block: Mapping[str, Any]
    file: str | None = None
    learned: FittedLengths | None = None

    @property
    def facts(self) -> tuple[object, ...]:
        """Return everything that the rule depends on, for a hash; a model file may change."""
        return dict(self.block), None if self.learned is None else self.learned.model_dump_json()


def read_auto(file: Path | None) -> AutoLength:
    """Read a rule from a file with the keys of a policy's `auto:` block; None returns the built-in rule.

    The path of a model file is relative to the file. Raises ConfigError with every issue.
    """
    if file is None:
        return AutoLength(AutoRule(), _complete_block(AutoRule(), {}))
    source, issues = read(file)
    if source is None:
        raise ConfigError(issues)
    rule, more = source.check(AutoRule, ValueOrigin({}, file.parent))
    if rule is None or issues:
        raise ConfigError([*issues, *more])
    learned: FittedLengths | None = None
    if rule.model is not None:
        files = length_files()
        files.begin(file.parent)
        learned, issues = files.of(rule.model, source, ("model",))
        if learned is None:
            raise ConfigError(issues)
    block, path = _complete_block(rule, _plain(source.data)), str(file.absolute())
    return AutoLength(rule if learned is None else rule.with_length_model(learned), block, path, learned)


def _complete_block(rule: AutoRule, block: Mapping[str, Any]) -> dict[str, Any]:
    block_items: dict[str, Any] = {"min": rule.min, "max": rule.max, "default": rule.default, "stop_at": rule.stop_at}
    if rule.rules is None and rule.model is None:
        # A policy can express the built-in rules only by their results.
        block_items["rules"] = [
            {"name": one.name, "prompt": one.prompt, "tokens": one.tokens and max(rule.min, min(rule.max, one.tokens))}
            for one in DEFAULT_RULES
        ]
    return block_items | {name: value for name, value in block.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return the value with JSON types only."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return float(value) if isinstance(value, Decimal) else value
