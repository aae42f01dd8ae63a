"""The engines of config.yaml, with their settings, prices and tokenizers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.accounting.estimate import FALLBACK, Encoding
from gateway.accounting.worst_case import engine_maxima, unknown_max_output
from gateway.policy.affinity import EngineLoad
from gateway.policy.plan import EngineSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.accounting.worst_case import MaxOutputOf
    from gateway.config.models import ModelSettings
    from gateway.engines.base import Engine
    from gateway.engines.guard import GuardedEngine
    from gateway.pricing import Price


@dataclass(frozen=True, slots=True, eq=False)
class EngineSet:
    """The engines of the process.

    Attributes:
        by_name: the engines.
        prices: USD per token, by model.
        encodings: the tokenizer, by model.
        max_output: returns the longest answer of a model.
        models: the settings, by model.
    """

    by_name: Mapping[str, GuardedEngine]
    prices: Mapping[str, Price] = field(default_factory=dict)
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    max_output: MaxOutputOf = unknown_max_output
    models: Mapping[str, ModelSettings] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Iterable[ModelSettings], engines: Mapping[str, GuardedEngine]) -> EngineSet:
        """Return the set of these models. `engines` has one engine for each of them, and maybe others."""
        by_name = {model.name: model for model in models}
        own = {name: engines[name] for name in by_name}
        return cls(
            own,
            {name: model.price for name, model in by_name.items()},
            {name: encoding_of(model) for name, model in by_name.items()},
            max_output_of(by_name.values(), own),
            by_name,
        )

    def snapshot(self, name: str, tenant: str = "") -> EngineSnapshot:
        """Return the current state of an engine for a tenant."""
        engine = self.by_name[name]
        state = engine.state
        return EngineSnapshot(
            state.continuation,
            engine.in_cooldown_for(tenant),
            state.reasoning,
            state.takes_prompts,
            state.revision,
            state.tokenizer,
            state.constraints,
            state.counts_chunks,
        )

    def load(self, name: str) -> EngineLoad:
        """Return the calls of an engine in this process."""
        engine = self.by_name[name]
        return EngineLoad(engine.calls, engine.is_full)


def encoding_of(model: ModelSettings) -> Encoding:
    """Return the tokenizer that counts a model's tokens."""
    return Encoding(model.tokenizer or FALLBACK, own=model.tokenizer is not None)


def max_output_of(models: Iterable[ModelSettings], engines: Mapping[str, Engine] | None = None) -> MaxOutputOf:
    """Return the maximum answer lengths of all engines; without `engines`, only those in config.yaml."""
    known = {model.name: model for model in models}

    def reported(name: str) -> int | None:
        return None if engines is None or name not in engines else engines[name].state.context_tokens

    return engine_maxima(
        {name: model.max_output_tokens for name, model in known.items()},
        {name: model.listed_max_output for name, model in known.items()},
        reported,
    )
