"""How a run chooses m for each question: the `auto` of a policy, out of a file of its own, or the built-in one."""

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
    """A rule, and how a policy would say it.

    Attributes:
        said: the whole `auto:` block, what the file leaves out as well: a later version may take other defaults.
        file: where it was read; None: it is the built-in one.
        learned: what stands in the file of its model.
    """

    rule: AutoRule
    said: Mapping[str, Any]
    file: str | None = None
    learned: FittedLengths | None = None

    @property
    def facts(self) -> tuple[object, ...]:
        """All that it depends on, for a hash: a model's file may come to say something else."""
        return dict(self.said), None if self.learned is None else self.learned.model_dump_json()


def read_auto(file: Path | None) -> AutoLength:
    """The rule of this file, whose keys are those of a policy's `auto:`. A model's file is looked for beside it.

    Raises ConfigError with every mistake.
    """
    if file is None:
        return AutoLength(AutoRule(), _whole(AutoRule(), {}))
    source, mistakes = read(file)
    if source is None:
        raise ConfigError(mistakes)
    rule, more = source.check(AutoRule, ValueOrigin({}, file.parent))
    if rule is None or mistakes:
        raise ConfigError([*mistakes, *more])
    learned: FittedLengths | None = None
    if rule.model is not None:
        files = length_files()
        files.begin(file.parent)
        learned, mistakes = files.of(rule.model, source, ("model",))
        if learned is None:
            raise ConfigError(mistakes)
    said, path = _whole(rule, _plain(source.data)), str(file.absolute())
    return AutoLength(rule if learned is None else rule.going_by(learned), said, path, learned)


def _whole(rule: AutoRule, said: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {"min": rule.min, "max": rule.max, "default": rule.default, "stop_at": rule.stop_at}
    if rule.rules is None and rule.model is None:
        # Of the built-in rules a policy may say no more than what comes of them.
        whole["rules"] = [
            {"name": one.name, "prompt": one.prompt, "tokens": one.tokens and max(rule.min, min(rule.max, one.tokens))}
            for one in DEFAULT_RULES
        ]
    return whole | {name: value for name, value in said.items() if value is not None}


def _plain(value: Any) -> Any:
    """Without what JSON has no word for."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return float(value) if isinstance(value, Decimal) else value
