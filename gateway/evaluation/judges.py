"""A judge that is a model of a configuration: what it says is kept beside a run's texts, and not asked for again."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

from gateway.engines.build import build
from gateway.engines.replies import message_text
from gateway.errors import StartupError
from gateway.evaluation.generations import Generations, RecordingEngine
from gateway.evaluation.judging import Judge
from gateway.evaluation.patience import StageRetries
from gateway.policy.book import PolicySet
from gateway.policy.policies import Policies
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.config.settings import Settings

_MOST_TOKENS = 64


@asynccontextmanager
async def judge_of(settings: Settings, name: str, kept_in: Path) -> AsyncIterator[Judge]:
    """A judge that asks this model, greedily. Raises StartupError where the configuration has no such model."""
    model = settings.by_name.get(name)
    if model is None:
        known = ", ".join(settings.by_name)
        raise StartupError(f"--judge {name}: the configuration has no such model. It has: {known}.")
    engines = await build([model], Policies(PolicySet.of([]), None), Metrics(None, 1))
    patience = StageRetries()
    try:
        with closing(Generations(kept_in)) as kept:
            recorded = RecordingEngine(engines[name], kept, f"judge {name}")

            async def ask(prompt: str) -> str:
                body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": _MOST_TOKENS}
                return message_text(await patience.with_it(lambda: recorded.complete(body))) or ""

            yield Judge(ask)
    finally:
        await engines[name].close()
